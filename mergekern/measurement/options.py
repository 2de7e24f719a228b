"""What is measured of a zoo, and how: one record, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mergekern._internal.validation import one_of, positive_bytes, positive_integer, share
from mergekern.checkpoints.names import check_rename
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError
from mergekern.metrics import EXACT_ONLY, OF_MATRICES, Metric, as_names, select, why_exact_only

if TYPE_CHECKING:
    import torch

# How matrices are factorised.
Svd = Literal["exact", "randomized"]
SVD_TOLERANCE = 1e-3


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured of a zoo, and how.

    Attributes:
        metrics: "all" of the study that the inputs allow, or names of metrics or of categories; a tuple once it is
            checked.
        top_k: dimension of the top and bottom singular subspaces.
        spectrum_k: number of leading singular values that are compared.
        device: "cpu", a CUDA device such as "cuda:1", or "auto": the current CUDA device if its kernels can be had.
        max_memory: bytes of weights held at a time, on the device if there is one; larger tensors are read in blocks.
            None for the default: 1 GiB, and on a CUDA device 2/5 of what is free there.
        on_mismatch: "error" reports every tensor that is missing, extra or of another shape; "skip" leaves those out.
        io: "mmap" maps the files; "pread" reads them, which is faster on network disks.
        rename: parts of the models' tensor names to replace, OLD -> NEW; see `compute_all`.
        svd: "exact", or "randomized", which takes less time on large matrices, estimates the error of every value, and
            does not define the two metrics of bottom-k subspaces.
        svd_tolerance: estimated error of a metric of one matrix, in (0, 1), at which a randomised factorisation ends.
            It also ends after a fixed number of passes: then the estimates are larger.

    Raises:
        OptionError: an unknown metric, one of bottom-k subspaces by name with svd="randomized", a size or a budget that
            is no positive number, another word than those above.

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
    svd: Svd = "exact"
    svd_tolerance: float = SVD_TOLERANCE

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
        one_of("svd", self.svd, ("exact", "randomized"))
        object.__setattr__(self, "svd_tolerance", share("svd_tolerance", self.svd_tolerance))
        if self.svd == "randomized" and (undefined := [name for name in self.metrics if name in EXACT_ONLY]):
            raise OptionError(
                f"{', '.join(undefined)}: svd='randomized' {why_exact_only(undefined[0])}; use svd='exact', or "
                "leave the metric out"
            )

    @property
    def chosen(self) -> list[Metric]:
        """The metrics that are asked for and that the kind of factorisation defines, in catalogue order."""
        return [metric for metric in select(self.metrics) if self.svd == "exact" or metric.name not in EXACT_ONLY]

    @property
    def with_spectrum(self) -> bool:
        """Whether a metric needs matrices factorised."""
        return any(metric.needs in OF_MATRICES for metric in self.chosen)

    @property
    def is_randomized(self) -> bool:
        """Whether what is measured depends on randomised factorisations, if only in what they leave out."""
        return self.svd == "randomized" and any(metric.needs in OF_MATRICES for metric in select(self.metrics))

    @property
    def extras(self) -> frozenset[str]:
        """What is measured for metrics beyond those of the study."""
        return frozenset(metric.needs for metric in self.chosen) & {"coordinates", "interference"}

    @property
    def functional_kinds(self) -> frozenset[str]:
        """The kinds of statistics that models must be run for."""
        return frozenset(metric.needs for metric in self.chosen if metric.runs_models)

    @property
    def asks_for_all(self) -> bool:
        """Whether what the inputs do not allow is left out, rather than an error."""
        return "all" in self.metrics
