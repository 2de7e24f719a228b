import os

import pytest
import torch

# Checks that tests share say what differed, as those in the tests do.
pytest.register_assert_rewrite("tests.support")

# Read when Triton is imported: without a GPU its kernels are interpreted, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fill new memory with NaN, so that what a kernel leaves unwritten is found."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(scope="module")
def one_thread():
    """For tensors that are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
