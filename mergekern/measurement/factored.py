"""Measuring a tensor of which some models hold factors, on the CPU, at the cost of their rank.

Models that hold the tensor whole are measured as in other layers. The task matrix of the rest is zero: they leave the
tensor as it is in the base.
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
from mergekern.kernels.gram import Gram, distances_from_inner, split_among, wanted_pairs
from mergekern.kernels.low_rank import on_cpu as low_rank
from mergekern.kernels.native import difference
from mergekern.kernels.spectrum import RANK_TOLERANCE, Spectrum, zero_spectrum
from mergekern.kernels.workspace import Workspace
from mergekern.statistics import LayerStatistics, SpectrumStatistics

# Elements of a float64 block of a whole task matrix that is compared with factors: 8 MiB.
BLOCK = 1 << 20
# Dtypes of torch that NumPy has too.
NUMPY_DTYPES = (torch.float64, torch.float32, torch.float16)

_workspace = Workspace()


@dataclass
class FactoredMeasurement:
    """The measurement of one tensor. `measure` runs on a thread of the pool, after the futures it needs were submitted.

    Attributes:
        layer: the tensor.
        stored: Gram of the models that hold it whole; None if there are none.
        spectra: spectra of those models; None where they are not wanted.
        top_k, spectrum_k: dimension of the subspaces, and number of singular values that are kept.
        with_spectrum: whether spectra are wanted, and the tensor is a matrix.
        overlaps: turns the spectra of all models into their statistics.
        tile_bytes: bytes of singular vectors held for one side of a tile of pairs of models.
        split: see `Measurement.begin`.
    """

    layer: FactoredLayer
    stored: Gram | None
    spectra: list[Future[Spectrum]] | None
    top_k: int
    spectrum_k: int
    with_spectrum: bool
    overlaps: Callable[[list[Spectrum]], SpectrumStatistics]
    tile_bytes: int
    split: int
    _found: dict[int, Spectrum] = field(default_factory=dict)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(m, n); n is the product of all sizes but the first where the tensor is not a matrix."""
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
        factored = self._triplets()
        gram = self._gram(_spread(factored.inner(split_among(layer.factored, self.split)), layer.factored, models))
        spectrum = None
        if self.with_spectrum:
            zero = zero_spectrum(self.shape, self.top_k, self.spectrum_k)
            spectrum = self.overlaps([self._found.get(model, zero) for model in range(models)])
        return LayerStatistics(layer.tensor.name, layer.tensor.shape, *gram, spectrum)

    def _triplets(self) -> low_rank.Triplets:
        """Return the singular triplets of the models that hold factors."""
        models = self.layer.factored
        ranks = [min(self.layer.factors(model).left.shape[1], *self.shape) for model in models]
        return low_rank.Triplets(lambda i, *sides: self._load(models[i], *sides), ranks, self.shape, self.tile_bytes)

    def _factors(self, model: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scale·left (r, m) and right (r, n) of a model in float64; the next call overwrites them."""
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
        """Write the singular vectors of a model that holds factors, as rows, and return the singular values."""
        try:
            values = low_rank.thin_svd(*self._factors(model), left, right)
        except np.linalg.LinAlgError:
            raise self.layer.non_finite(model) from None
        if self.with_spectrum and model not in self._found and values[0] > 0:
            self._found[model] = self._spectrum(values, left, right)
        return values

    def _spectrum(self, values: np.ndarray, left: np.ndarray, right: np.ndarray) -> Spectrum:
        """Return the spectrum of a product of factors. Vectors beyond its rank are zeros, the bottom included."""
        size, k = min(self.shape), self.k
        leading = np.zeros(min(self.spectrum_k, size))
        leading[: len(values)] = values[: len(leading)]
        rank = int((values > RANK_TOLERANCE * values[0]).sum())
        bottom = right[size - k : size] if rank == size else right[:0]
        return Spectrum(leading, rank, _columns(left[:k], k), _columns(right[:k], k), _columns(bottom, k))

    def _gram(self, inner: np.ndarray) -> Gram:
        """Return the Gram of all models, from the inner products of factors."""
        layer, whole, factored = self.layer, list(self.layer.whole), list(self.layer.factored)
        if self.stored is not None:
            inner[np.ix_(whole, whole)] = self.stored.inner
            wanted = wanted_pairs(len(inner), self.split)[np.ix_(whole, factored)]
            mixed = self._triplets().inner_with([partial(self._deltas, i) for i in range(len(whole))], wanted)
            inner[np.ix_(whole, factored)] = mixed
            inner[np.ix_(factored, whole)] = mixed.T
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
        """Yield (start, rows) of the task matrix of a model that holds the tensor whole."""
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
    """Return the (count, count) matrix with the part at the rows and columns of `models`, zeros elsewhere."""
    whole = np.zeros((count, count))
    whole[np.ix_(models, models)] = part
    return whole


def _columns(rows: np.ndarray, k: int) -> np.ndarray:
    """Return vectors (rows) as k float32 columns, the missing ones zeros."""
    out = np.zeros((k, rows.shape[1]), dtype=np.float32)
    out[: len(rows)] = rows
    return out.T
