"""`low_rank` on the CPU: Householder QR by LAPACK, and inner products of the vectors of one tile of models at a time.

Vectors are stored as rows, so that each is contiguous, and Fortran sees the tall matrices of the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mergekern.kernels import lapack
from mergekern.kernels.vectors import block_sums, inner_products
from mergekern.kernels.workspace import Workspace

# (model, left (p, m), right (p, n)) -> values (p,). Writes the singular vectors of a model to left and right, as rows.
Load = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

_workspace = Workspace()


def thin_svd(left: np.ndarray, right: np.ndarray, left_vectors: np.ndarray, right_vectors: np.ndarray) -> np.ndarray:
    """Write the singular vectors of leftᵀ·right and return the values, descending.

    Args:
        left, right: (r, m) and (r, n) float64, C-contiguous; overwritten.
        left_vectors, right_vectors: (p, m) and (p, n) float64, p = min(r, m, n); receive the vectors, as rows.

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
    """Return ‖τ_a − τ_b‖² from factors (left, right), without cancellation if the two are nearly equal.

    >>> one, other = (np.ones((1, 2)), np.ones((1, 3))), (np.ones((1, 2)), np.full((1, 3), 1 + 2.0**-40))
    >>> round(squared_distance(one, other) * 2.0**80, 12)
    6.0
    """
    rank = max(len(a[0]), len(b[0]))
    (left_a, right_a), (left_b, right_b) = ([_padded(side, rank) for side in factors] for factors in (a, b))
    # Exchanging the two changes signs only, and no other bit.
    left = np.concatenate([(left_a + left_b) / 2, left_a - left_b])
    right = np.concatenate([right_a - right_b, (right_a + right_b) / 2])
    triangles = (lapack.qr(side)[0] for side in (left, right))
    core_left, core_right = triangles
    core = core_left[:, :rank] @ core_right[:, :rank].T + core_left[:, rank:] @ core_right[:, rank:].T
    return float(np.square(core).sum())


def workspace(ranks: Sequence[int], shape: tuple[int, int], tile_bytes: int) -> int:
    """Return an upper bound for the bytes that `Triplets.inner` allocates, including those of `thin_svd`."""
    vectors = min(2 * tile_bytes, 8 * sum(ranks) * sum(shape))
    products = 6 * 8 * min(sum(ranks), tile_bytes // (8 * sum(shape)) + max(ranks)) ** 2
    return vectors + products + 8 * max(ranks) * sum(shape)


class Triplets:
    """The singular triplets of N models, of which one tile is in memory at a time.

    Args:
        load: loads the triplets of one model; called again for every other tile if one tile does not hold all models.
        ranks: p of each model.
        shape: (m, n).
        tile_bytes: bytes of the vectors on one side of a tile of pairs.
    """

    def __init__(self, load: Load, ranks: Sequence[int], shape: tuple[int, int], tile_bytes: int) -> None:
        self._load, self._ranks, self._shape = load, ranks, shape
        self._most = max(1, tile_bytes // (8 * sum(shape)))

    def inner(self, split: int = 0) -> np.ndarray:
        """Return the inner products (N, N) of all pairs that a split selects, and zeros for the others; see `gram`."""
        out = np.zeros((len(self._ranks),) * 2)
        old, new = self._tiles(0, split), self._tiles(split, len(self._ranks))
        # With a split, each tile of old models is loaded once for each tile of new models, of which there are few.
        for index, models in enumerate(new or old):
            first = self._tile("first", models)
            _put_own(out, first, split)
            for others in (old if split else new[index + 1 :]) if new else []:
                second = self._tile("second", others)
                _put(out, first, second)
                if split and index == 0:
                    _put_own(out, second, split)
        return out

    def inner_with(
        self, matrices: Sequence[Callable[[], Iterator[tuple[int, np.ndarray]]]], wanted: np.ndarray
    ) -> np.ndarray:
        """Return the inner products of whole task matrices with the models, (len(matrices), N).

        Args:
            matrices: for each matrix, a function that yields (start, rows) with some of its rows, (·, n) float64.
            wanted: (len(matrices), N) bool, the products to compute; all others are zero.
        """
        out = np.zeros(wanted.shape)
        for models in self._tiles(0, len(self._ranks)):
            if not wanted[:, models].any():
                continue
            tile = self._tile("first", models)
            for index, blocks in enumerate(matrices):
                some = [model for model in models if wanted[index, model]]
                ours = [tile.only(model) for model in some]
                products = [np.zeros_like(one.right) for one in ours]
                for start, rows in blocks() if some else ():
                    for one, product in zip(ours, products, strict=True):
                        product += one.left[:, start : start + len(rows)] @ rows
                for model, one, product in zip(some, ours, products, strict=True):
                    out[index, model] = (one.values * np.einsum("pn,pn->p", product, one.right)).sum()
        return out

    def _tiles(self, first: int, last: int) -> list[range]:
        """Return ranges of the models from `first` to `last`, each of which fits in one tile or is a single model."""
        tiles = _together(self._ranks[first:last], self._most)
        return [range(first + models.start, first + models.stop) for models in tiles]

    def _tile(self, name: str, models: range) -> _Tile:
        """Load the triplets of some models. They overwrite the last tile with the same name."""
        starts = np.cumsum([0] + [self._ranks[model] for model in models])
        left, right = (
            _workspace.array(f"{name} {side}", (starts[-1], size))
            for side, size in zip(("left", "right"), self._shape, strict=True)
        )
        values = np.empty(starts[-1])
        for model, start, stop in zip(models, starts, starts[1:], strict=False):
            values[start:stop] = self._load(model, left[start:stop], right[start:stop])
        return _Tile(models, starts, left, values, right)


def _padded(side: np.ndarray, rank: int) -> np.ndarray:
    return np.concatenate([side, np.zeros((rank - len(side), side.shape[1]))])


def _together(ranks: Sequence[int], most: int) -> Iterator[range]:
    """Yield ranges of models that have at most `most` vectors in total, or single models with more.

    >>> list(_together([2, 2, 3, 9, 1], 5))
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


class _Tile(NamedTuple):
    """The triplets of some models: left vectors (rows), values, right vectors (rows), and the start of each model."""

    models: range
    starts: np.ndarray
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    def only(self, model: int) -> _Tile:
        index = model - self.models.start
        rows = slice(*self.starts[index : index + 2])
        return _Tile(range(model, model + 1), np.array([0]), self.left[rows], self.values[rows], self.right[rows])


def _put(out: np.ndarray, rows: _Tile, columns: _Tile) -> None:
    same = rows is columns
    products = inner_products(rows.left, None if same else columns.left)
    products *= inner_products(rows.right, None if same else columns.right)
    products *= np.multiply.outer(rows.values, columns.values)
    sums = block_sums(products, rows.starts[: len(rows.models)], columns.starts[: len(columns.models)])
    at, there = (slice(tile.models.start, tile.models.stop) for tile in (rows, columns))
    out[at, there], out[there, at] = sums, sums.T


def _put_own(out: np.ndarray, tile: _Tile, split: int) -> None:
    """Store the pairs within a tile, or, with a split, only those of each model with itself."""
    for part in [tile.only(model) for model in tile.models] if split else [tile]:
        _put(out, part, part)
