"""Which device is chosen, and why one cannot be."""

import importlib
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mergekern.errors import OptionError
from mergekern.kernels import device_backend, dispatch

FOLDER = Path(dispatch.__file__).parent


@pytest.fixture
def cuda(monkeypatch):
    """Pretend that torch has CUDA and sees two devices; return what can be changed about them."""
    device_backend._made.cache_clear()
    properties = SimpleNamespace(name="Abacus 9000", major=9, minor=0, multi_processor_count=7)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 1,
        "get_device_name": lambda index: f"{properties.name} ({index})",
        "get_device_properties": lambda index: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.9"))
    monkeypatch.setattr(device_backend, "RawCudaModule", lambda device: SimpleNamespace(device=device))
    yield properties
    device_backend._made.cache_clear()


def test_a_device_by_name(cuda):
    backend = dispatch.choose("cuda:0")
    assert backend.device == backend.module.device == torch.device("cuda:0")
    assert (backend.description, backend.multiprocessors) == ("cuda:0 (Abacus 9000)", 7)
    assert backend.name == "triton 3.9, cuda 13.0 (sm_90)"
    assert dispatch.choose(torch.device("cuda:0")) is backend


def test_the_current_device(cuda):
    for device in ("auto", "cuda"):
        assert dispatch.choose(device).device == torch.device("cuda:1")


def test_the_cpu_by_name(cuda):
    assert dispatch.choose("cpu").name == dispatch.backends()[0].name


def refused(device, *says):
    with pytest.raises(OptionError) as error:
        dispatch.choose(device)
    for text in (f"device '{device}' cannot be used", "device='cpu' or 'auto'", *says):
        assert text in str(error.value)


def test_a_torch_without_cuda(cuda, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    refused("cuda", f"torch {torch.__version__} is built without CUDA", "install a build with it")


def test_no_driver(cuda, monkeypatch):
    def init():
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore of it.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    refused("cuda:1", "torch sees no CUDA device: Found no NVIDIA driver on your system.")


def test_a_number_that_is_not_there(cuda):
    refused("cuda:2", "there are 2 CUDA devices here: 'cuda:0' (Abacus 9000 (0)), 'cuda:1' (Abacus 9000 (1))")


def test_a_device_that_is_too_old(cuda):
    cuda.major = 7
    cuda.minor = 5
    refused("cuda:0", "Abacus 9000 has compute capability 7.5; the kernels need 8.0")


def test_no_triton(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    refused("cuda", "Triton cannot be imported", "pip install triton")


def test_no_cupy(cuda, monkeypatch, caplog):
    def missing(device):
        raise OptionError("the CUDA kernels need CuPy, which cannot be imported; `pip install cupy-cuda13x`")

    monkeypatch.setattr(device_backend, "RawCudaModule", missing)
    refused("cuda", "pip install cupy-cuda13x")
    with caplog.at_level(logging.WARNING):
        assert dispatch.choose("auto").name == dispatch.backends()[0].name
    assert "pip install cupy-cuda13x" in caplog.text
    assert "running on the CPU" in caplog.text


def test_another_kind_of_device():
    refused("mps", "no kernels for it")


def implementation(place):
    """Return what the table names; skip where its library is not installed."""
    module, _, name = place.rpartition(".")
    found = pytest.importorskip(f"mergekern.kernels.{module}", exc_type=ImportError)
    return getattr(found, name)


def test_every_kernel_has_a_row_and_an_oracle():
    assert sorted(dispatch.KERNELS) == sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
    for kernel in dispatch.KERNELS:
        assert importlib.import_module(f"mergekern.kernels.{kernel}.reference").__doc__


@pytest.mark.parametrize("kernel", dispatch.KERNELS)
def test_the_table_names_every_implementation(kernel):
    places = [place for place in dispatch.KERNELS[kernel] if place is not None]
    assert {place.rpartition(".")[0] for place in places} == {
        f"{kernel}.{path.stem}" for path in (FOLDER / kernel).glob("on_*.py")
    }
    assert all(callable(implementation(place)) for place in places)


@pytest.mark.parametrize("backend", dispatch.backends(), ids=lambda backend: backend.name)
def test_backends_hold_what_the_table_says(backend):
    for kernel in ("gram", "spectrum", "overlap"):
        place = getattr(dispatch.KERNELS[kernel], backend.name.split(" ")[0])
        assert getattr(backend, kernel) is implementation(place)
