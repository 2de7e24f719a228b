"""The CUDA C++ kernels of csrc/cuda as NVRTC compiles them, on the processor."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergekern.kernels import cuda_module
from tests.ptx.machine import Machine

# The options that CuPy adds to those of `cuda_module`, for an H100.
OPTIONS = (*cuda_module.COMPILE_OPTIONS, "-ftz=true", "-arch=compute_90", "--device-as-default-execution-space")


class PtxCudaModule:
    """A CudaModule on CPU tensors, which runs the PTX of NVRTC.

    Args:
        text: PTX; that of csrc/cuda by default.
        shared_limit: bytes of shared memory of a block; with little of it, callers choose other paths.
        options: for tests that also run in other ways; nothing depends on them here.
    """

    def __init__(self, text: str | None = None, *, shared_limit: int = 232448, **options: Any) -> None:
        self.shared_limit = shared_limit
        self._machine = Machine(text) if text is not None else _machine()

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        threads: int,
        arguments: Sequence[torch.Tensor | int | float],
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel to its end: tensors pass as addresses, int as long long, float as double.

        Raises:
            PtxError: behaviour that a GPU leaves undefined.
            ValueError: too much shared memory, or a tensor that is not contiguous.
        """
        if shared_bytes > self.shared_limit:
            raise ValueError(f"kernel {name!r}: {shared_bytes} bytes of shared memory, of {self.shared_limit}")
        self._machine.launch(name, grid, threads, [_bits(name, each) for each in arguments], shared_bytes)


def _bits(name: str, argument: torch.Tensor | int | float) -> int:
    if isinstance(argument, torch.Tensor):
        if not argument.is_contiguous():
            raise ValueError(f"kernel {name!r}: its tensors must be contiguous")
        return argument.data_ptr()
    return int(np.float64(argument).view(np.uint64)) if isinstance(argument, float) else argument


@functools.cache
def _machine() -> Machine:
    return Machine(compile_with_nvrtc(cuda_module.source()))


def compile_with_nvrtc(source: str) -> str:
    """Return the PTX of a CUDA C++ source.

    Raises:
        RuntimeError: NVRTC is not installed, or the source does not compile.
    """
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"mergekern.cu", 0, None, None))
    options = [option.encode() for option in OPTIONS]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if status != 0:
        raise RuntimeError(f"NVRTC cannot compile the kernels:\n{_text(nvrtc, program, 'ProgramLog')}")
    return _text(nvrtc, program, "PTX")


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return text.value.decode()


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"NVRTC ended with status {status}")


def _nvrtc() -> ctypes.CDLL:
    """Load NVRTC from the wheel nvidia-cuda-nvrtc."""
    package = find_spec("nvidia")
    for folder in package.submodule_search_locations or () if package else ():
        for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            if "alt" not in library.name:
                # NVRTC looks for its other library where the system does.
                for other in sorted(library.parent.glob("libnvrtc-builtins.so.*")):
                    ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(str(library))
    raise RuntimeError("NVRTC is not installed; `make ptx` installs it")
