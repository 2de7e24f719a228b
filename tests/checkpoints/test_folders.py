"""Hugging Face folders: one file, shards and their index, names."""

import json

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from mergekern.checkpoints import open_checkpoint
from mergekern.errors import CheckpointError
from tests.checkpoints.tied import Tied, assert_tied
from tests.support.checkpoint_files import assert_same, draw, write_shards

IO = ("mmap", "pread")


@pytest.mark.parametrize("io", IO)
def test_folder_with_one_file(tmp_path, io):
    save_file({"w": draw(3, 2)}, tmp_path / "model.safetensors")
    torch.save({"w": draw(3, 2, seed=1)}, tmp_path / "pytorch_model.bin")  # safetensors goes first
    checkpoint = open_checkpoint(tmp_path, io=io)
    assert checkpoint.name == tmp_path.name
    assert_same(checkpoint.read("w"), draw(3, 2))


@pytest.mark.parametrize("io", IO)
def test_shards_are_those_of_the_index(tmp_path, io):
    first, second = {"w": draw(3, 2), "ids": torch.arange(4)}, {"v": draw(5, seed=1)}
    shards = {"model-1.safetensors": first, "model-2.safetensors": second}
    folder = write_shards(tmp_path / "hf", shards)
    # A shard left over from something else; opening it would raise.
    (folder / "model-3.safetensors").write_bytes(b"not to be read")
    checkpoint = open_checkpoint(folder, io=io)
    assert list(checkpoint.tensors) == ["w", "v"]
    assert checkpoint.buffers == ["ids"]
    assert_same(checkpoint.read("w"), first["w"])
    assert_same(checkpoint.read_range("w", 1, 5), first["w"].view(-1)[1:5])
    assert_same(checkpoint.read_columns("w", 1, 2), first["w"][:, 1:2])
    assert_same(checkpoint.read("v"), second["v"])


@pytest.mark.parametrize("home", ["model-1.safetensors", "model-2.safetensors"])
def test_the_index_decides_between_two_copies(tmp_path, home):
    shards = {f"model-{i}.safetensors": {"w": draw(4, seed=i), f"own_{i}": draw(1)} for i in (1, 2)}
    checkpoint = open_checkpoint(write_shards(tmp_path / "hf", shards, w=home))
    assert_same(checkpoint.read("w"), shards[home]["w"])


def test_tied_weights_in_shards(tmp_path):
    module = Tied()
    folder = write_shards(tmp_path / "hf", {"model-1.safetensors": {"head.bias": module.head.bias.detach()}})
    embed = torch.nn.ModuleDict({"embed": module.embed, "head": torch.nn.Linear(3, 5, bias=False)})
    embed["head"].weight = module.embed.weight
    safetensors.torch.save_model(embed, str(folder / "model-2.safetensors"))
    index = {"head.bias": "model-1.safetensors", "embed.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    checkpoint = open_checkpoint(folder)
    assert_tied(checkpoint, module.embed.weight.detach(), "embed.weight", "head.weight")


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_pytorch_model_bin(tmp_path, sharded):
    tensors = {"w": draw(3, 2), "v": draw(4, seed=1)}
    folder = tmp_path / "hf"
    if sharded:
        shards = {f"pytorch_model-{name}.bin": {name: tensor} for name, tensor in tensors.items()}
        write_shards(folder, shards, torch.save, "pytorch_model.bin.index.json")
    else:
        folder.mkdir()
        torch.save(tensors, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert_same(checkpoint.read(name), tensor)


BAD_INDICES = {
    "missing shard": ({"x": "model-9.safetensors"}, r"model-9\.safetensors: no such file"),
    "missing tensor": ({"x": "model-1.safetensors"}, r"lists \['x'\], which its shards do not hold"),
    "tensor of another shard": ({"w": "model-2.safetensors"}, r"lists \['w'\], which its shards do not hold"),
    "path traversal": ({"x": "../outside.safetensors"}, "shard names must be plain file names"),
    "absolute path": ({"x": "/model.safetensors"}, "shard names must be plain file names"),
    "parent folder": ({"x": ".."}, r"\.\.: no such file"),
    "itself": ({"x": ""}, "no such file"),
    "a folder": ({"x": "inner"}, "inner: no such file"),
    "the index": ({"x": "model.safetensors.index.json"}, r"index\.json: unknown suffix"),
    "too long": ({"x": "x" * 300}, "cannot be read .*File name too long"),
    "not a name": ({"x": 3}, "not a usable shard index"),
    "not hashable": ({"x": []}, "not a usable shard index"),
}


@pytest.mark.parametrize(("more", "says"), BAD_INDICES.values(), ids=BAD_INDICES)
def test_bad_index(tmp_path, more, says):
    shards = {"model-1.safetensors": {"w": draw(2)}, "model-2.safetensors": {"v": draw(2)}}
    folder = write_shards(tmp_path / "hf", shards, **more)
    # The files that a bad index names exist, so that only the check of the index can refuse them.
    (folder / "inner").mkdir()
    for file in (tmp_path / "outside.safetensors", tmp_path / "model.safetensors", folder / "inner/model.safetensors"):
        save_file({"x": draw(1)}, file)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": null}', "{}", "[" * 100_000])
def test_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: not a usable shard index"):
        open_checkpoint(tmp_path)


def test_linked_folders_keep_their_names(tmp_path):
    # Model hubs keep a model in a folder named by a hash. The name that a user chose is that of the link.
    (tmp_path / "4f9a").mkdir()
    save_file({"w": draw(2)}, tmp_path / "4f9a" / "model.safetensors")
    (tmp_path / "mnist").symlink_to(tmp_path / "4f9a")
    assert open_checkpoint(tmp_path / "mnist").name == "mnist"
    assert open_checkpoint(tmp_path / "mnist" / ".").name == "mnist"
