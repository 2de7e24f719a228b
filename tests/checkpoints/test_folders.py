"""Hugging Face folders: one file, shards and their index, names."""

import json
import os

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


# --- which file of a folder is the model


def holds(folder, seed, says=None):
    """Assert that a folder is opened as the tensor of a seed, with the note that is told."""
    checkpoint = open_checkpoint(folder)
    assert_same(checkpoint.read("w"), draw(3, 2, seed=seed))
    notes = [note for note in checkpoint.notes if "integer tensor" not in note]
    assert len(notes) == (says is not None)
    assert says is None or says in notes[0]
    return checkpoint


def put(folder, *files, config=None):
    """Write files of a folder, the tensor of each drawn from its place among them."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, file in enumerate(files):
        save = save_file if file.endswith(".safetensors") else torch.save
        save({"w": draw(3, 2, seed=seed)}, folder / file)
    if config:
        (folder / config).write_text("{}")
    return folder


def index_of(folder, *shards, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"weight_map": {f"w{i or ''}": shard for i, shard in enumerate(shards)}}))


@pytest.mark.parametrize("shards", ["there", "gone"])
@pytest.mark.parametrize("single", ["model.safetensors", "pytorch_model.bin"])
def test_one_file_is_read_and_not_the_index_left_beside_it(tmp_path, single, shards):
    # As transformers' from_pretrained does; https://github.com/huggingface/diffusers/issues/14719 is about the index.
    put(tmp_path, single, *(["model-00001-of-00001.safetensors"] if shards == "there" else []))
    index_of(tmp_path, "model-00001-of-00001.safetensors", name=f"{single}.index.json")
    holds(tmp_path, 0, f"{single} is read, as by transformers, not {single}.index.json beside it")


def test_an_index_of_safetensors_goes_before_a_torch_file(tmp_path):
    put(tmp_path, "pytorch_model.bin", "model-00001-of-00001.safetensors")
    index_of(tmp_path, "model-00001-of-00001.safetensors")
    holds(tmp_path, 1)


def test_diffusers_reads_an_index_whose_shards_are_there(tmp_path):
    name = "diffusion_pytorch_model"
    put(tmp_path, f"{name}.safetensors", f"{name}-00001-of-00001.safetensors")
    index_of(tmp_path, f"{name}-00001-of-00001.safetensors", name=f"{name}.safetensors.index.json")
    holds(tmp_path, 1, "as by diffusers, not diffusion_pytorch_model.safetensors beside it")
    (tmp_path / f"{name}-00001-of-00001.safetensors").unlink()
    holds(tmp_path, 0, "the shards of diffusion_pytorch_model.safetensors.index.json beside it are gone")


def test_missing_shards_are_one_error(tmp_path):
    put(tmp_path, "model-00002-of-00003.safetensors")
    index_of(tmp_path, *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)))
    with pytest.raises(
        CheckpointError, match=r"model-00001-of-00003\.safetensors: no such file; 2 of the 3 shards that"
    ):
        open_checkpoint(tmp_path)


ONLY_WEIGHTS = {
    "variant": ("model.fp16.safetensors", None),
    "torch variant": ("pytorch_model.bf16.bin", None),
    "variant of diffusers": ("diffusion_pytorch_model.fp16.safetensors", None),
    "as Mistral publishes": ("consolidated.safetensors", "params.json"),
    "as Meta publishes": ("consolidated.00.pth", "params.json"),
    "a shard of one": ("model-00001-of-00001.safetensors", None),
    "any name beside a configuration": ("mnist.safetensors", "config.json"),
    "a torch file beside a configuration": ("mnist.pt", "config.json"),
}


@pytest.mark.parametrize(("file", "config"), ONLY_WEIGHTS.values(), ids=ONLY_WEIGHTS)
def test_the_only_weights_of_a_folder(tmp_path, file, config):
    put(tmp_path, file, config=config)
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    note = f"1 shards such as {file}" if "-of-" in file else file
    holds(tmp_path, 0, f"read from {note}, the only weights in the folder")


def test_names_of_diffusers_need_no_note(tmp_path):
    holds(put(tmp_path, "diffusion_pytorch_model.safetensors"), 0)


def test_all_shards_of_a_set_without_an_index(tmp_path):
    put(tmp_path, "model-00001-of-00002.safetensors")
    save_file({"v": draw(4), "ids": torch.arange(3)}, tmp_path / "model-00002-of-00002.safetensors")
    checkpoint = holds(tmp_path, 0, "read from 2 shards such as model-00001-of-00002.safetensors")
    assert checkpoint.buffers == ["ids"]
    assert_same(checkpoint.read("v"), draw(4))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"it is 1 of 2 shards model-….safetensors; download the others"):
        open_checkpoint(tmp_path)


def test_a_variant_with_its_index(tmp_path):
    put(tmp_path, "model.fp16-00001-of-00001.safetensors")
    index_of(tmp_path, "model.fp16-00001-of-00001.safetensors", name="model.safetensors.index.fp16.json")
    holds(tmp_path, 0, "read from model.safetensors.index.fp16.json")


AMBIGUOUS = {
    "two variants": (["model.fp16.safetensors", "model.fp32.safetensors"], "2 files of weights; give their paths"),
    "cut for two devices": (["consolidated.00.pth", "consolidated.01.pth"], "2 parts of a model cut for as many"),
    "an adapter without configuration": (["adapter_model.safetensors"], "an adapter without adapter_config.json"),
}


@pytest.mark.parametrize(("files", "says"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_no_file_is_chosen_where_several_could_be_meant(tmp_path, files, says):
    put(tmp_path, *files, config="config.json")
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path)


def write_adapter(folder, scale=1.0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    factors = {"A": torch.full((1, 2), scale), "B": torch.ones(3, 1)}
    named = {f"base_model.model.q.lora_{side}.weight": values for side, values in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_beside_whole_weights(tmp_path):
    # PEFT and transformers apply the adapter: https://github.com/huggingface/transformers/pull/43781
    put(write_adapter(tmp_path), "model.safetensors", config="config.json")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["q.weight"]
    assert "the adapter is read, not model.safetensors beside it" in checkpoint.notes[0]
    assert_same(open_checkpoint(tmp_path / "model.safetensors").read("w"), draw(3, 2))
    (tmp_path / "adapter_model.safetensors").unlink()
    holds(tmp_path, 0)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs(tmp_path, file):
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0f' * 32}\nsize 438955776\n"
    (tmp_path / file).write_text(text)
    for path in (tmp_path, tmp_path / file):
        with pytest.raises(CheckpointError, match=r"a Git LFS pointer, .*run `git lfs pull`"):
            open_checkpoint(path)


def test_the_only_model_in_a_folder_stands_for_it(tmp_path):
    put(tmp_path / "run" / "checkpoint-40", "model.safetensors", config="config.json")
    (tmp_path / "run" / "logs").mkdir()
    assert holds(tmp_path / "run", 0, "read from checkpoint-40/, the only model in the folder").name == "run"
    write_adapter(tmp_path / "peft" / "my_adapter")
    assert list(open_checkpoint(tmp_path / "peft").tensors) == ["q.weight"]
    put(tmp_path / "run" / "checkpoint-50", "model.safetensors")
    with pytest.raises(CheckpointError, match="2 folders in it are; give their paths, such as run/checkpoint-40"):
        open_checkpoint(tmp_path / "run")


def test_a_folder_of_the_cache_of_a_hub(tmp_path):
    folder = tmp_path / "models--org--one"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        put(folder / "snapshots" / commit, *["other.safetensors"] * seed, "model.safetensors", config="config.json")
        (folder / "snapshots" / commit / "other.safetensors").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="a cache of the Hugging Face Hub with 2 commits; give a folder in its"):
        open_checkpoint(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)
    holds(folder, 1, f"read from snapshots/{'b' * 40}")


def test_a_configuration_that_is_a_pipe_is_not_waited_for(tmp_path):
    put(tmp_path, "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: not a usable configuration"):
        open_checkpoint(tmp_path)
