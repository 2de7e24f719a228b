"""One tensor of the base and of all models, as rules see it that must look at all of it before they merge an element.

Such a rule goes through the tensor once or several times, for inner products, order statistics or counts, and then says
what is done to its elements: `WeightedSum`, a `Rule` of the kernel `combine`, or a function of `Blockwise` that gets a
block of all models at a time. The functions are written in operators of torch, so that one rule serves the processor
and a device.

Blocks are cut by the shape of the tensor alone, so that sums over them are the same under any memory budget.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from mergekern.kernels.combine import Rule, reference
from mergekern.kernels.variation import reference as variation
from mergekern.merging.elementwise import mask_key
from mergekern.merging.of_tensor import OfTensor

# Elements of a block: with a few models its float64 values stay in the processor's cache.
BLOCK = 1 << 15


class Block:
    """Some elements of one tensor, in the base and in all models.

    Args:
        base: (rows, columns), any float dtype; flat blocks have one row.
        tuned: N × (rows, columns), any float dtype.
        start: index of the first element in the tensor.

    Attributes:
        start: as given.
        base: float64.
        models: the tensor in each model, N × (rows, columns) float64.
        deltas: tuned − base of each model, N × (rows, columns) float64.
    """

    def __init__(self, base: torch.Tensor, tuned: Sequence[torch.Tensor], start: int = 0) -> None:
        self.start = start
        self.base = base.double()
        self.models = [tensor.double() for tensor in tuned]

    @property
    def deltas(self) -> list[torch.Tensor]:
        """See the class; computed at each use."""
        return [tensor - self.base for tensor in self.models]


@dataclass(frozen=True)
class WeightedSum:
    """What is done to the elements: base + Σ c·τ, or Σ c·x of the models themselves.

    Attributes:
        coefficients: c, one for each model.
        of_models: whether the models are summed in place of their task vectors.
    """

    coefficients: tuple[float, ...]
    of_models: bool = False


@dataclass(frozen=True)
class Blockwise:
    """What is done to the elements, a block at a time.

    Attributes:
        combine: block -> merged values, float64 of the block's shape.
        of_rows: whether blocks are whole rows; otherwise they are ranges of the flattened tensor.
    """

    combine: Callable[[Block], torch.Tensor]
    of_rows: bool = False


# What is done to the elements of a tensor, once it was looked at as a whole.
Combination = WeightedSum | Blockwise | Rule


class WholeTensor(ABC):
    """One tensor of the base and of N models, which may be gone through several times.

    Attributes:
        shape: its shape.
        gathered: what runs of the models gave of the tensor, for methods that need it.
    """

    shape: tuple[int, ...]
    gathered: OfTensor | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Elements of a row: all that lies under one index of the first dimension; all elements of a vector."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else self.count

    def place(self, of_rows: bool, elements: int = BLOCK) -> int:
        """Return the elements of a block of whole rows, or of a flat one."""
        return max(1, elements // max(self.columns, 1)) * self.columns if of_rows else elements

    @abstractmethod
    def gram(self, of_models: bool) -> np.ndarray:
        """Return the inner products of the task vectors, or of the models themselves, (N, N) float64.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values.
        """

    @abstractmethod
    def blocks(self, of_rows: bool = False) -> Iterator[Block]:
        """Yield the tensor in blocks, in its order.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values.
        """

    @abstractmethod
    def combine(self, deltas: Sequence[torch.Tensor], rule: Rule, start: int = 0) -> torch.Tensor:
        """Return the merge of elements of task vectors by the kernel `combine`, without the base, float64.

        Args:
            deltas: tensors of one shape, float64.
            rule: how they are merged.
            start: index of the first element in the tensor.
        """

    @abstractmethod
    def mask_keys(self, seed: int) -> list[int]:
        """Return the keys of the random masks of the models."""

    @abstractmethod
    def kth_largest(
        self, values: Callable[[Block], torch.Tensor], ranks: Sequence[int], of_rows: bool = False
    ) -> list[float]:
        """Return the k-th largest, for each k, of values ≥ 0 that a function computes of each block, one an element."""

    @abstractmethod
    def least_variance(self, share: float) -> float:
        """Return the least variance over the models of the given share of the elements that vary; ∞ if it is of none.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values.
        """

    @abstractmethod
    def energies(self, least: float) -> np.ndarray:
        """Return the sum of squares of each task vector, (N,), over the elements of at least some variance."""

    @abstractmethod
    def changes(self, epsilon: float) -> np.ndarray:
        """Return how many elements each model changes by more than epsilon, with others and alone, (2, N)."""


class TensorInMemory(WholeTensor):
    """One tensor in memory, with sums and sorts of NumPy: the oracle of what is streamed.

    Args:
        base: any shape and float dtype.
        deltas: tuned − base of each model.
    """

    def __init__(self, base: torch.Tensor, deltas: Sequence[torch.Tensor]) -> None:
        self.shape = tuple(base.shape)
        self._base = base.double()
        self._tuned = [self._base + delta.double() for delta in deltas]

    def gram(self, of_models: bool) -> np.ndarray:
        """See `WholeTensor`."""
        (block,) = self.blocks()
        rows = np.stack([each.numpy().ravel() for each in (block.models if of_models else block.deltas)])
        return rows @ rows.T

    def blocks(self, of_rows: bool = False) -> Iterator[Block]:
        """See `WholeTensor`; the whole tensor is one block."""
        shape = (-1, self.columns) if of_rows and self.count else (1, -1)
        yield Block(self._base.reshape(shape), [each.reshape(shape) for each in self._tuned])

    def combine(self, deltas: Sequence[torch.Tensor], rule: Rule, start: int = 0) -> torch.Tensor:
        """See `WholeTensor`."""
        found, _ = reference.combine(None, [delta.reshape(-1) for delta in deltas], rule, start)
        return torch.from_numpy(found).view(deltas[0].shape)

    def mask_keys(self, seed: int) -> list[int]:
        """See `WholeTensor`; the tensor has no name."""
        deltas = (tuned - self._base for tuned in self._tuned)
        return [mask_key(seed, "", xxhash.xxh3_128_hexdigest(delta.numpy())) for delta in deltas]

    def kth_largest(
        self, values: Callable[[Block], torch.Tensor], ranks: Sequence[int], of_rows: bool = False
    ) -> list[float]:
        """See `WholeTensor`."""
        (block,) = self.blocks(of_rows)
        found = np.sort(values(block).numpy(), axis=None)
        return [float(found[-k]) for k in ranks]

    def least_variance(self, share: float) -> float:
        """See `WholeTensor`."""
        found = np.sort(variation.variances(self._base, self._tuned))
        k = int(share * np.count_nonzero(found))
        return float(found[-k]) if k else np.inf

    def energies(self, least: float) -> np.ndarray:
        """See `WholeTensor`."""
        return variation.energies(self._base, self._tuned, least)

    def changes(self, epsilon: float) -> np.ndarray:
        """See `WholeTensor`."""
        return variation.changes(self._base, self._tuned, epsilon)


def lost_norms(tensor: WholeTensor, rule: Rule) -> tuple[float, ...]:
    """Return Σ|τ| / Σ|kept τ| of each model, 1 where nothing is kept.

    Args:
        tensor: in the base and in all models.
        rule: trims and drops.
    """
    models = len(rule.weights)
    found = np.zeros((2, models))
    for block in tensor.blocks():
        for model, delta in enumerate(block.deltas):
            kept = tensor.combine([delta], rule.of_model(model), block.start)
            found[:, model] += total(delta.abs()), total(kept.abs())
    return tuple(np.divide(found[0], found[1], out=np.ones(models), where=found[1] > 0).tolist())


def total(values: torch.Tensor) -> float:
    """Return the sum of all values; see `sums`."""
    return float(sums(values.reshape(-1), 0))


def sums(values: torch.Tensor, axis: int) -> np.ndarray:
    """Return sums over an axis, on the processor by NumPy: their bits do not depend on the number of threads."""
    return values.numpy().sum(axis) if values.device.type == "cpu" else values.sum(axis).cpu().numpy()


def merge_in_memory(base: torch.Tensor, deltas: Sequence[torch.Tensor], combination: Combination) -> torch.Tensor:
    """Return one merged tensor, float64, by what a rule says is done to its elements."""
    if isinstance(combination, Rule):
        found, _ = reference.combine(None, [delta.double().reshape(-1) for delta in deltas], combination)
        return base.double() + torch.from_numpy(found).view(base.shape)
    (block,) = TensorInMemory(base, deltas).blocks(isinstance(combination, Blockwise) and combination.of_rows)
    if isinstance(combination, Blockwise):
        return combination.combine(block).reshape(base.shape)
    parts = block.models if combination.of_models else block.deltas
    total = torch.zeros_like(block.base) if combination.of_models else block.base
    for coefficient, part in zip(combination.coefficients, parts, strict=True):
        total = total + coefficient * part
    return total.reshape(base.shape)
