"""`low_rank` on the CPU: Householder QR by LAPACK, one symmetric product a side, a tile of models at a time.

Vectors are rows here: each lies contiguously, and Fortran sees the tall matrices of the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mergekern.kernels import lapack
from mergekern.kernels.low_rank import Comparison
from mergekern.kernels.workspace import Workspace

# (model, left (p, m), right (p, n)) -> values (p,): writes the singular vectors of a model, as rows.
Load = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

_workspace = Workspace()


def thin_svd(left: np.ndarray, right: np.ndarray, left_vectors: np.ndarray, right_vectors: np.ndarray) -> np.ndarray:
    """Write the singular vectors of leftᵀ·right and return the values, descending.

    Args:
        left, right: (r, m) and (r, n) float64, C-contiguous; overwritten.
        left_vectors, right_vectors: (p, m) and (p, n) float64, p = min(r, m, n): take the vectors, as rows.

    >>> u, v = np.empty((1, 2)), np.empty((1, 3))
    >>> thin_svd(np.array([[3.0, 4.0]]), np.array([[0.0, 2.0, 0.0]]), u, v)
    array([10.])
    >>> np.abs(u).round(1), np.abs(v)
    (array([[0.6, 0.8]]), array([[0., 1., 0.]]))
    """
    p = len(left_vectors)
    triangles, scales = zip(*(lapack.qr(side) for side in (left, right)), strict=True)
    core_left, values, core_right = np.linalg.svd(triangles[0] @ triangles[1].T, full_matrices=False)
    cores = (core_left.T[:p], core_right[:p])
    for factor, scale, core, out in zip((left, right), scales, cores, (left_vectors, right_vectors), strict=True):
        out[:, : core.shape[1]] = core
        out[:, core.shape[1] :] = 0.0
        lapack.multiply_by_q(factor, scale, out)
    return values[:p]


def squared_distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Return ‖τ_a − τ_b‖² of factors (left, right), without cancellation where they are nearly the same.

    >>> one, other = (np.ones((1, 2)), np.ones((1, 3))), (np.ones((1, 2)), np.full((1, 3), 1 + 2.0**-40))
    >>> round(squared_distance(one, other) * 2.0**80, 12)
    6.0
    """
    rank = max(len(a[0]), len(b[0]))
    (left_a, right_a), (left_b, right_b) = ([_padded(side, rank) for side in factors] for factors in (a, b))
    left = np.concatenate([left_a, left_a - left_b])
    right = np.concatenate([right_a - right_b, right_b])
    triangles = (lapack.qr(side)[0] for side in (left, right))
    core_left, core_right = triangles
    core = core_left[:, :rank] @ core_right[:, :rank].T + core_left[:, rank:] @ core_right[:, rank:].T
    return float(np.square(core).sum())


def workspace(ranks: Sequence[int], shape: tuple[int, int], tile_bytes: int) -> int:
    """Return the bytes that one call of `compare` allocates at most, with what `thin_svd` takes."""
    vectors = min(2 * tile_bytes, 8 * sum(ranks) * sum(shape))
    products = 6 * 8 * min(sum(ranks), tile_bytes // (8 * sum(shape)) + max(ranks)) ** 2
    return vectors + products + 8 * max(ranks) * sum(shape)


class Triplets:
    """The singular triplets of N models, a tile of models in memory at a time.

    Args:
        load: gives those of one model; called again for every tile of others where one tile does not hold all.
        ranks: p of each model.
        shape: (m, n).
        tile_bytes: of the vectors held for one side of a tile of pairs.
    """

    def __init__(self, load: Load, ranks: Sequence[int], shape: tuple[int, int], tile_bytes: int) -> None:
        self._load, self._ranks, self._shape = load, ranks, shape
        self._tiles = list(_tiles(ranks, max(1, tile_bytes // (8 * sum(shape)))))

    def compare(self, k: int) -> Comparison:
        """Return inner products, and overlaps of the leading min(k, p) vectors, of all pairs; see the package."""
        out = Comparison(*(np.zeros((len(self._ranks),) * 2) for _ in Comparison._fields))
        for index, models in enumerate(self._tiles):
            tile = self._tile("first", models)
            _put(out, tile, tile, k)
            for others in self._tiles[index + 1 :]:
                _put(out, tile, self._tile("second", others), k)
        return out

    def inner_with(self, matrices: Sequence[Callable[[], Iterator[tuple[int, np.ndarray]]]]) -> np.ndarray:
        """Return the inner products of whole task matrices with the models, (len(matrices), N).

        Args:
            matrices: each gives (start, rows) of one, (·, n) float64, some rows at a time.
        """
        out = np.zeros((len(matrices), len(self._ranks)))
        for models in self._tiles:
            tile = self._tile("first", models)
            for index, blocks in enumerate(matrices):
                products = np.zeros_like(tile.right)
                for start, rows in blocks():
                    products += tile.left[:, start : start + len(rows)] @ rows
                sums = tile.values * np.einsum("pn,pn->p", products, tile.right)
                out[index, models.start : models.stop] = np.add.reduceat(sums, tile.starts)
        return out

    def _tile(self, name: str, models: range) -> _Tile:
        return _Tile(name, self._load, models, self._ranks, self._shape)


def _padded(side: np.ndarray, rank: int) -> np.ndarray:
    return np.concatenate([side, np.zeros((rank - len(side), side.shape[1]))])


def _tiles(ranks: Sequence[int], most: int) -> Iterator[range]:
    """Yield ranges of models that have `most` vectors together, or are one.

    >>> list(_tiles([2, 2, 3, 9, 1], 5))
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    start = held = 0
    for model, rank in enumerate(ranks):
        if model > start and held + rank > most:
            yield range(start, model)
            start, held = model, 0
        held += rank
    if ranks:
        yield range(start, len(ranks))


class _Tile:
    """The triplets of some models: all left vectors as rows, all right ones, and the values."""

    def __init__(self, name: str, load: Load, models: range, ranks: Sequence[int], shape: tuple[int, int]) -> None:
        self.models = models
        self.ranks = np.array([ranks[model] for model in models])
        self.starts = np.concatenate([[0], np.cumsum(self.ranks)[:-1]])
        count = int(self.ranks.sum())
        self.left = _workspace.array(f"{name} left", (count, shape[0]))
        self.right = _workspace.array(f"{name} right", (count, shape[1]))
        self.values = np.empty(count)
        for model, start, rank in zip(models, self.starts, self.ranks, strict=True):
            rows = slice(start, start + rank)
            self.values[rows] = load(model, self.left[rows], self.right[rows])

    def leading(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of the first k vectors of each model, and where each model begins among them."""
        counts = np.minimum(self.ranks, k)
        positions = np.concatenate([np.arange(s, s + c) for s, c in zip(self.starts, counts, strict=True)])
        return positions, np.concatenate([[0], np.cumsum(counts)[:-1]])


def _put(out: Comparison, rows: _Tile, columns: _Tile, k: int) -> None:
    left, right = _product(rows.left, columns.left), _product(rows.right, columns.right)
    (top_rows, starts), (top_columns, column_starts) = rows.leading(k), columns.leading(k)
    top = np.ix_(top_rows, top_columns)
    left_top, right_top = (_block_sums(np.square(side[top]), starts, column_starts) for side in (left, right))
    left *= rows.values[:, None]
    right *= columns.values
    left *= right
    inner = _block_sums(left, rows.starts, columns.starts)
    where = slice(rows.models.start, rows.models.stop), slice(columns.models.start, columns.models.stop)
    for whole, part in zip(out, (inner, left_top, right_top), strict=True):
        whole[where] = part if rows is not columns else (part + part.T) / 2
        whole[where[::-1]] = whole[where].T


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a is not b:
        return lapack.multiply(a, np.ascontiguousarray(b.T))
    out = np.zeros((len(a), len(a)))
    lapack.add_gram(a, out, of_rows=True)
    out += np.triu(out, 1).T
    return out


def _block_sums(values: np.ndarray, row_starts: np.ndarray, column_starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(np.add.reduceat(values, row_starts, axis=0), column_starts, axis=1)
