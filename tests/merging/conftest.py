import pytest
import torch
from safetensors.torch import save_file

from tests.merging.zoos import BUFFERS, SHAPES, drawn


@pytest.fixture
def zoo(tmp_path):
    """A folder with a base and two models."""
    base, tuned = drawn(2, SHAPES)
    base |= BUFFERS
    save_file(base, tmp_path / "base.safetensors", metadata={"format": "pt", "author": "someone"})
    for name, model in tuned.items():
        save_file(
            {**model, **{k: v + 1 if v.dtype != torch.bool else ~v for k, v in BUFFERS.items()}},
            tmp_path / f"{name}.safetensors",
        )
    return tmp_path
