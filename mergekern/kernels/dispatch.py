"""Which implementation of each kernel runs: one table of backends, chosen openly.

A device asked for by name that cannot be had is an error that says why; only "auto" chooses. Every table records
the backend that ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mergekern.errors import OptionError
from mergekern.kernels import native
from mergekern.kernels.gram import Gram
from mergekern.kernels.gram import on_cpu as gram_on_cpu
from mergekern.kernels.overlap import on_cpu as overlap_on_cpu
from mergekern.kernels.spectrum import Spectrum
from mergekern.kernels.spectrum import on_cpu as spectrum_on_cpu


@dataclass(frozen=True)
class Backend:
    """The kernels of one kind of device.

    Attributes:
        name: recorded in the provenance of every table.
        device: "cpu".
        gram: (base, tuned, threads) -> Gram.
        spectrum: (blocks, shape, top_k, spectrum_k) -> Spectrum.
        overlap: (bases) -> (N, N).
    """

    name: str
    device: str
    gram: Callable[[torch.Tensor | None, Sequence[torch.Tensor], int], Gram]
    spectrum: Callable[[spectrum_on_cpu.Blocks, tuple[int, int], int, int], Spectrum]
    overlap: Callable[[np.ndarray], np.ndarray]


NUMPY = Backend("numpy", "cpu", gram_on_cpu.numpy, spectrum_on_cpu.spectrum, overlap_on_cpu.overlap)


def backends() -> list[Backend]:
    """Return the backends that can run here, the best first."""
    if native.extension is None:
        return [NUMPY]
    instructions = native.extension.instruction_set()
    best = Backend(
        f"native ({instructions})", "cpu", gram_on_cpu.native, spectrum_on_cpu.native, overlap_on_cpu.overlap
    )
    return [best, NUMPY]


def choose(device: str | torch.device = "auto") -> Backend:
    """Return the best backend for a device.

    Args:
        device: "auto", or a device by name.

    Raises:
        OptionError: the device is not there, or there are no kernels for it.

    >>> choose("cpu").device
    'cpu'
    """
    available = backends()
    if device == "auto":
        return available[0]
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise OptionError(f"device {device!r} is not a device name; use 'auto' or 'cpu'") from None
    found = next((backend for backend in available if backend.device == wanted.type), None)
    if found is None:
        why = "no kernels for it in this version"
        if wanted.type == "cuda" and not torch.cuda.is_available():
            why = "torch sees no CUDA device here, and this version has no kernels for it"
        raise OptionError(f"device {str(wanted)!r} cannot be used: {why}; use device='cpu' or 'auto'")
    return found
