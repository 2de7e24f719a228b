"""From one tensor of all models to its statistics, by the kernels of a backend."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mergekern.checkpoints import Layer, Zoo, ZooTensor
from mergekern.errors import NonFiniteError
from mergekern.kernels.dispatch import Backend
from mergekern.kernels.gram import Gram
from mergekern.kernels.spectrum import Spectrum
from mergekern.statistics import Bases, LayerStatistics, SpectrumStatistics


class Begun(NamedTuple):
    """A layer of which the Gram is known and the factorisations are on their way (None where they are not wanted)."""

    tensor: ZooTensor
    gram: Gram
    spectra: list[Future[Spectrum]] | None


@dataclass(frozen=True)
class Measurement:
    """What is measured, and with what.

    Attributes:
        backend: the kernels.
        with_spectrum: whether matrices are factorised.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        threads: that a kernel may use.
    """

    backend: Backend
    with_spectrum: bool
    top_k: int
    spectrum_k: int
    threads: int

    def begin(self, layer: Layer, zoo: Zoo, pool: ThreadPoolExecutor) -> Begun:
        """Measure the Gram of one tensor, and submit its factorisations to a pool, one task a model.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values in this tensor.
        """
        models = len(zoo.models)
        gram = Gram(np.zeros((models, models)), np.zeros((models, models)))
        for base, tuned in layer.blocks():
            part = self.backend.gram(base, tuned, self.threads)
            gram = Gram(gram.inner + part.inner, gram.squared_distance + part.squared_distance)
            del base, tuned
        if not np.isfinite(gram.inner).all():
            raise _non_finite(layer, zoo)
        if not (self.with_spectrum and layer.tensor.is_matrix):
            return Begun(layer.tensor, gram, None)
        shape = (layer.tensor.shape[0], layer.tensor.shape[1])

        def factorise(model: int) -> Spectrum:
            return self.backend.spectrum(
                lambda axis, step: layer.matrix_blocks(model, axis, step), shape, self.top_k, self.spectrum_k
            )

        return Begun(layer.tensor, gram, [pool.submit(factorise, model) for model in range(models)])

    def finish(self, begun: Begun) -> LayerStatistics:
        """Wait for the factorisations, and return the statistics of the tensor, with the singular vectors."""
        spectra = None if begun.spectra is None else self._overlaps([future.result() for future in begun.spectra])
        inner, squared_distance = begun.gram
        return LayerStatistics(begun.tensor.name, begun.tensor.shape, inner, squared_distance, spectra)

    def _overlaps(self, spectra: list[Spectrum]) -> SpectrumStatistics:
        bases = Bases(
            np.stack([s.left_top for s in spectra]),
            np.stack([s.right_top for s in spectra]),
            np.stack([s.right_bottom for s in spectra]),
        )
        left_top, right_top, right_bottom = map(self.backend.overlap, bases)
        return SpectrumStatistics(
            np.stack([s.values for s in spectra]),
            np.array([s.rank for s in spectra]),
            left_top,
            right_top,
            right_bottom,
            k=bases.left_top.shape[2],
            bases=bases,
        )


def _non_finite(layer: Layer, zoo: Zoo) -> NonFiniteError:
    counts = [0] * len(zoo.checkpoints)
    for base, tuned in layer.blocks():
        for index, values in enumerate((base, *tuned)):
            counts[index] += int((~values.double().isfinite()).sum())
    found = "; ".join(f"{count} in {c.name!r}" for c, count in zip(zoo.checkpoints, counts, strict=True) if count)
    return NonFiniteError(
        f"tensor {layer.tensor.name!r} holds NaN or infinite values: {found or 'its task vectors overflow float64'}. "
        "Repair or leave out those checkpoints."
    )
