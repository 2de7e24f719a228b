"""Models in memory: arrays, tensors of any strides, modules."""

import numpy as np
import pytest
import torch

from mergekern.checkpoints import open_checkpoint
from mergekern.errors import CheckpointError
from tests.checkpoints.tied import Tied, assert_tied
from tests.support.checkpoint_files import assert_same, draw

STRIDED = {
    "transposed": lambda t: t.transpose(0, 2),
    "every second": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1].expand(5, 4, 6),
    "columns": lambda t: t[..., 1:3],
    "vector with steps": lambda t: t[0, 0, ::2],
    "one number everywhere": lambda t: t[:1, :1, :1].expand(3, 2, 2),
    "one number of many": lambda t: t.reshape(-1)[::72],
}


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_every_range_of_a_strided_tensor(view):
    tensor = view(draw(3, 4, 6))
    checkpoint = open_checkpoint({"w": tensor})
    flat = tensor.reshape(-1)
    assert_same(checkpoint.read("w"), tensor)
    for start in range(len(flat)):
        for stop in (start, start + 1, start + 7, len(flat)):
            found = checkpoint.read_range("w", start, min(stop, len(flat)))
            assert found.stride() == (1,)
            assert_same(found, flat[start:stop])


def with_flags(array):
    """Return records of a number and a flag, whose fields lie 5 bytes apart."""
    records = np.zeros(array.shape, dtype=[("w", array.dtype), ("flag", np.int8)])
    records["w"] = array
    return records


def read_only(array):
    array.flags.writeable = False
    return array


ARRAYS = {
    "plain": lambda a: a,
    "read-only": read_only,
    "big-endian": lambda a: a.astype(">f4"),
    "negative strides": lambda a: a[::-1, ::-1],
    "every second column": lambda a: a[:, ::2],
    "transposed": lambda a: a.T,
    "one number": lambda a: a[1, 2],
    "read-only negative big-endian": lambda a: read_only(a.astype(">f4")[::-1]),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view("<f4").reshape(a.shape),
    "field of records": lambda a: with_flags(a)["w"],
    "double": lambda a: a.astype(np.float64),
    "half": lambda a: a.astype(np.float16),
}


@pytest.mark.parametrize("change", ARRAYS.values(), ids=ARRAYS)
def test_arrays(change):
    array = change(draw(4, 6).numpy().copy())
    checkpoint = open_checkpoint({"w": array})
    native = np.array(array, dtype=np.dtype(array.dtype).newbyteorder("="), order="C")
    assert_same(checkpoint.read("w"), torch.from_numpy(native))
    assert_same(checkpoint.read_range("w", 1, native.size), torch.from_numpy(native.reshape(-1)[1:]))


def test_mapped_arrays_are_not_copied_and_stay_tied(tmp_path):
    np.save(tmp_path / "w.npy", draw(4, 6).numpy())
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
    checkpoint = open_checkpoint({"a": mapped, "b": mapped})
    assert_tied(checkpoint, draw(4, 6), "a", "b")
    assert checkpoint.read("a").data_ptr() == mapped.ctypes.data


def test_module_with_tied_weights():
    module = Tied()
    checkpoint = open_checkpoint(module)
    assert (checkpoint.name, checkpoint.source) == ("model", "Tied")
    assert_tied(checkpoint, module.embed.weight.detach(), "embed.weight", "head.weight")
    assert not checkpoint.read("head.bias").requires_grad


BAD_VALUES = {
    "mapping": ({"w": 1.0}, "inner: 'w' is a dict, not a tensor or array; for several models"),
    "number": (3, "inner: 'w' is a int, not a tensor"),
    "complex": (torch.ones(2, dtype=torch.complex64), "tensor 'w' is complex"),
    "complex array": (np.ones(2, np.complex64), "tensor 'w' is complex"),
    "text": (np.array(["a"]), "'w' has dtype <U1"),
    "objects": (np.array([None]), "'w' has dtype object"),
    "sparse": (torch.eye(3).to_sparse(), "'w' is a sparse"),
    "meta": (torch.ones(2, device="meta"), "'w' is a sparse, nested, quantised or meta tensor"),
    "nested": (torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "'w' is a sparse, nested"),
}


@pytest.mark.parametrize(("value", "says"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_that_are_no_tensors(value, says):
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint({"w": value}, "inner")


@pytest.mark.parametrize("source", [{}, torch.nn.ReLU()], ids=["mapping", "module"])
def test_nothing_in_memory(source):
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_checkpoint(source)
