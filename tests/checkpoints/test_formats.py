"""Files of safetensors and of torch: every dtype, layout and tie is read to the last bit."""

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from mergekern.checkpoints import open_checkpoint
from mergekern.checkpoints.dtypes import FLOAT_NAMES
from mergekern.errors import CheckpointError
from tests.checkpoints.tied import Tied, assert_tied
from tests.support.checkpoint_files import assert_same, draw, entry, write_safetensors, write_shards

IO = ("mmap", "pread")
STORED = tuple(FLOAT_NAMES.values())


# --- safetensors


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_every_stored_dtype_is_read_bit_for_bit(tmp_path, dtype, io):
    tensor = draw(7, 5, dtype=dtype)
    tensor.view(-1)[:4] = torch.tensor([float("nan"), -0.0, 0.0, -1.5]).to(dtype)
    save_file({"w": tensor, "before": draw(3), "after": draw(2)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert checkpoint.tensors["w"].dtype == dtype
    assert_same(checkpoint.read("w"), tensor)
    assert_same(checkpoint.read_range("w", 3, 31), tensor.view(-1)[3:31])
    assert_same(checkpoint.read_columns("w", 1, 4), tensor[:, 1:4])


@pytest.mark.parametrize("io", IO)
def test_tensors_come_in_file_order(tmp_path, io):
    values = draw(6)
    header = {"late": entry("F32", [2], 16, 24), "early": entry("F32", [1], 0, 4), "middle": entry("F32", [3], 4, 16)}
    write_safetensors(tmp_path / "m.safetensors", header, values.numpy().tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert list(checkpoint.tensors) == ["early", "middle", "late"]
    for name, part in (("early", values[:1]), ("middle", values[1:4]), ("late", values[4:])):
        assert_same(checkpoint.read(name), part)


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_unaligned_data(tmp_path, io, padding):
    single, double = draw(3, 4), draw(2, dtype=torch.float64)
    header = {"flag": entry("U8", [1], 0, 1), "w": entry("F32", [3, 4], 1, 49), "d": entry("F64", [2], 49, 65)}
    text = json.dumps(header).encode() + b" " * padding
    write_safetensors(tmp_path / "m.safetensors", text, b"\7" + single.numpy().tobytes() + double.numpy().tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert_same(checkpoint.read("w"), single)
    assert_same(checkpoint.read("d"), double)
    assert_same(checkpoint.read_range("w", 5, 9), single.view(-1)[5:9])
    assert_same(checkpoint.read_columns("w", 2, 4), single[:, 2:4])


@pytest.mark.parametrize("io", IO)
def test_scalars_and_empty_tensors(tmp_path, io):
    # The odd byte puts the empty tensors at an offset where no float can begin.
    header = {
        "flag": entry("U8", [1], 0, 1),
        "empty": entry("F32", [0, 3], 1, 1),
        "hollow": entry("F32", [0, 1 << 62], 1, 1),
        "scalar": entry("F32", [], 1, 5),
    }
    write_safetensors(tmp_path / "m.safetensors", header, b"\0" + np.float32(2.5).tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert_same(checkpoint.read("scalar"), torch.tensor(2.5))
    assert_same(checkpoint.read("empty"), torch.empty(0, 3))
    assert checkpoint.read("hollow").shape == (0, 1 << 62)


def test_sizes_that_no_tensor_can_have_are_refused(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": entry("F32", [0, 1 << 63], 0, 0)})
    with pytest.raises(CheckpointError, match=r"m\.safetensors: tensor 'w' has the impossible shape \(0, 9223372036"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_integers_and_booleans_are_buffers(tmp_path):
    kinds = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
    tensors = {kind: torch.ones(3).to(getattr(torch, kind)) for kind in kinds}
    save_file({**tensors, "w": draw(2)}, tmp_path / "m.safetensors")
    for source in (tmp_path / "m.safetensors", {**tensors, "w": draw(2)}):
        checkpoint = open_checkpoint(source)
        assert list(checkpoint.tensors) == ["w"]
        assert sorted(checkpoint.buffers) == sorted(kinds)


def test_buffers_are_read_as_they_are(tmp_path):
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)
    buffers = {f"b{i}": torch.tensor([[0, 1], [2, 7]]).to(dtype) for i, dtype in enumerate(kinds)}
    buffers["scalar"] = torch.tensor(5)
    tensors = {"w": draw(3), **buffers}
    shards = {
        "a.safetensors": {"w": draw(3), "b0": buffers["b0"]},
        "b.safetensors": {k: buffers[k] for k in ("b1", "b5")},
    }
    save_file(tensors, tmp_path / "one.safetensors")
    torch.save(tensors, tmp_path / "one.pt")
    sources = [tensors, tmp_path / "one.pt", tmp_path / "one.safetensors"]
    opened = [open_checkpoint(source, io=io) for source in sources for io in ("mmap", "pread")]
    for checkpoint in (*opened, open_checkpoint(write_shards(tmp_path / "shards", shards))):
        assert set(checkpoint.buffers) <= set(buffers)
        for name in checkpoint.buffers:
            assert_same(checkpoint.read_buffer(name), buffers[name])
    assert len(checkpoint.buffers) == 3


@pytest.mark.parametrize("io", IO)
def test_aliases_that_save_model_declares(tmp_path, io):
    module = Tied()
    safetensors.torch.save_model(module, str(tmp_path / "m.safetensors"))
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert len(file.keys()) == 2  # The file itself holds the shared weight once.
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert set(checkpoint.tensors) == {"embed.weight", "head.weight", "head.bias"}
    assert_tied(checkpoint, module.embed.weight.detach(), "embed.weight", "head.weight")
    assert_same(checkpoint.read("head.bias"), module.head.bias.detach())


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"w": "w"}], ids=str)
def test_other_metadata_is_no_alias(tmp_path, metadata):
    header = {"__metadata__": metadata, "w": entry("F32", [1], 0, 4)}
    write_safetensors(tmp_path / "m.safetensors", header, np.float32(3).tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert list(checkpoint.tensors) == ["w"]
    assert_same(checkpoint.read("w"), torch.tensor([3.0]))


def test_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": draw(64)}, path)
    checkpoint = open_checkpoint(path, io="pread")
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(CheckpointError, match=rf"m\.safetensors: the file ended at byte {path.stat().st_size}"):
        checkpoint.read("w")


@pytest.mark.parametrize(("dtype", "size"), [("C64", 16), ("F8_E8M0", 2), ("F4", 1)])
def test_dtypes_that_are_not_supported(tmp_path, dtype, size):
    write_safetensors(tmp_path / "m.safetensors", {"w": entry(dtype, [2], 0, size)}, bytes(size))
    with pytest.raises(CheckpointError, match=r"m\.safetensors: tensor 'w' (is complex|has dtype F)"):
        open_checkpoint(tmp_path / "m.safetensors")


# --- torch files


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "state_dict"])
def test_torch_file(tmp_path, suffix, wrapped):
    tensors = {"w": draw(3, 2), "half": draw(4, dtype=torch.float16), "steps": torch.tensor(7)}
    torch.save({"state_dict": tensors, "epoch": 3} if wrapped else tensors, tmp_path / f"m{suffix}")
    checkpoint = open_checkpoint(tmp_path / f"m{suffix}")
    assert checkpoint.name == "m"
    assert list(checkpoint.tensors) == ["w", "half"]
    assert checkpoint.buffers == ["steps"]
    assert_same(checkpoint.read("w"), tensors["w"])
    assert_same(checkpoint.read_columns("w", 0, 1), tensors["w"][:, :1])
    assert_same(checkpoint.read_range("half", 1, 3), tensors["half"][1:3])


def test_shared_storage_is_tied_and_shifted_views_are_not(tmp_path):
    weight = draw(6, 4)
    tensors = {"a": weight, "b": weight, "part": weight[:3], "other": weight[3:], "copy": weight.clone()}
    torch.save(tensors, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert_tied(checkpoint, weight, "a", "b")
    assert len({tensor.storage for tensor in checkpoint.tensors.values()}) == 4
    assert_same(checkpoint.read("other"), weight[3:])


def test_parts_of_an_expanded_tensor_need_no_memory_for_all_of_it(tmp_path):
    torch.save({"w": torch.tensor([5.0]).expand(1 << 40)}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert_same(checkpoint.read_range("w", 1 << 39, (1 << 39) + 3), torch.full((3,), 5.0))
