import os
import shutil
import tempfile

# Read when the libraries are loaded, so before they are; the processes that tests start inherit them. Threads that wait
# for work spin, on a core that another process of tests could use: tests/kernels/test_spectrum.py and test_gram.py took
# 96 s of processor time on two cores, and take 24 with these. What the caller has set stays.
if not {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch and the C++ kernels keep all their threads
# Tests write and remove many small files. On a disk each fsync, removed file and removed folder may take 4 ms: over
# half of the time of tests/fuzz. They lie in memory where there is room, unless the caller says where.
if "TMPDIR" not in os.environ and os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 4 << 30:
    os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"

import pytest
import torch

# A failed assertion in tests/support shows the values that differ, as one in a test does.
pytest.register_assert_rewrite("tests.support")

# Triton reads this when it is imported. Without a GPU its kernels are interpreted, on CPU tensors, or their PTX is.
if os.environ.get("MERGEKERN_TEST_DEVICE") == "ptx":
    from tests.ptx import triton_driver

    triton_driver.install()
elif not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


# Files of few tests that take long: begun last, they leave one process at work and the others idle.
LONG = {"test_cluster.py", "test_study.py", "test_native.py", "test_reproduce_study.py"}


def pytest_collection_modifyitems(items):
    """Put long files first; `make test` asks xdist to hand files out in this order, not by their number of tests."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fill new memory with NaN, so that an element that a kernel does not write is found."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(scope="module")
def one_thread():
    """Run torch on one thread: the tensors are too small to gain from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
