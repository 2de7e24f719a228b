"""What is measured of a zoo, and how: one record, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekern._internal.validation import one_of, positive_bytes, positive_integer
from mergekern.checkpoints.names import check_rename
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.metrics import Metric, as_names, select

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured of a zoo, and how.

    Attributes:
        metrics: "all" that the inputs allow, or names of metrics or of categories; a tuple once it is checked.
        top_k: dimension of the top and bottom singular subspaces.
        spectrum_k: number of leading singular values that are compared.
        device: "cpu", a CUDA device such as "cuda:1", or "auto": the current CUDA device if its kernels can be had.
        max_memory: bytes of weights held at a time, on the device if there is one; larger tensors are read in blocks.
            None for the default: 1 GiB, and on a CUDA device 2/5 of what is free there.
        on_mismatch: "error" reports every tensor that is missing, extra or of another shape; "skip" leaves those out.
        io: "mmap" maps the files; "pread" reads them, which is faster on network disks.
        rename: parts of the models' tensor names to replace, OLD -> NEW; see `compute_all`.

    Raises:
        OptionError: an unknown metric, a size or a budget that is no positive number, another word than those above.

    >>> MeasureOptions("effective_rank").metrics
    ('effective_rank',)
    """

    metrics: str | Iterable[str] = "all"
    top_k: int = 10
    spectrum_k: int = 100
    device: str | torch.device = "auto"
    max_memory: int | None = None
    on_mismatch: OnMismatch = "error"
    io: IO = "mmap"
    rename: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Check every option."""
        object.__setattr__(self, "metrics", tuple(as_names(self.metrics)))
        select(self.metrics)
        for name in ("top_k", "spectrum_k"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        if self.max_memory is not None:
            object.__setattr__(self, "max_memory", positive_bytes("max_memory", self.max_memory))
        one_of("on_mismatch", self.on_mismatch, ("error", "skip"))
        one_of("io", self.io, ("mmap", "pread"))
        check_rename(self.rename)

    @property
    def chosen(self) -> list[Metric]:
        """The metrics that are asked for, in catalogue order."""
        return select(self.metrics)

    @property
    def with_spectrum(self) -> bool:
        """Whether a metric needs matrices factorised."""
        return any(metric.needs == "spectra" for metric in self.chosen)

    @property
    def functional_kinds(self) -> frozenset[str]:
        """The kinds of statistics that models must be run for."""
        return frozenset(metric.needs for metric in self.chosen if metric.runs_models)

    @property
    def asks_for_all(self) -> bool:
        """Whether what the inputs do not allow is left out, rather than an error."""
        return "all" in self.metrics
