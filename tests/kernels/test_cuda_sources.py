"""The CUDA sources: they form one text, compile within the limits of a GPU, and the loader says why it refuses."""

import ctypes
import ctypes.util
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from mergekern.errors import OptionError
from mergekern.kernels import cuda_module
from tests.support.cuda_on_host import kernels

ARCHITECTURES = ["80", "90", "100"]
REGISTERS = 65536  # of a multiprocessor, on every architecture above


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_module, "folder", lambda: tmp_path)

    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text, encoding="utf-8")

    return write


def test_headers_are_in_the_text_once(sources):
    sources(
        b_cu='// b\n#include "inner.cuh"\nint b;\n',
        a_cu='#include "outer.cuh"\n  # include "inner.cuh"  // again\nint a; // ‖a‖ ≤ 1\n',
        outer_cuh='#pragma once\n#include "inner.cuh"\nint outer;\n',
        inner_cuh="#pragma once\nint inner;\n",
    )
    outer = '#line 1 "outer.cuh"\n\n#line 1 "inner.cuh"\n\nint inner;\n\n#line 3 "outer.cuh"\nint outer;\n\n'
    a = f'#line 1 "a.cu"\n{outer}#line 2 "a.cu"\n\nint a; // ?a? ? 1\n\n'
    assert cuda_module.source() == f'{a}#line 1 "b.cu"\n// b\n\nint b;\n\n'
    assert cuda_module.source("b.cu").count("int inner;") == 1


def test_a_missing_file_is_an_error(sources):
    with pytest.raises(FileNotFoundError, match="no CUDA sources"):
        cuda_module.source()
    sources(a_cu='#include "missing.cuh"\n')
    with pytest.raises(FileNotFoundError, match=r"missing\.cuh"):
        cuda_module.source()


def test_the_sources_need_no_other_header():
    assert "#include" not in cuda_module.source()
    assert kernels(cuda_module.source())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_the_sources(architecture, tmp_path):
    """No warning, no spilled register, and few enough registers for the largest block to start."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if f"sm_{architecture}" not in known:
        pytest.skip(f"this nvcc has no sm_{architecture}")
    text = cuda_module.source()
    (tmp_path / "all.cu").write_text(text)
    options = [
        *cuda_module.COMPILE_OPTIONS,
        "-cubin",
        f"-arch=sm_{architecture}",
        "-Xptxas",
        "-v",
        "--keep",
        "--keep-dir",
        tmp_path,
    ]
    command = [nvcc, *options, "-Werror", "all-warnings", "-o", tmp_path / "all.cubin", tmp_path / "all.cu"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    memory, registers = {}, {}
    for part in run.stderr.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        memory[name] = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers[name] = -(-int(re.search(r"Used (\d+) registers", part)[1]) // 8) * 8  # as they are allotted
    assert registers.keys() == kernels(text).keys()
    assert {name: found.groups() for name, found in memory.items()} == dict.fromkeys(registers, ("0", "0", "0"))
    entries = re.findall(r"\.entry (\w+)\([^)]*\)\s*(?:\.maxntid (\d+))?", (tmp_path / "all.ptx").read_text())
    needs = {name: (registers[name], int(most or 1024)) for name, most in entries}
    assert needs.keys() == registers.keys()
    assert {name: found for name, found in needs.items() if math.prod(found) > REGISTERS} == {}


def nvrtc():
    """Return the library by which CuPy compiles. Skip where it is missing; torch for CUDA brings it."""
    folders = [Path(folder) for folder in sys.path]
    found = [str(path) for folder in folders for path in folder.glob("nvidia/*/lib/libnvrtc.so.*")]
    name = ctypes.util.find_library("nvrtc") or next(iter(found), None)
    if name is None:
        pytest.skip("needs NVRTC")
    return ctypes.CDLL(name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_the_sources(architecture):
    """NVRTC has no headers at all. A build by nvcc would not show that one is needed."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    text = cuda_module.source().encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, b"all.cu", 0, None, None) == 0
    # The options of CuPy.
    options = [*cuda_module.COMPILE_OPTIONS, "-ftz=true", f"-arch=sm_{architecture}", "-default-device"]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), encoded)
    assert library.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetProgramLog(program, log) == 0
    assert library.nvrtcDestroyProgram(ctypes.byref(program)) == 0
    if b"invalid value for --gpu-architecture" in log.value:
        pytest.skip(f"this NVRTC has no sm_{architecture}")
    assert (status, log.value.decode()) == (0, "")


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in for CuPy for CUDA 13, and a torch that says that it is built for it too."""
    fake = MagicMock(__version__="14.0")
    fake.cuda.runtime.runtimeGetVersion.return_value = 13020
    fake.cuda.Device.return_value.attributes = {"MaxSharedMemoryPerBlockOptin": 1000}
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: MagicMock(cuda_stream=77))
    return fake


def test_another_cuda_is_refused(cupy, monkeypatch):
    cupy.cuda.runtime.runtimeGetVersion.return_value = 12080
    remedy = r"CUDA 12, but torch .* CUDA 13; `pip uninstall cupy-cuda12x`, then `pip install cupy-cuda13x`"
    with pytest.raises(OptionError, match=remedy):
        cuda_module.RawCudaModule(torch.device("cuda", 0))
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(OptionError, match="a torch that is built for CUDA"):
        cuda_module.RawCudaModule(torch.device("cuda", 0))


def test_a_missing_cupy_is_an_error(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(OptionError, match=r"CuPy.* cupy.*pip install \"mergekern\[cuda12\]\""):
        cuda_module.RawCudaModule(torch.device("cuda", 0))


def test_a_missing_compiler_is_an_error(cupy):
    cupy.RawModule.return_value.compile.side_effect = RuntimeError("no libnvrtc.so.13")
    with pytest.raises(OptionError, match=r"no libnvrtc\.so\.13; .*cupy-cuda13x\[ctk\]"):
        cuda_module.RawCudaModule(torch.device("cuda", 0))


def test_what_a_launch_passes_on(cupy):
    module = cuda_module.RawCudaModule(torch.device("cuda", 0))
    assert module.shared_limit == 1000
    assert cupy.RawModule.call_args.kwargs == {"code": cuda_module.source(), "options": ("--std=c++17",)}
    module.launch("name", (2, 3), 64, [5, 2.5], shared_bytes=1000)
    kernel = cupy.RawModule.return_value.get_function.return_value
    kernel.assert_called_once_with((2, 3), (64,), (5, 2.5), shared_mem=1000)
    assert [type(value) for value in kernel.call_args.args[2]] == [np.int64, np.float64]
    assert kernel.max_dynamic_shared_size_bytes == 1000
    assert cupy.cuda.Stream.from_external.call_args.args[0].__cuda_stream__() == (0, 77)
    with pytest.raises(ValueError, match="1001 bytes of shared memory, of 1000"):
        module.launch("name", (1, 1), 32, [], shared_bytes=1001)
    with pytest.raises(ValueError, match="contiguous ones of cuda:0"):
        module.launch("name", (1, 1), 32, [torch.zeros(2)])
