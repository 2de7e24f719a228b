"""Which implementation of each kernel runs: one table of backends, chosen openly.

A device asked for by name that cannot be had is an error that says why; only "auto" chooses. Every table records
the backend that ran.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mergekern.errors import OptionError
from mergekern.kernels import native
from mergekern.kernels.device_backend import DeviceBackend, cuda_backend
from mergekern.kernels.gram import Blocks, Gram
from mergekern.kernels.gram import on_cpu as gram_on_cpu
from mergekern.kernels.overlap import on_cpu as overlap_on_cpu
from mergekern.kernels.spectrum import Spectrum
from mergekern.kernels.spectrum import on_cpu as spectrum_on_cpu

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """The kernels of the processor, which work on one tensor at a time.

    Attributes:
        name: recorded in the provenance of every table.
        gram: (blocks, threads, split) -> Gram.
        spectrum: (blocks, shape, top_k, spectrum_k) -> Spectrum.
        overlap: (bases, others or None) -> (N, N), or (N, M) of the pairs of two sets.
    """

    name: str
    gram: Callable[[Blocks, int, int], Gram]
    spectrum: Callable[[spectrum_on_cpu.Blocks, tuple[int, int], int, int], Spectrum]
    overlap: Callable[[np.ndarray, np.ndarray | None], np.ndarray]

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")


NUMPY = Backend("numpy", gram_on_cpu.numpy, spectrum_on_cpu.spectrum, overlap_on_cpu.numpy)


def backends() -> list[Backend]:
    """Return the backends of the processor that can run here, the best first."""
    if native.extension is None:
        return [NUMPY]
    instructions = native.extension.instruction_set()
    best = Backend(f"native ({instructions})", gram_on_cpu.native, spectrum_on_cpu.native, overlap_on_cpu.native)
    return [best, NUMPY]


def choose(device: str | torch.device = "auto") -> Backend | DeviceBackend:
    """Return the best backend for a device.

    Args:
        device: "auto" (the current CUDA device if its kernels can be had, else the CPU), or a device by name.

    Raises:
        OptionError: the device is not there, or there are no kernels for it.

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
    raise OptionError(f"device {str(wanted)!r} cannot be used: there are no kernels for it; use device='cpu' or 'auto'")


def _automatic() -> Backend | DeviceBackend:
    if torch.cuda.is_available():
        try:
            return cuda_backend(torch.device("cuda", torch.cuda.current_device()))
        except OptionError as error:
            logger.warning("%s; running on the CPU", error)
    return backends()[0]
