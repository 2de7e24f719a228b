"""Measuring on the CPU: the Gram of one tensor at a time, its factorisations in a pool of threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from mergekern.checkpoints import FactoredLayer, Layer, Zoo, ZooTensor
from mergekern.checkpoints.stream import DEFAULT_MAX_MEMORY, non_finite
from mergekern.kernels.dispatch import Backend
from mergekern.kernels.gram import Gram, split_among
from mergekern.kernels.randomized_spectrum import from_direct
from mergekern.kernels.spectrum import Spectrum, zero_spectrum
from mergekern.measurement import Measurement, Pending
from mergekern.measurement.factored import FactoredMeasurement
from mergekern.measurement.spectra import spectrum_statistics
from mergekern.statistics import LayerStatistics, SpectrumStatistics

# Layers in flight: enough that the small tensors between two matrices do not leave the pool without work.
LAYERS_AHEAD = 16


class BegunLayer(NamedTuple):
    """A layer whose Gram is known and whose factorisations are under way; None where they are not wanted."""

    tensor: ZooTensor
    gram: Gram
    spectra: list[Future[Spectrum]] | None


@dataclass
class CpuMeasurement(Measurement):
    """The measurement by the kernels of the CPU, layer by layer."""

    backend: Backend

    name = property(lambda self: self.backend.name)
    in_batches = property(lambda self: False)
    layers_ahead = property(lambda self: LAYERS_AHEAD)

    def provenance(self) -> dict[str, object]:
        """Return "device" and "backend", and "svd" where it is not exact."""
        svd = {} if self.svd_tolerance is None else {"svd": {"kind": "randomized", "tolerance": self.svd_tolerance}}
        return {"device": "cpu", "backend": self.backend.name, **svd, **self.said_of_extras}

    def begin(self, layer: Layer | FactoredLayer, zoo: Zoo, pool: ThreadPoolExecutor, *, split: int = 0) -> Pending:
        """Measure the Gram of one tensor, and submit its factorisations to the pool, one task a model.

        A layer with factors is one task as a whole.
        """
        if isinstance(layer, FactoredLayer):
            pending: Pending = pool.submit(self._factored(layer, pool, split).measure).result
        else:
            pending = partial(self.finished, self._begin_stored(layer, zoo, pool, split))
        return self.with_coordinates(pending, layer, pool, split)

    def _factored(self, layer: FactoredLayer, pool: ThreadPoolExecutor, split: int) -> FactoredMeasurement:
        stored = None
        if layer.stored is not None:
            stored = self._begin_stored(layer.stored, layer.stored_zoo, pool, split_among(layer.whole, split))
        memory = DEFAULT_MAX_MEMORY if self.max_memory is None else self.max_memory
        return FactoredMeasurement(
            layer,
            None if stored is None else stored.gram,
            None if stored is None else stored.spectra,
            self.top_k,
            self.spectrum_k,
            self.with_spectrum and layer.tensor.is_matrix and not split,
            self.overlaps,
            memory // (2 * self.threads),
            split,
        )

    def _begin_stored(self, layer: Layer, zoo: Zoo, pool: ThreadPoolExecutor, split: int) -> BegunLayer:
        gram = self.backend.gram(layer.blocks, self.threads, split)
        if not np.isfinite(gram.inner).all():
            if not all(layer.equal_to_base()):
                raise non_finite(layer, zoo)
            return self.unchanged(layer, split)
        if split or not (self.with_spectrum and layer.tensor.is_matrix):
            return BegunLayer(layer.tensor, gram, None)
        spectra = [pool.submit(self.factorise, layer, model) for model in range(len(zoo.models))]
        return BegunLayer(layer.tensor, gram, spectra)

    def unchanged(self, layer: Layer, split: int) -> BegunLayer:
        """Return a layer that every model has as the base, infinities and NaN included: a causal mask, for example."""
        models = len(layer.zoo.models)
        gram = Gram(np.zeros((models, models)), np.zeros((models, models)))
        if split or not (self.with_spectrum and layer.tensor.is_matrix):
            return BegunLayer(layer.tensor, gram, None)
        shape = (layer.tensor.shape[0], layer.tensor.shape[1])
        zero: Future[Spectrum] = Future()
        zero.set_result(zero_spectrum(shape, self.top_k, self.spectrum_k))
        return BegunLayer(layer.tensor, gram, [zero] * models)

    def factorise(self, layer: Layer, model: int) -> Spectrum:
        """Return the spectrum of the task matrix of one model."""
        shape = (layer.tensor.shape[0], layer.tensor.shape[1])
        blocks = partial(layer.matrix_blocks, model)
        if self.svd_tolerance is None:
            return self.backend.spectrum(blocks, shape, self.top_k, self.spectrum_k)
        name, sizes = layer.tensor.name, (self.top_k, self.spectrum_k)
        return self.backend.randomized_spectrum(blocks, shape, name, *sizes, self.svd_tolerance)

    def finished(self, begun: BegunLayer) -> LayerStatistics:
        """Wait for the factorisations, and return the statistics of the tensor."""
        spectra = None if begun.spectra is None else self.overlaps([future.result() for future in begun.spectra])
        inner, squared_distance = begun.gram
        return LayerStatistics(begun.tensor.name, begun.tensor.shape, inner, squared_distance, spectra)

    def overlaps(self, spectra: list[Spectrum]) -> SpectrumStatistics:
        """Return the statistics of the spectra of one tensor of all models."""
        if self.svd_tolerance is not None:
            # Unchanged tensors and products of factors were not factorised by iteration.
            spectra = [s if s.estimates is not None else from_direct(s, self.spectrum_k) for s in spectra]
        interference = self.backend.interference if "interference" in self.extras else None
        return spectrum_statistics(spectra, self.backend.overlap, self.with_bases, interference)
