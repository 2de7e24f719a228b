"""Measuring: weights in, statistics out.

`Measurement` turns one tensor of all models into its statistics. `on_cpu` does so layer by layer, `on_device` on a GPU
in batches, `factored` for tensors of which some models hold factors. `spectra` turns the spectra of all models into
statistics, and `coordinates` measures single coordinates. `layer_pass` takes all tensors of a zoo through a
measurement, and `tiles` says which models are measured together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from mergekern.checkpoints import FactoredLayer, Layer, Zoo
from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.dispatch import Backend
from mergekern.measurement.coordinates import coordinate_statistics
from mergekern.statistics import LayerStatistics
from mergekern.statistics.coordinates import CoordinateStatistics

# What a layer is while it is measured: waits for the kernels, and returns the statistics.
Pending = Callable[[], LayerStatistics]


@dataclass
class Measurement(ABC):
    """The way from one tensor of all models to its statistics, by the kernels of one backend.

    One thread begins layers in file order, and another finishes them in the same order. At most `layers_ahead` layers
    are begun and not yet finished.

    Attributes:
        with_spectrum: whether matrices are factorised.
        top_k, spectrum_k: dimension of the subspaces, and number of singular values that are kept.
        threads: number of CPU threads that may be used.
        max_memory: bytes of weights held at a time; None for the default.
        backend: the kernels.
        with_bases: whether singular vectors are kept; they take 0.3 GB for 20 models of ViT-B/16.
        svd_tolerance: estimated error at which a randomised factorisation ends; None for exact factorisations.
        extras: what else is measured, "coordinates" and "interference" (`Metric.needs`).
    """

    with_spectrum: bool
    top_k: int
    spectrum_k: int
    threads: int
    max_memory: int | None
    backend: Backend | DeviceBackend
    with_bases: bool
    svd_tolerance: float | None = field(default=None, kw_only=True)
    extras: frozenset[str] = field(default=frozenset(), kw_only=True)

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the backend: statistics of different backends are not mixed."""

    @property
    @abstractmethod
    def in_batches(self) -> bool:
        """Whether all layers that may be in flight must be begun before the first of them is finished."""

    @property
    @abstractmethod
    def layers_ahead(self) -> int:
        """Largest number of layers in flight; the memory budget may allow fewer."""

    @property
    def said_of_extras(self) -> dict[str, object]:
        """What the provenance of a table says of what else was measured."""
        return {"extras": sorted(self.extras)} if self.extras else {}

    @abstractmethod
    def provenance(self) -> dict[str, object]:
        """Return how the table was measured, for its provenance: at least "device" and "backend"."""

    def hashes(
        self, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor, models: Sequence[int] | None = None
    ) -> list[str]:
        """Return the content hashes of a layer: of the base, then of all models or of those given."""
        return layer.content_hashes(models)

    @abstractmethod
    def begin(self, layer: Layer | FactoredLayer, zoo: Zoo, pool: ThreadPoolExecutor, *, split: int = 0) -> Pending:
        """Begin to measure one tensor.

        With `split` > 0, only the new part is measured where models are added to the first `split` ones: inner products
        and distances of the pairs i < split ≤ j, and the lengths of all models. Other entries are zeros, and there are
        no spectra.

        Args:
            layer: the tensor of all models.
            zoo: the models.
            pool: threads for work on the CPU.
            split: number of the first new model; 0 measures all pairs.

        Returns:
            A function that waits for the statistics of the tensor and returns them, with singular vectors if
            `with_bases` is set. It is called once.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values in this tensor. Where only the results show them,
                the function that is returned raises it.
        """

    def begin_coordinates(
        self, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor, split: int = 0
    ) -> Callable[[], CoordinateStatistics]:
        """Begin to measure the coordinates of one tensor on the processor, and return what waits for them.

        Args:
            layer, pool, split: as for `begin`.
        """
        measure = partial(coordinate_statistics, layer, dispatch.backends()[0].signs)
        if isinstance(layer, Layer) and layer.is_split:  # its blocks take the budget of memory
            found = measure(self.threads, split)
            return lambda: found
        return pool.submit(measure, 1, split).result

    def with_coordinates(
        self, pending: Pending, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor, split: int
    ) -> Pending:
        """Return what waits for the statistics of a tensor and, if they are wanted, those of its coordinates."""
        if "coordinates" not in self.extras:
            return pending
        coordinates = self.begin_coordinates(layer, pool, split)
        return lambda: replace(pending(), coordinates=coordinates())

    def close(self) -> None:  # noqa: B027  (most have nothing to give up)
        """Give up what is begun and not finished, and wait until nothing runs any more."""
