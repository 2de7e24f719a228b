"""The CUDA C++ kernels of csrc/cuda: their source text, and the module that CuPy (NVRTC) compiles at first use."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mergekern._internal.extras import needs
from mergekern.errors import OptionError

COMPILE_OPTIONS = ("--std=c++17",)

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"[^\n]*$', re.MULTILINE)
_PRAGMA_ONCE = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once[ \t]*$", re.MULTILINE)


class CudaModule(Protocol):
    """The compiled kernels of csrc/cuda, on a GPU or, in tests, on the CPU.

    Attributes:
        shared_limit: bytes of shared memory that one block may use.
    """

    shared_limit: int

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        threads: int,
        arguments: Sequence[torch.Tensor | int | float],
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel: tensors pass as data pointers, int as long long, float as double."""


def folder() -> Path:
    """Return the folder of the kernels' sources: inside an installed package, or in the checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "csrc_cuda"
    return installed if installed.is_dir() else package.parent / "csrc" / "cuda"


def source(name: str | None = None) -> str:
    """Return the text of one .cu file, or of all of them in sorted order, as the compiler gets it.

    The first `#include "x.cuh"` of each header is replaced by its text, so that a cache keyed by the text notices an
    edited header. `#line` makes the compiler's messages refer to the files. The text is ASCII, since CuPy writes it to
    a file in the encoding of the locale.

    Raises:
        FileNotFoundError: the file, a header, or the whole folder is missing.

    >>> '#include "' in source()
    False
    """
    names = [path.name for path in sorted(folder().glob("*.cu"))] if name is None else [name]
    if not names:
        raise FileNotFoundError(f"no CUDA sources in {folder()}")
    included: set[str] = set()
    text = "".join(_with_headers(each, included) for each in names)
    return text.encode("ascii", "replace").decode()


def _with_headers(name: str, included: set[str]) -> str:
    """Return the text of a file with its headers inlined, except those in `included`, to which they are added."""
    text = _PRAGMA_ONCE.sub("", (folder() / name).read_text(encoding="utf-8"))

    def header(match: re.Match[str]) -> str:
        if match[1] in included:
            return ""
        included.add(match[1])
        next_line = text.count("\n", 0, match.start()) + 2
        return f'{_with_headers(match[1], included)}#line {next_line} "{name}"'

    return f'#line 1 "{name}"\n{_INCLUDE.sub(header, text)}\n'


class RawCudaModule:
    """The kernels on a GPU, compiled by CuPy and launched on torch's current stream.

    Torch owns all memory, and CuPy gets addresses only. No call waits for the GPU.

    Args:
        device: a device of type "cuda".

    Raises:
        OptionError: CuPy or its compiler is missing, or CuPy is built for another CUDA than torch.
    """

    def __init__(self, device: torch.device) -> None:
        self._cupy = _cupy()
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._on_device = self._cupy.cuda.Device(index)
        self._most_shared = int(self._on_device.attributes["MaxSharedMemoryPerBlockOptin"])
        self.shared_limit = self._most_shared
        self._module = self._cupy.RawModule(code=source(), options=COMPILE_OPTIONS)
        self._kernels: dict[str, Any] = {}
        try:
            with self._on_device:
                self._module.compile()
        except RuntimeError as error:  # the compiler's library is loaded here
            extra = f'pip install "{_package(_major(torch.version.cuda))}[ctk]"'
            raise OptionError(
                f"CuPy cannot compile the CUDA kernels: {error}; if NVRTC is missing, `{extra}` brings it"
            ) from error

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        threads: int,
        arguments: Sequence[torch.Tensor | int | float],
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel on torch's current stream of the device, and return at once.

        Raises:
            ValueError: a tensor is not contiguous or lies on another device, or the shared memory is too small.
        """
        if shared_bytes > self.shared_limit:
            raise ValueError(f"kernel {name!r}: {shared_bytes} bytes of shared memory, of {self.shared_limit}")
        values = tuple(self._value(name, argument) for argument in arguments)
        with self._on_device, self._stream():
            if name not in self._kernels:
                self._kernels[name] = self._module.get_function(name)
                self._kernels[name].max_dynamic_shared_size_bytes = self._most_shared
            self._kernels[name](grid, (threads,), values, shared_mem=shared_bytes)

    def _value(self, name: str, argument: torch.Tensor | int | float) -> np.int64 | np.float64:
        if not isinstance(argument, torch.Tensor):
            return np.float64(argument) if isinstance(argument, float) else np.int64(argument)
        if argument.device != self._device or not argument.is_contiguous():
            raise ValueError(f"kernel {name!r}: its tensors must be contiguous ones of {self._device}")
        return np.int64(argument.data_ptr())

    def _stream(self) -> Any:
        stream = torch.cuda.current_stream(self._device)
        if hasattr(self._cupy.cuda.Stream, "from_external"):  # CuPy 14, which deprecates the other
            return self._cupy.cuda.Stream.from_external(_Stream(stream.cuda_stream))
        return self._cupy.cuda.ExternalStream(stream.cuda_stream, self._device.index)


class _Stream(NamedTuple):
    """A CUDA stream with the method `__cuda_stream__`, which torch's own streams have since version 2.9."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


def _cupy() -> Any:
    """Import CuPy, if it is built for the CUDA that torch is built for."""
    if torch.version.cuda is None:
        raise OptionError("the CUDA kernels need a torch that is built for CUDA; this one is not")
    wanted = _major(torch.version.cuda)
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise OptionError(needs("CuPy, by which the CUDA kernels run,", f"cuda{wanted}", error)) from error
    found = cupy.cuda.runtime.runtimeGetVersion() // 1000
    if found != wanted:
        raise OptionError(
            f"CuPy {cupy.__version__} is built for CUDA {found}, but torch {torch.__version__} for CUDA {wanted}; "
            f"`pip uninstall {_package(found)}`, then `pip install {_package(wanted)}`"
        )
    return cupy


def _major(version: str | None) -> int:
    return int(str(version).split(".")[0])


def _package(major: int) -> str:
    return f"cupy-cuda{major}x"
