"""Triton's driver without a GPU: kernels are compiled for an H100, and their PTX runs on the processor.

`install()` comes before anything of Triton compiles, with TRITON_INTERPRET unset. Arguments are CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from tests.ptx.machine import Machine

SHARED_BYTES = 232448  # of one block of an H100
_FLOATS = {"fp32": (np.float32, np.uint32), "fp64": (np.float64, np.uint64)}
_machines: dict[str, Machine] = {}


class _Utils:
    """What Triton asks a driver about a GPU and about code that it loaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return what an H100 has."""
        return {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def load_binary(self, *arguments: Any) -> tuple[int, ...]:
        """Return module, function, registers, spills and most threads of code that is not loaded."""
        return 0, 0, 0, 0, 1024


class _Driver:
    """A driver of Triton."""

    utils = _Utils()

    def get_current_target(self) -> GPUTarget:
        """Return the architecture of an H100."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """Return the only stream."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Choose the only device."""

    def get_active_torch_device(self) -> torch.device:
        """Return where tensors lie."""
        return torch.device("cpu")

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Return a launcher; kernels are launched otherwise."""
        return lambda *arguments: None


def install() -> None:
    """Put this driver in the place of a GPU's."""
    triton.runtime.driver.set_active(_Driver())
    CompiledKernel.run = property(_launcher)
    CompiledKernel._init_handles = lambda kernel: None


def _launcher(kernel: CompiledKernel) -> Callable[..., None]:
    """Return what launches a compiled kernel, called as Triton calls its own."""

    def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        _, _, _, _, *arguments = rest  # metadata, metadata of the launch, and two hooks
        machine = _machines.setdefault(kernel.hash, Machine(kernel.asm["ptx"]))
        types = kernel.src.signature.values()
        bits = [_bits(each, kind) for each, kind in zip(arguments, types, strict=True) if kind != "constexpr"]
        (entry,) = machine.kernels.values()
        bits += [0] * (len(entry.parameters) - len(bits))  # scratch memory, which these kernels do not use
        machine.launch(entry.name, (x, y), 32 * kernel.metadata.num_warps, bits, kernel.metadata.shared)

    return launch


def _bits(argument: Any, kind: str) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    if kind in _FLOATS:
        number, unsigned = _FLOATS[kind]
        return int(np.array(argument, number).view(unsigned))
    return int(argument)
