"""Runs the CUDA C++ kernels on the processor: the same sources, compiled by g++, each thread a fiber.

    module = HostCudaModule(order="shuffled")
    module.launch("name", (blocks, 1), 128, [tensor, rows], shared_bytes=1024)

Barriers and exchanges that not all threads reach, shared memory written beyond its end, and arguments of another
type are errors. A missing barrier shows as results that differ between the orders. What cannot be seen here: that
`__shfl_sync` and the like order no memory, which only `__syncwarp` does, and additions that should be atomic.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mergekern.kernels import cuda_module

SHIM = Path(__file__).with_suffix(".hpp")
BUILDS = Path(__file__).parents[2] / "build" / "cuda_on_host"
ORDERS = ("forward", "reverse", "shuffled")
FLAGS = ("-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-fno-strict-aliasing", "-w")

# The same letters as in `accepts` of cuda_on_host.hpp.
_LETTERS = {
    torch.float64: "D",
    torch.float32: "F",
    torch.int64: "L",
    torch.int32: "I",
    torch.float16: "S",
    torch.bfloat16: "S",
    torch.int16: "S",
}
_BOUNDS = r"(?:__launch_bounds__\s*\(([^(),]*)[^()]*\)\s*)?"
_KERNEL = re.compile(rf"__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(")
_SHARED = re.compile(r"[^;{}\n]*\b__shared__\b[^;]*;")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)

_running = threading.Lock()  # the threads of a kernel are global variables of its library
_libraries: dict[str, ctypes.CDLL] = {}


class _Launch(ctypes.Structure):
    _fields_ = [(name, ctypes.c_longlong) for name in ("grid_x", "grid_y", "threads", "shared_bytes", "order", "seed")]


def kernels(text: str) -> dict[str, str]:
    """Return, for each kernel in a text, the most threads of a block, as an expression."""
    found = _KERNEL.findall(_COMMENT.sub(" ", text))
    return {name: (before or after).strip() or "1024" for before, after, name in found}


class HostCudaModule:
    """A CudaModule on CPU tensors.

    Args:
        text: source of the kernels; None takes csrc/cuda.
        order: order in which threads that are ready run: "forward", "reverse" or "shuffled".
        shared_limit: bytes of shared memory of a block; with little of it, callers choose other paths.
        seed: seed of the shuffled order.
        flags: further flags for the compiler; None takes those of the environment variable CUDA_ON_HOST_FLAGS. With
            -fsanitize=address, accesses beyond a tensor are errors too.
    """

    def __init__(
        self,
        text: str | None = None,
        *,
        order: str = "forward",
        shared_limit: int = 232448,
        seed: int = 0,
        flags: Sequence[str] | None = None,
    ) -> None:
        self.shared_limit = shared_limit
        self._order = ORDERS.index(order)
        self._seed = seed
        flags = os.environ.get("CUDA_ON_HOST_FLAGS", "").split() if flags is None else flags
        self._library = _library(cuda_module.source() if text is None else text, tuple(flags))

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        threads: int,
        arguments: Sequence[torch.Tensor | int | float],
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel to its end. A RuntimeError reports behaviour that a GPU leaves undefined."""
        if not (1 <= grid[0] < 2**31 and 1 <= grid[1] <= 65535):
            raise ValueError(f"kernel {name!r}: a GPU has no grid of {grid}")
        if not 1 <= threads <= 1024:
            raise ValueError(f"kernel {name!r}: a GPU has no blocks of {threads} threads")
        if not 0 <= shared_bytes <= self.shared_limit:
            raise ValueError(f"kernel {name!r}: {shared_bytes} bytes of shared memory, of {self.shared_limit}")
        function = getattr(self._library, f"host_launch_{name}", None)
        if function is None:
            raise ValueError(f"there is no kernel {name!r}")
        function.restype = ctypes.c_char_p
        letters, values = zip(*(_argument(name, each) for each in arguments), strict=True) if arguments else ((), ())
        addresses = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        how = _Launch(*grid, threads, shared_bytes, self._order, self._seed)
        with _running:
            message = function(ctypes.byref(how), "".join(letters).encode(), addresses)
        if message is not None:
            raise RuntimeError(message.decode())


def _argument(name: str, value: torch.Tensor | int | float) -> tuple[str, ctypes._SimpleCData]:
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or not value.is_contiguous():
            raise ValueError(f"kernel {name!r}: its tensors must be contiguous ones of the CPU")
        letter = _LETTERS.get(value.dtype) or ("B" if value.element_size() == 1 else None)
        if letter is None:
            raise ValueError(f"kernel {name!r}: no kernel takes tensors of {value.dtype}")
        return letter, ctypes.c_void_p(value.data_ptr())
    if type(value) is int:
        return "i", ctypes.c_longlong(value)
    if type(value) is float:
        return "f", ctypes.c_double(value)
    raise TypeError(f"kernel {name!r}: an argument is a {type(value).__name__}, not a tensor, int or float")


def _library(text: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Compile a text, unless a build of it exists, and load it."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    for declaration in _SHARED.findall(_COMMENT.sub(" ", text)):
        if declaration.strip() != "extern __shared__ double shared_memory[];":
            raise ValueError(
                f"only `extern __shared__ double shared_memory[];` works here, not `{declaration.strip()}`"
            )
    launchers = "".join(f"HOST_KERNEL({name}, ({most}))\n" for name, most in kernels(text).items())
    complete = f'{text}\n#line 1 "launchers"\n{launchers}'
    key = hashlib.sha256("\0".join([SHIM.read_text(), complete, *FLAGS, *flags]).encode()).hexdigest()[:24]
    if key not in _libraries:
        path = BUILDS / f"{key}.so"
        if not path.exists():
            BUILDS.mkdir(parents=True, exist_ok=True)
            unfinished = BUILDS / f"{key}.{os.getpid()}.so"
            command = [compiler, *FLAGS, *flags, "-include", str(SHIM), "-x", "c++", "-", "-o", str(unfinished)]
            made = subprocess.run(command, input=complete, capture_output=True, text=True)
            if made.returncode != 0:
                raise RuntimeError(f"g++ cannot compile the kernels:\n{made.stderr[:8000]}")
            unfinished.replace(path)
        _libraries[key] = ctypes.CDLL(str(path))
    return _libraries[key]
