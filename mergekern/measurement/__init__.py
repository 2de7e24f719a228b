"""From one tensor of all models to its statistics, by the kernels of a backend: layer by layer, or in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mergekern.checkpoints import FactoredLayer, Layer, Zoo
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.dispatch import Backend
from mergekern.statistics import LayerStatistics


@dataclass
class Measurement(ABC):
    """What is measured.

    Layers are begun in file order by one thread, and finished in the same order by another, `layers_ahead` later at
    most.

    Attributes:
        with_spectrum: whether matrices are factorised.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        threads: of the processor that it may use.
        max_memory: bytes of weights held at a time; None for the default.
        backend: the kernels.
        with_bases: whether singular vectors are wanted, which are 0.3 GB for 20 models of ViT-B/16.
    """

    with_spectrum: bool
    top_k: int
    spectrum_k: int
    threads: int
    max_memory: int | None
    backend: Backend | DeviceBackend
    with_bases: bool

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the backend: statistics of different ones are not mixed."""

    @property
    @abstractmethod
    def in_batches(self) -> bool:
        """Whether all layers that may be in flight are to be begun before the first is finished."""

    @property
    @abstractmethod
    def layers_ahead(self) -> int:
        """How many layers may be in flight, if the budget allows it."""

    @abstractmethod
    def provenance(self) -> dict[str, object]:
        """Return what the table says of how it was measured: at least "device" and "backend"."""

    def hashes(
        self, layer: Layer | FactoredLayer, pool: ThreadPoolExecutor, models: Sequence[int] | None = None
    ) -> list[str]:
        """Return the content hashes of a layer, in the base and in all or some of the models."""
        return layer.content_hashes(models)

    @abstractmethod
    def begin(self, layer: Layer | FactoredLayer, zoo: Zoo, pool: ThreadPoolExecutor, *, split: int = 0) -> Any:
        """Begin to measure one tensor; the pool is there for work on the processor.

        With `split` > 0 only what is new where models are added to the first `split` ones: inner products and distances
        of the pairs i < split ≤ j, and the lengths of all. Other entries are zeros, and there are no spectra.

        Raises:
            NonFiniteError: a checkpoint holds NaN or infinite values in this tensor.
        """

    @abstractmethod
    def finish(self, begun: Any) -> LayerStatistics:
        """Return the statistics of a tensor, with the singular vectors if they are wanted or were needed.

        Raises:
            NonFiniteError: as above, where that is known only now.
        """
