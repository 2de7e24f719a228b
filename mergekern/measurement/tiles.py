"""The work on a zoo as a list of independent items: tensors × blocks of models × pairs of blocks.

The list depends on the numbers of models and tensors and on the size of the blocks alone, so that every process that
takes a part in it has the same one.

What it costs, for N models of D parameters in L tensors, in blocks of B models; a matrix has the sides s ≤ l:

    read            N·D·itemsize bytes, ⌈N/B⌉ times; of tensors that exceed the budget twice as often, since they are
                    hashed first, and twice more for the factorisations
    inner products  N²·D operations
    factorisations  N·Σ(s²l + 4/3 s³)
    overlaps        N²·k²·Σ(m + 2n), from singular vectors alone, when blocks are joined
    kept            5·N²·L float64 for pairs, N·Σ(m + 2n)·k float32 for the singular vectors
    memory          of one item: 2B models' chunk of a tensor, and its 5·B² float64; of a screening, 2·128 models'

One more model costs the N-th part of the factorisations, and reads everything once. Of adapters of rank r the inner
products take N²·r²·Σ(m + n) instead, and factorisations N·r²·Σ(m + n).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Models that are measured together. One block is a zoo that is read once; of B blocks every tensor is read B times.
# More rows than these of the Gram kernel leave the cache.
BLOCK_SIZE = 512


class Tile(NamedTuple):
    """Pairs of models of one tensor that are measured together.

    Attributes:
        rows: positions of models.
        columns: models on the other side of each pair; empty for pairs among the rows, which are factorised too.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...] = ()

    @property
    def models(self) -> tuple[int, ...]:
        """Positions of all models in it."""
        return self.rows + self.columns


class Item(NamedTuple):
    """A tile of one tensor."""

    tensor: int
    tile: int


def tiles(known: Sequence[int], new: Sequence[int], block_size: int = BLOCK_SIZE) -> list[Tile]:
    """Return what is to be measured of one tensor, where the pairs of some models are known already.

    Each block of new models by itself, then with all models before it, a block at a time.

    >>> tiles([], [0, 1, 2], 2)
    [Tile(rows=(0, 1), columns=()), Tile(rows=(2,), columns=()), Tile(rows=(0, 1), columns=(2,))]
    >>> tiles([0, 1], [2])
    [Tile(rows=(2,), columns=()), Tile(rows=(0, 1), columns=(2,))]
    """
    found = []
    before = list(known)
    for block in _blocks(new, block_size):
        found.append(Tile(block))
        found += [Tile(others, block) for others in _blocks(before, block_size)]
        before += block
    return found


def share(costs: Sequence[Sequence[float]], index: int, count: int) -> set[Item]:
    """Return the items of one of `count` shares of about the same cost.

    Args:
        costs: cost of each tile of each tensor.
        index: index of the share, from 0.
        count: number of shares.

    >>> sorted(share([[4.0], [1.0], [2.0], [2.0]], 1, 2))
    [Item(tensor=2, tile=0), Item(tensor=3, tile=0)]
    """
    items = [(cost, Item(tensor, tile)) for tensor, row in enumerate(costs) for tile, cost in enumerate(row)]
    taken: list[set[Item]] = [set() for _ in range(count)]
    loads = np.zeros(count)
    for cost, item in sorted(items, key=lambda each: (-each[0], each[1])):
        least = int(loads.argmin())
        taken[least].add(item)
        loads[least] += cost
    return taken[index]


def cost(shape: Sequence[int], tile: Tile, with_spectrum: bool) -> float:
    """Return about how much work a tile is, in operations: products of task vectors, and factorisations.

    >>> cost((4, 2), Tile((0, 1)), with_spectrum=False)
    48.0
    """
    size, rows, columns = float(np.prod(shape)), len(tile.rows), len(tile.columns)
    pairs = rows * columns if columns else rows * (rows + 1) / 2
    work = 2 * size * pairs
    if with_spectrum and len(shape) == 2 and not columns:
        short = min(shape)
        work += rows * (short * size + 4 / 3 * short**3)
    return work


def _blocks(models: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(models), size):
        yield tuple(models[start : start + size])
