"""Sketches: a few thousand numbers for each task vector, by which any two models are compared without weights.

The sketch of a model is a count sketch of its whole task vector (`kernels.count_sketch`), with its exact length.
The metrics of whole task vectors are functions of lengths and of one inner product a pair; that is estimated from the
sketches of all pairs at once, in one product of matrices, with a known standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mergekern._internal.files import check_output, not_written
from mergekern._internal.locks import locked_file
from mergekern.errors import MismatchError, StatisticsError
from mergekern.kernels.gram import distances_from_inner
from mergekern.metrics import CATALOGUE
from mergekern.statistics import LayerStatistics, ZooStatistics
from mergekern.statistics.blocks import read_block, write_block
from mergekern.statistics.contents import check_arrays
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
# Metrics of whole task vectors; those of single tensors would need a sketch of each.
ESTIMATED = tuple(
    name for name, metric in CATALOGUE.items() if metric.needs == "inner products" and not name.startswith("layerwise")
)
_ROUNDS = 30  # of Newton's method, which takes five


@dataclass(frozen=True)
class Sketches:
    """Sketches of the task vectors of N models.

    Attributes:
        models: their names.
        values: (N, S) float64, a sketch in each row.
        squares: (N,) float64, exact squared lengths of the task vectors.
        random_state: decides the random map.
        base: hash of the base; None where only adapters were seen, without it.
        notes: what of the models takes no part.
    """

    models: tuple[str, ...]
    values: np.ndarray
    squares: np.ndarray
    random_state: int
    base: str | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Sketches({len(self.models)} models, {self.values.shape[1]} numbers each)"

    def joined(self, other: Sketches) -> Sketches:
        """Return the sketches of the models of both.

        Raises:
            MismatchError: another size, random_state or base, or models of one name.
        """
        ours, theirs = self.values.shape[1], other.values.shape[1]
        for what, first, second in (
            ("size", ours, theirs),
            ("random_state", self.random_state, other.random_state),
            ("base", self.base or other.base, other.base or self.base),
        ):  # fmt: skip
            if first != second:
                raise MismatchError(
                    f"sketches of {what} {first} and of {what} {second} cannot be compared; make both alike"
                )
        if twice := sorted({*self.models} & {*other.models}):
            raise MismatchError(f"sketches of these models are there already: {', '.join(twice)}; name them apart")
        return Sketches(
            (*self.models, *other.models),
            np.concatenate([self.values, other.values]),
            np.concatenate([self.squares, other.squares]),
            self.random_state,
            self.base or other.base,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def table(self) -> MetricTable:
        """Return the estimates of the metrics of whole task vectors, for all pairs."""
        table = MetricTable.from_statistics(self._statistics(*self._estimate()), ESTIMATED)
        error = 1 / math.sqrt(self.values.shape[1])
        table.notes += self.notes
        table.notes.append(f"estimated from {self!r}: the standard error of a cosine is {error:.2g} at most")
        return table

    def standard_errors(self) -> pd.DataFrame:
        """Return the standard errors of the estimates: a row for each pair, a column for each metric.

        The standard error of an inner product is carried through each metric: the value is the larger of the changes
        that one standard error more, or less, makes.
        """
        inner, distance, error = self._estimate_with_errors()

        def values(errors: float) -> pd.DataFrame:
            moved = self._statistics(inner + errors * error, np.maximum(distance - 2 * errors * error, 0.0))
            return MetricTable.from_statistics(moved, ESTIMATED).to_pandas()

        middle = values(0.0)
        changes = [(values(errors) - middle).abs() for errors in (-1.0, 1.0)]
        return changes[0].where(changes[0] >= changes[1], changes[1])

    def save(self, path: str | Path) -> None:
        """Write to a file.

        Raises:
            OutputError: it cannot be written.
        """
        description = {
            "format": FORMAT, "models": self.models, "random_state": self.random_state, "base": self.base,
            "notes": self.notes,
        }  # fmt: skip
        check_output(Path(path))
        try:
            write_block(Path(path), {"values": self.values, "squares": self.squares}, description)
        except OSError as error:
            raise not_written(Path(path), error, "give another place") from error

    def add_to(self, path: str | Path) -> Sketches:
        """Write to a file beside the sketches that are in it, if there are any, and return all of them.

        Other processes may add to the file at the same time.

        Raises:
            MismatchError: as for `joined`; the file stays as it is.
            StatisticsError: the file is damaged or something else.
            OutputError: it cannot be written, or another process does not let go of it.
        """
        with locked_file(Path(path)):
            found = Sketches.load(path).joined(self) if Path(path).exists() else self
            found.save(path)
        return found

    @staticmethod
    def load(path: str | Path) -> Sketches:
        """Read what `save` wrote.

        Raises:
            StatisticsError: the file is missing, damaged or something else.
        """
        from mergekern._internal.documents import checked
        from mergekern.kernels.count_sketch.on_cpu import LEAST
        from mergekern.sketches.schemas import SketchDescription

        arrays, description = read_block(Path(path))
        try:
            if (version := description.get("format")) != FORMAT:
                raise ValueError(f"format {version}, but this version reads {FORMAT}")
            said = checked(SketchDescription, description)
            models = len(said.models)
            size = arrays["values"].shape[-1] if "values" in arrays else 0
            check_arrays(arrays, {"values": (models, size), "squares": (models,)})
            if size & (size - 1) or size < LEAST:
                raise ValueError(f"sketches of {size} numbers; a power of two, {LEAST} at least, is needed")
            if (arrays["squares"] < 0).any():
                raise ValueError("a squared length is negative")
        except ValueError as error:
            raise StatisticsError(f"{path}: no sketches ({error})") from error
        notes = tuple(said.notes)
        return Sketches(tuple(said.models), arrays["values"], arrays["squares"], said.random_state, said.base, notes)

    def _statistics(self, inner: np.ndarray, distance: np.ndarray) -> ZooStatistics:
        whole = LayerStatistics("all tensors", (), inner, distance)
        return ZooStatistics(
            self.models, (whole,), top_k=1, spectrum_k=1, provenance={"sketch_random_state": self.random_state}
        )

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
        unit = self.values / np.where(length > 0, length, 1.0)[:, None]
        product = unit @ unit.T
        square = np.diagonal(product)
        cosine = _most_likely_cosine(product, square[:, None] + square[None, :])
        np.fill_diagonal(cosine, 1.0)
        size = np.outer(length, length)
        inner = cosine * size
        np.fill_diagonal(inner, self.squares)
        distance, spoilt = distances_from_inner(inner)
        for i, j in spoilt:
            distance[i, j] = distance[j, i] = np.square(self.values[i] - self.values[j]).sum()
        error = size * (1 - cosine**2) / np.sqrt((1 + cosine**2) * self.values.shape[1])
        if spoilt:
            i, j = np.array(spoilt).T
            error[i, j] = error[j, i] = distance[i, j] / math.sqrt(2 * self.values.shape[1])
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
