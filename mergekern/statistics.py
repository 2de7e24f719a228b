"""The sufficient statistics of a zoo: everything that the metrics need, and no weights.

Measured one tensor at a time; every metric is a function of them.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mergekern.checkpoints import Layer, Zoo
from mergekern.errors import NonFiniteError
from mergekern.kernels.dispatch import Backend
from mergekern.kernels.gram import Gram
from mergekern.kernels.spectrum import Spectrum


class Bases(NamedTuple):
    """Singular vectors of one tensor of all models: (N, m, k), (N, n, k), (N, n, k) float32."""

    left_top: np.ndarray
    right_top: np.ndarray
    right_bottom: np.ndarray


@dataclass(frozen=True)
class SpectrumStatistics:
    """Of one matrix of N models, r = min(m, n), k = min(top_k, r).

    Attributes:
        values: (N, min(spectrum_k, r)) leading singular values, float64, descending.
        rank: (N,) number of singular values above 1e-7·σ₁.
        left_top, right_top, right_bottom: (N, N) squared Frobenius norms of the products of k-dimensional bases.
        k: dimension of the subspaces.
        bases: the singular vectors themselves, kept only in files.
    """

    values: np.ndarray
    rank: np.ndarray
    left_top: np.ndarray
    right_top: np.ndarray
    right_bottom: np.ndarray
    k: int
    bases: Bases | None = None


@dataclass(frozen=True)
class LayerStatistics:
    """Of one tensor of N models.

    Attributes:
        name, shape: of the tensor.
        inner: (N, N) float64 inner products of the task vectors (the Gram matrix).
        squared_distance: (N, N) float64 squared distances between them.
        spectrum: for matrices, where a metric asked for it.
    """

    name: str
    shape: tuple[int, ...]
    inner: np.ndarray
    squared_distance: np.ndarray
    spectrum: SpectrumStatistics | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether singular values and vectors are defined for it."""
        return len(self.shape) == 2

    def without_bases(self) -> LayerStatistics:
        """Return the same without singular vectors, which take N·(m + 2n)·k·4 bytes and no metric reads."""
        if self.spectrum is None:
            return self
        return dataclasses.replace(self, spectrum=dataclasses.replace(self.spectrum, bases=None))

    @property
    def frozen(self) -> np.ndarray:
        """(N,) bool: the models whose tensor equals that of the base."""
        return np.diagonal(self.inner) == 0.0


@dataclass(frozen=True)
class ZooStatistics:
    """Statistics of every tensor of a zoo.

    Attributes:
        models: their names, in the order of every (N, N) matrix here.
        layers: one for each tensor, in file order.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        skipped: tensors left out because the checkpoints do not match in them.
        provenance: versions, backend, dtypes, content hashes.

    >>> import mergekern
    >>> models = {"a": {"w": np.ones((2, 2))}, "b": {"w": np.eye(2)}}
    >>> statistics = mergekern.measure(models, base={"w": np.zeros((2, 2))})
    >>> statistics.layers[0].inner
    array([[4., 2.],
           [2., 2.]])
    """

    models: tuple[str, ...]
    layers: tuple[LayerStatistics, ...]
    top_k: int
    spectrum_k: int
    skipped: tuple[str, ...] = ()
    provenance: dict[str, object] | None = None

    @cached_property
    def inner(self) -> np.ndarray:
        """(N, N) inner products of the whole task vectors: the sum over all tensors."""
        return reduce(np.add, (layer.inner for layer in self.layers))

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(N, N) squared distances between the whole task vectors."""
        return reduce(np.add, (layer.squared_distance for layer in self.layers))

    @property
    def has_spectra(self) -> bool:
        """Whether every matrix has its spectrum, which the subspace metrics need."""
        return all(layer.spectrum is not None for layer in self.layers if layer.is_matrix)

    def only(self, layer: LayerStatistics) -> ZooStatistics:
        """Return the statistics of a zoo of the same models with this one tensor."""
        return ZooStatistics(self.models, (layer,), self.top_k, self.spectrum_k)

    def save(self, path: str | Path) -> None:
        """Write the statistics to a folder; see `mergekern.store`."""
        from mergekern.store import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> ZooStatistics:
        """Read statistics from a folder, checking every block; see `mergekern.store`.

        Raises:
            StatisticsError: missing, damaged or foreign files.
        """
        from mergekern.store import load

        return load(Path(path))


def measure_layer(
    layer: Layer, zoo: Zoo, backend: Backend, pool: ThreadPoolExecutor, threads: int, with_spectrum: bool,
    top_k: int, spectrum_k: int,
) -> LayerStatistics:  # fmt: skip
    """Compute the statistics of one tensor.

    Raises:
        NonFiniteError: a checkpoint holds NaN or infinite values in this tensor.
    """
    grams = (backend.gram(base, tuned, threads) for base, tuned in layer.blocks())
    gram = reduce(lambda a, b: Gram(a.inner + b.inner, a.squared_distance + b.squared_distance), grams)
    if not np.isfinite(gram.inner).all():
        raise _non_finite(layer, zoo)
    spectrum = None
    if with_spectrum and layer.tensor.is_matrix:
        shape = (layer.tensor.shape[0], layer.tensor.shape[1])

        def factorise(model: int) -> Spectrum:
            return backend.spectrum(lambda axis, step: layer.matrix_blocks(model, axis, step), shape, top_k, spectrum_k)

        spectrum = _combine(list(pool.map(factorise, range(len(zoo.models)))), backend, pool)
    return LayerStatistics(layer.tensor.name, layer.tensor.shape, gram.inner, gram.squared_distance, spectrum)


def _combine(spectra: list[Spectrum], backend: Backend, pool: ThreadPoolExecutor) -> SpectrumStatistics:
    bases = Bases(
        np.stack([s.left_top for s in spectra]),
        np.stack([s.right_top for s in spectra]),
        np.stack([s.right_bottom for s in spectra]),
    )
    left_top, right_top, right_bottom = pool.map(backend.overlap, bases)
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
