"""Seeded tensors, checkpoint files of any content, and comparison to the last bit."""

import json
import struct

import torch
from safetensors.torch import save_file


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def entry(dtype, shape, begin, end):
    """Return the entry of one tensor in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_safetensors(path, header, data=b""):
    """Write a safetensors file that no library would: any header, any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_shards(folder, shards, save=save_file, index="model.safetensors.index.json", **more):
    """Write {file: {name: tensor}} as a sharded Hugging Face folder; `more` joins the index."""
    folder.mkdir()
    for file, tensors in shards.items():
        save(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / index).write_text(json.dumps({"weight_map": weight_map | more}))
    return folder


def assert_same(found, expected):
    """Assert equal dtype, shape and bits, NaNs and the signs of zeros included."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert raw(found) == raw(expected)


def raw(tensor):
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()
