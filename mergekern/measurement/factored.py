"""Measuring a tensor of which some models hold factors, at the cost of their rank, on the processor.

Models that hold the tensor whole are measured as ever, and take part here with their leading singular vectors; those
that have it as the base has it take part as a zero matrix does, with the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch

from mergekern.checkpoints import FactoredLayer
from mergekern.kernels.gram import Gram, distances_from_inner, wanted_pairs
from mergekern.kernels.low_rank import on_cpu as low_rank
from mergekern.kernels.native import difference
from mergekern.kernels.spectrum import RANK_TOLERANCE, Spectrum, zero_spectrum
from mergekern.kernels.workspace import Workspace
from mergekern.statistics import Bases, LayerStatistics, SpectrumStatistics

# Elements of a float64 block of a whole task matrix that is compared with factors.
BLOCK = 1 << 20
NUMPY_DTYPES = (torch.float64, torch.float32, torch.float16)

_workspace = Workspace()


@dataclass
class FactoredMeasurement:
    """One tensor; `measure` runs on the thread of a pool, after the tasks whose futures it waits for were submitted.

    Attributes:
        layer: the tensor.
        stored: the Gram of the models that hold it whole.
        spectra: of these, where they are wanted and it is a matrix.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        with_spectrum: whether it is a matrix of which spectra are wanted.
        with_bases: whether singular vectors are.
        overlap: the kernel.
        tile_bytes: of singular vectors held for one side of a tile of pairs of models.
        split: see `Measurement.begin`.
    """

    layer: FactoredLayer
    stored: Gram | None
    spectra: list[Future[Spectrum]] | None
    top_k: int
    spectrum_k: int
    with_spectrum: bool
    with_bases: bool
    overlap: Callable[[np.ndarray], np.ndarray]
    tile_bytes: int
    split: int
    _found: dict[int, Spectrum] = field(default_factory=dict)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(m, n): of tensors that are no matrices, n is all but the first size."""
        shape = self.layer.tensor.shape
        return math.prod(shape[:1]), math.prod(shape[1:])

    @property
    def k(self) -> int:
        """Dimension of the subspaces."""
        return min(self.top_k, *self.shape)

    def measure(self) -> LayerStatistics:
        """Return the statistics of the tensor.

        Raises:
            NonFiniteError: factors hold NaN or infinite values.
        """
        layer, models = self.layer, len(self.layer.zoo.models)
        if self.spectra is not None:
            for model, future in zip(layer.whole, self.spectra, strict=True):
                self._found[model] = future.result()
        compared = list(range(models)) if self.with_spectrum else list(layer.factored)
        found = self._triplets(compared).compare(self.k)
        inner, left_top, right_top = (_spread(part, compared, models) for part in found)
        gram = self._gram(inner)
        spectrum = self._spectra(left_top, right_top) if self.with_spectrum else None
        return LayerStatistics(layer.tensor.name, layer.tensor.shape, *gram, spectrum)

    def _triplets(self, models: Sequence[int]) -> low_rank.Triplets:
        ranks = [self._rank(model) for model in models]
        return low_rank.Triplets(lambda i, *sides: self._load(models[i], *sides), ranks, self.shape, self.tile_bytes)

    def _rank(self, model: int) -> int:
        """Return how many vectors a model has: at least the k that overlaps are of, some of them perhaps zeros."""
        factors = min(self.layer.factors(model).left.shape[1], *self.shape) if model in self.layer.factored else 0
        return max(factors, self.k if self.with_spectrum else 1)

    def _factors(self, model: int) -> tuple[np.ndarray, np.ndarray]:
        """Return left (r, m) and right (r, n) of a model in float64, with its scale; the next call overwrites them."""
        left, right, scale = self.layer.factors(model)
        sides = []
        for name, part in (("left", left.T), ("right", right)):
            rows = _workspace.array(name, tuple(part.shape))
            np.copyto(rows, (part if part.dtype in NUMPY_DTYPES else part.float()).numpy())
            sides.append(rows)
        sides[0] *= scale
        if not all(np.isfinite(side).all() for side in sides):
            raise self.layer.non_finite(model)
        return sides[0], sides[1]

    def _kept_factors(self, model: int) -> tuple[np.ndarray, np.ndarray]:
        left, right = self._factors(model)
        return left.copy(), right.copy()

    def _load(self, model: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Write the singular vectors of a model, as rows, and return the values; of factors all that are not zero.

        Other models are here for the overlaps alone, with the leading vectors and zeros as values.
        """
        values = np.zeros(len(left))
        if model in self.layer.factored:
            self._load_factors(model, values, left, right)
            if values[0] > 0:
                if self.with_spectrum and model not in self._found:
                    self._found[model] = self._spectrum(values, left, right)
                return values
        if self.with_spectrum:
            spectrum = self._found.setdefault(model, zero_spectrum(self.shape, self.top_k, self.spectrum_k))
            left[: self.k], right[: self.k] = spectrum.left_top.T, spectrum.right_top.T
        return values

    def _load_factors(self, model: int, values: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
        factors = self._factors(model)
        p = min(len(factors[0]), *self.shape)
        try:
            values[:p] = low_rank.thin_svd(*factors, left[:p], right[:p])
        except np.linalg.LinAlgError:
            raise self.layer.non_finite(model) from None
        left[p:], right[p:] = 0.0, 0.0

    def _spectrum(self, values: np.ndarray, left: np.ndarray, right: np.ndarray) -> Spectrum:
        """Return the spectrum of a product of factors; vectors beyond its rank are zeros, or left out if not wanted."""
        size, k = min(self.shape), self.k
        leading = np.zeros(min(self.spectrum_k, size))
        leading[: len(values)] = values[: len(leading)]
        rank = int((values > RANK_TOLERANCE * values[0]).sum())
        nothing = np.empty((0, 0), dtype=np.float32)
        left_top, right_top = (_columns(side[:k], k) if self.with_bases else nothing for side in (left, right))
        bottom = right[size - k : size] if rank == size else right[:0]
        right_bottom = _columns(bottom, k) if self.with_bases or rank == size else nothing
        return Spectrum(leading, rank, left_top, right_top, right_bottom)

    def _spectra(self, left_top: np.ndarray, right_top: np.ndarray) -> SpectrumStatistics:
        spectra = [self._found[model] for model in range(len(self.layer.zoo.models))]
        # The others have no bottom: no metric reads their overlaps.
        with_bottom = [i for i, s in enumerate(spectra) if s.rank in (0, min(self.shape))]
        right_bottom = np.zeros_like(right_top)
        if with_bottom:
            overlaps = self.overlap(np.stack([spectra[i].right_bottom for i in with_bottom]))
            right_bottom = _spread(overlaps, with_bottom, len(spectra))
        bases = None
        if self.with_bases:
            bases = Bases(*(np.stack([getattr(s, side) for s in spectra]) for side in Bases._fields))
        values, ranks = np.stack([s.values for s in spectra]), np.array([s.rank for s in spectra])
        return SpectrumStatistics(values, ranks, left_top, right_top, right_bottom, self.k, bases)

    def _gram(self, inner: np.ndarray) -> Gram:
        """Return the Gram of all models, from the inner products of factors."""
        layer, whole, factored = self.layer, list(self.layer.whole), list(self.layer.factored)
        if self.stored is not None:
            inner[np.ix_(whole, whole)] = self.stored.inner
            mixed = self._triplets(factored).inner_with([partial(self._deltas, i) for i in range(len(whole))])
            inner[np.ix_(whole, factored)] = mixed
            inner[np.ix_(factored, whole)] = mixed.T
        inner[~wanted_pairs(len(inner), self.split)] = 0.0
        distance, spoilt = distances_from_inner(inner, self.split)
        if self.stored is not None:
            distance[np.ix_(whole, whole)] = self.stored.squared_distance
        for pair in spoilt:
            products = [model for model in pair if model in layer.factored]
            if len(products) == 2:
                first = self._kept_factors(pair[0])
                distance[pair] = low_rank.squared_distance(first, self._factors(pair[1]))
            elif products:
                (other,) = set(pair) - set(products)
                distance[pair] = self._squared_distance_to_whole(products[0], whole.index(other))
            distance[pair[::-1]] = distance[pair]
        return Gram(inner, distance)

    def _deltas(self, stored: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, rows) of the task matrix of one of the models that hold the tensor whole."""
        assert self.layer.stored is not None
        for start, base, tuned in self.layer.stored.matrix_blocks(stored, 0, max(1, BLOCK // self.shape[1])):
            delta = _workspace.array("delta", tuple(tuned.shape))
            difference(base, tuned, delta)
            yield start, delta

    def _squared_distance_to_whole(self, product: int, stored: int) -> float:
        left, right = self._kept_factors(product)
        total = 0.0
        for start, delta in self._deltas(stored):
            total += np.square(delta - left[:, start : start + len(delta)].T @ right).sum()
        return float(total)


def _spread(part: np.ndarray, models: Sequence[int], count: int) -> np.ndarray:
    """Return the matrix of all models that has the part of some of them, and zeros."""
    whole = np.zeros((count, count))
    whole[np.ix_(models, models)] = part
    return whole


def _columns(rows: np.ndarray, k: int) -> np.ndarray:
    """Return vectors as k float32 columns, zeros where there are fewer."""
    out = np.zeros((rows.shape[1], k), dtype=np.float32)
    out[:, : len(rows)] = rows.T
    return out
