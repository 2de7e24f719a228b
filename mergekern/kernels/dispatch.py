"""The table of all implementations of the kernels, and the choice of a backend for a device.

The device determines the backend. If a named device cannot be used, the error says why. Only "auto" falls back to the
CPU, with a warning. Every table of metrics records the backend that ran.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mergekern.errors import OptionError
from mergekern.kernels import native
from mergekern.kernels.device_backend import DeviceBackend, cuda_backend
from mergekern.kernels.gram import Blocks, Gram
from mergekern.kernels.gram import on_cpu as gram_on_cpu
from mergekern.kernels.interference import on_cpu as interference_on_cpu
from mergekern.kernels.overlap import on_cpu as overlap_on_cpu
from mergekern.kernels.randomized_spectrum import on_cpu as randomized_spectrum_on_cpu
from mergekern.kernels.signs import Signs
from mergekern.kernels.signs import on_cpu as signs_on_cpu
from mergekern.kernels.spectrum import Spectrum
from mergekern.kernels.spectrum import on_cpu as spectrum_on_cpu

logger = logging.getLogger(__name__)


class Support(NamedTuple):
    """The implementation of one kernel for each backend, as "module.function" in mergekern.kernels, or None.

    Attributes:
        native: for the CPU, by the C++ extension.
        numpy: for the CPU without the extension, by NumPy and SciPy's LAPACK.
        device: for a CUDA device of compute capability 8.0, by Triton, CUDA C++ (compiled by CuPy) or torch.
    """

    native: str | None
    numpy: str | None
    device: str | None


# Every kernel has a row, and its float64 oracle is <kernel>/reference.py. low_rank (adapters) and
# count_sketch exist for the CPU only, task_product for devices only. If native and numpy name the same
# function, it selects its inner loops itself.
KERNELS = {
    "combine": Support("combine.on_cpu.native", "combine.on_cpu.numpy", "combine.on_triton.combine"),
    "count_sketch": Support("count_sketch.on_cpu.CountSketch", "count_sketch.on_cpu.CountSketch", None),
    "gram": Support("gram.on_cpu.native", "gram.on_cpu.numpy", "gram.on_triton.gram"),
    "interference": Support(
        "interference.on_cpu.native", "interference.on_cpu.numpy", "interference.on_torch.interference"
    ),
    "low_rank": Support("low_rank.on_cpu.Triplets", "low_rank.on_cpu.Triplets", None),
    "overlap": Support("overlap.on_cpu.native", "overlap.on_cpu.numpy", "overlap.on_triton.overlap"),
    "polar": Support("polar.on_cpu.polar", "polar.on_cpu.polar", "polar.on_torch.polar"),
    "randomized_spectrum": Support(
        "randomized_spectrum.on_cpu.spectrum",
        "randomized_spectrum.on_cpu.spectrum",
        "randomized_spectrum.on_cuda.spectra",
    ),
    "signs": Support("signs.on_cpu.native", "signs.on_cpu.numpy", "signs.on_triton.signs"),
    "spectrum": Support("spectrum.on_cpu.native", "spectrum.on_cpu.spectrum", "spectrum.on_cuda.spectra"),
    "task_product": Support(None, None, "task_product.on_triton.task_product"),
    "trim": Support("trim.on_cpu.kth_largest", "trim.on_cpu.kth_largest", "trim.on_cuda.kth_largest"),
    "truncation": Support("truncation.on_cpu.leading", "truncation.on_cpu.leading", "truncation.on_torch.leading"),
    "variation": Support("variation.on_cpu.variances", "variation.on_cpu.variances", "variation.on_torch.variances"),
}


RandomizedSpectrum = Callable[[spectrum_on_cpu.Blocks, tuple[int, int], str, int, int, float], Spectrum]


@dataclass(frozen=True)
class Backend:
    """The kernels of the CPU that a measurement calls, one tensor at a time.

    Attributes:
        name: the name that the provenance of every table records.
        gram: (blocks, threads, split) -> Gram.
        spectrum: (blocks, shape, top_k, spectrum_k) -> Spectrum.
        overlap: (bases, others or None) -> (N, N), or (N, M) for the pairs of two sets.
        signs: (blocks, thresholds, threads, split) -> Signs.
        interference: (triplets, others or None) -> (N, N), or (N, M) for the pairs of two sets.
        randomized_spectrum: (blocks, shape, name, top_k, spectrum_k, tolerance) -> Spectrum.
    """

    name: str
    gram: Callable[[Blocks, int, int], Gram]
    spectrum: Callable[[spectrum_on_cpu.Blocks, tuple[int, int], int, int], Spectrum]
    overlap: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    signs: Callable[..., Signs]
    interference: Callable[..., np.ndarray]
    randomized_spectrum: RandomizedSpectrum = randomized_spectrum_on_cpu.spectrum

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")


NUMPY = Backend(
    "numpy", gram_on_cpu.numpy, spectrum_on_cpu.spectrum, overlap_on_cpu.numpy, signs_on_cpu.numpy,
    interference_on_cpu.numpy,
)  # fmt: skip


def backends() -> list[Backend]:
    """Return the available backends of the CPU, the fastest first."""
    if native.extension is None:
        return [NUMPY]
    instructions = native.extension.instruction_set()
    best = Backend(
        f"native ({instructions})", gram_on_cpu.native, spectrum_on_cpu.native, overlap_on_cpu.native,
        signs_on_cpu.native, interference_on_cpu.native,
    )  # fmt: skip
    return [best, NUMPY]


def choose(device: str | torch.device = "auto") -> Backend | DeviceBackend:
    """Return the best backend for a device.

    Args:
        device: "auto" (the current CUDA device if its kernels can run, else the CPU), or the name of a device.

    Raises:
        OptionError: the device does not exist, or has no kernels.

    >>> choose("cpu").name == backends()[0].name
    True
    """
    if device == "auto":
        return _automatic()
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise OptionError(f"device {device!r} is not a device name; use 'auto', 'cpu' or 'cuda:0'") from None
    if wanted.type == "cpu":
        return backends()[0]
    if wanted.type == "cuda":
        return cuda_backend(wanted)
    raise OptionError(
        f"device {str(wanted)!r} cannot be used: there are no kernels for it, only for CPUs and CUDA devices; "
        "use device='cpu' or 'auto'"
    )


def _automatic() -> Backend | DeviceBackend:
    if torch.cuda.is_available():
        try:
            return cuda_backend(torch.device("cuda", torch.cuda.current_device()))
        except OptionError as error:
            logger.warning("%s; running on the CPU", error)
    return backends()[0]
