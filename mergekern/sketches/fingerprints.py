"""Fingerprints: a few thousand numbers of each task vector, by which any two models ever seen are compared.

The fingerprint of a model is a count sketch of its whole task vector (`kernels.count_sketch`), with its exact length.
The metrics of whole task vectors are functions of lengths and of one inner product a pair; that is estimated from the
sketches of all pairs at once, in one product of matrices, with a known standard error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from mergekern.checkpoints import FactoredLayer, Layer, LayerStream, Zoo, open_zoo
from mergekern.checkpoints.adapter import ImpliedBase
from mergekern.checkpoints.formats import IO
from mergekern.checkpoints.stream import non_finite
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import MismatchError, OptionError, StatisticsError
from mergekern.kernels.count_sketch.on_cpu import LEAST, CountSketch
from mergekern.kernels.gram import distances_from_inner
from mergekern.metrics import CATALOGUE
from mergekern.progress import Progress
from mergekern.statistics import LayerStatistics, ZooStatistics
from mergekern.statistics.blocks import read_block, write_block
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
# Metrics of whole task vectors; those of single tensors would need a sketch of each.
ESTIMATED = tuple(
    name for name, metric in CATALOGUE.items() if metric.needs == "inner products" and not name.startswith("layerwise")
)
# Elements of a task vector that are sketched at a time.
_BLOCK = 1 << 20
_ROUNDS = 30  # of Newton's method, which takes five


def fingerprint(
    checkpoints: Any,
    base: Any = None,
    *,
    size: int = 4096,
    seed: int = 0,
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
) -> Fingerprints:
    """Compute the fingerprints of models fine-tuned from one base, reading the weights once.

    Args:
        checkpoints, base, max_memory, on_mismatch, progress, io: as for `compute_all`; one model is enough.
        size: numbers of one fingerprint, a power of two, 64 at least. The standard error of a cosine c is
            (1 − c²)/√((1 + c²)·size): 0.016 at most with 4096.
        seed: of the random map. Only fingerprints of one size and seed can be compared.

    Raises:
        OptionError, CheckpointError, MismatchError, NonFiniteError: as for `compute_all`.

    >>> models = {"a": {"w": np.ones(3)}, "b": {"w": np.array([1.0, 0.0, 0.0])}}
    >>> found = fingerprint(models, {"w": np.zeros(3)})
    >>> found
    Fingerprints(2 models, 4096 numbers each)
    >>> found.table().to_pandas()["task_vector_magnitude_ratio"].round(3).tolist()
    [0.577]
    """
    if not (isinstance(size, int) and size >= LEAST and size & (size - 1) == 0):
        raise OptionError(f"size must be a power of two, {LEAST} at least, not {size!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise OptionError(f"seed must be an integer, not {seed!r}")
    zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, needs_base=False, least=1)
    sketches, squares = np.zeros((len(zoo.models), size)), np.zeros(len(zoo.models))
    knows_base = not isinstance(zoo.base, ImpliedBase)
    digests: dict[str, str] = {}
    sizes = [zoo.nbytes(tensor) for tensor in zoo.tensors]
    began = time.perf_counter()

    def report(name: str, done: int) -> None:
        if progress is not None:
            progress(Progress(name, done, len(sizes), sum(sizes[:done]), sum(sizes), time.perf_counter() - began))

    for done, layer in enumerate(LayerStream(zoo, max_memory).with_factors()):
        report(layer.tensor.name, done)
        sketch = CountSketch(size, seed, layer.tensor.name)
        for models, start, deltas in _deltas(layer, len(zoo.models)):
            part = sketches[models]
            sketch.add(part, start, deltas)
            sketches[models] = part
            squares[models] += np.einsum("nd,nd->n", deltas, deltas)
        if not np.isfinite(squares).all():
            raise _non_finite(layer, zoo, squares)
        if knows_base:
            digests[layer.tensor.name] = _base_hash(zoo, layer)
        layer.release()
    report("", len(sizes))
    of_base = xxhash.xxh3_128_hexdigest(repr(sorted(digests.items())).encode()) if knows_base else None
    return Fingerprints(zoo.model_names, sketches, squares, seed, of_base)


@dataclass(frozen=True)
class Fingerprints:
    """Of N models.

    Attributes:
        models: their names.
        sketches: (N, S) float64.
        squares: (N,) float64, exact squared lengths of the task vectors.
        seed: of the map.
        base: hash of the base; None where only adapters were seen, without it.
    """

    models: tuple[str, ...]
    sketches: np.ndarray
    squares: np.ndarray
    seed: int
    base: str | None

    def __repr__(self) -> str:
        return f"Fingerprints({len(self.models)} models, {self.sketches.shape[1]} numbers each)"

    def joined(self, other: Fingerprints) -> Fingerprints:
        """Return the fingerprints of the models of both.

        Raises:
            MismatchError: another size, seed or base, or models of one name.
        """
        ours, theirs = self.sketches.shape[1], other.sketches.shape[1]
        for what, first, second in (
            ("size", ours, theirs), ("seed", self.seed, other.seed),
            ("base", self.base or other.base, other.base or self.base),
        ):  # fmt: skip
            if first != second:
                raise MismatchError(
                    f"fingerprints of {what} {first} and of {what} {second} cannot be compared; make both alike"
                )
        if twice := sorted({*self.models} & {*other.models}):
            raise MismatchError(f"fingerprints of these models are there already: {', '.join(twice)}; name them apart")
        return Fingerprints(
            (*self.models, *other.models),
            np.concatenate([self.sketches, other.sketches]),
            np.concatenate([self.squares, other.squares]),
            self.seed,
            self.base or other.base,
        )

    def table(self) -> MetricTable:
        """Return the estimates of the metrics of whole task vectors, for all pairs."""
        table = MetricTable.from_statistics(self._statistics(*self._estimate()), ESTIMATED)
        error = 1 / math.sqrt(self.sketches.shape[1])
        table.notes.append(f"estimated from {self!r}: the standard error of a cosine is {error:.2g} at most")
        return table

    def standard_errors(self) -> pd.DataFrame:
        """Return the standard errors of the estimates: a row for each pair, a column for each metric.

        That of an inner product, carried through each metric: the most that one standard error more or less changes it.
        """
        inner, distance, error = self._estimate_with_errors()

        def values(errors: float) -> pd.DataFrame:
            moved = self._statistics(inner + errors * error, np.maximum(distance - 2 * errors * error, 0.0))
            return MetricTable.from_statistics(moved, ESTIMATED).to_pandas()

        middle = values(0.0)
        changes = [(values(errors) - middle).abs() for errors in (-1.0, 1.0)]
        return changes[0].where(changes[0] >= changes[1], changes[1])

    def save(self, path: str | Path) -> None:
        """Write to a file."""
        description = {"format": FORMAT, "models": self.models, "seed": self.seed, "base": self.base}
        write_block(Path(path), {"sketches": self.sketches, "squares": self.squares}, description)

    @staticmethod
    def load(path: str | Path) -> Fingerprints:
        """Read what `save` wrote.

        Raises:
            StatisticsError: the file is missing, damaged or something else.
        """
        arrays, description = read_block(Path(path))
        try:
            if description["format"] != FORMAT:
                raise ValueError(f"format {description['format']}, but this version reads {FORMAT}")
            models = tuple(description["models"])
            return Fingerprints(models, arrays["sketches"], arrays["squares"], description["seed"], description["base"])
        except (KeyError, TypeError, ValueError) as error:
            raise StatisticsError(f"{path}: no fingerprints ({type(error).__name__}: {error})") from error

    def _statistics(self, inner: np.ndarray, distance: np.ndarray) -> ZooStatistics:
        whole = LayerStatistics("all tensors", (), inner, distance)
        return ZooStatistics(self.models, (whole,), top_k=1, spectrum_k=1, provenance={"fingerprint_seed": self.seed})

    def _estimate(self) -> tuple[np.ndarray, np.ndarray]:
        inner, distance, _ = self._estimate_with_errors()
        return inner, distance

    def _estimate_with_errors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inner products and squared distances, and the standard error of the former, (N, N) each.

        The most likely inner product, given both sketches and the exact lengths: the root of a cubic (Li, Hastie and
        Church, COLT 2006). Its variance for unit vectors, (1 − c²)²/((1 + c²)·S), is below that of the product of the
        sketches, (1 + c²)/S, and vanishes with the distance.
        """
        length = np.sqrt(self.squares)
        unit = self.sketches / np.where(length > 0, length, 1.0)[:, None]
        product = unit @ unit.T
        square = np.diagonal(product)
        cosine = _most_likely_cosine(product, square[:, None] + square[None, :])
        np.fill_diagonal(cosine, 1.0)
        size = np.outer(length, length)
        inner = cosine * size
        np.fill_diagonal(inner, self.squares)
        distance, spoilt = distances_from_inner(inner)
        for i, j in spoilt:
            distance[i, j] = distance[j, i] = np.square(self.sketches[i] - self.sketches[j]).sum()
        error = size * (1 - cosine**2) / np.sqrt((1 + cosine**2) * self.sketches.shape[1])
        if spoilt:
            i, j = np.array(spoilt).T
            error[i, j] = error[j, i] = distance[i, j] / math.sqrt(2 * self.sketches.shape[1])
        return inner, distance, error


def _most_likely_cosine(product: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return the root of x³ − p·x² + (s − 1)·x − p in [−1, 1]; p of sketches of unit vectors, s of their squares."""
    x = np.clip(product, -1.0, 1.0)
    for _ in range(_ROUNDS):
        value = ((x - product) * x + squares - 1.0) * x - product
        slope = np.maximum((3.0 * x - 2.0 * product) * x + squares - 1.0, 1e-3)
        step = value / slope
        x = np.clip(x - step, -1.0, 1.0)
        if np.abs(step).max(initial=0.0) < 1e-15:
            break
    return x


def _deltas(layer: Layer | FactoredLayer, models: int) -> Iterator[tuple[list[int], int, np.ndarray]]:
    """Yield (models, start, (len(models), L) float64) of the task vectors of one tensor, flat; zeros are left out."""
    stored = layer.stored if isinstance(layer, FactoredLayer) else layer
    whole = list(layer.whole if isinstance(layer, FactoredLayer) else range(models))
    if stored is not None:
        start = 0
        for base, tuned in stored.blocks():
            for first in range(0, len(base), step := max(1, _BLOCK // len(tuned))):
                part = slice(first, first + step)
                deltas = np.stack([values[part].double().numpy() for values in tuned]) - base[part].double().numpy()
                yield whole, start + first, deltas
            start += len(base)
            del base, tuned
    if isinstance(layer, FactoredLayer):
        for model in layer.factored:
            left, right, scale = layer.factors(model)
            wide, step = right.double(), max(1, _BLOCK // right.shape[1])
            for row in range(0, left.shape[0], step):
                rows = (left[row : row + step].double() @ wide).mul_(scale)
                yield [model], row * right.shape[1], rows.reshape(1, -1).numpy()


def _non_finite(layer: Layer | FactoredLayer, zoo: Zoo, squares: np.ndarray) -> Exception:
    if isinstance(layer, Layer):
        return non_finite(layer, zoo)
    bad = next(model for model in np.flatnonzero(~np.isfinite(squares)))
    if bad in layer.factored:
        return layer.non_finite(int(bad))
    assert layer.stored is not None
    return non_finite(layer.stored, layer.stored_zoo)


def _base_hash(zoo: Zoo, layer: Layer | FactoredLayer) -> str:
    """Return the hash of one tensor of the base."""
    name = layer.tensor.names[0]
    count = zoo.base.tensors[name].count
    digest = xxhash.xxh3_128(str(layer.tensor.shape).encode())
    for start in range(0, count, _BLOCK):
        # In float64, so that the base in another dtype that holds the same values is the same base.
        digest.update(zoo.base.read_range(name, start, min(start + _BLOCK, count)).double().numpy())
    return digest.hexdigest()
