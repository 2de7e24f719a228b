"""Models of the Hugging Face Hub, read from a cache that the tests write. The network is not used."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import mergekern
from mergekern.checkpoints import open_checkpoint, open_zoo
from mergekern.errors import CheckpointError
from tests.support.checkpoint_files import assert_same, draw, write_shards

MAIN, OLD = "1" * 40, "a" * 40


def lay_out(cache, repository, commit, tensors, branch=None, save=save_file, file="model.safetensors"):
    """Write a model to a cache as the download of one commit does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    save(tensors, snapshot / file)
    if branch:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
    return snapshot


def weights(seed):
    return {"w": draw(12, 10, seed=seed), "b": draw(10, seed=seed + 100)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a base, two models, and an older commit of one of them; the Hub is offline."""
    cache = tmp_path / "cache"
    lay_out(cache, "org/base", MAIN, weights(0), "main")
    lay_out(cache, "org/one", MAIN, weights(1), "main")
    lay_out(cache, "org/one", OLD, weights(3), "v1.0")
    lay_out(cache, "else/two", MAIN, weights(2), "main")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return cache


def test_ids_are_checkpoints(cache):
    zoo = open_zoo(["org/one", "else/two"], base="org/base")
    assert zoo.model_names == ("one", "two")
    assert [checkpoint.origin for checkpoint in zoo.checkpoints] == [
        f"org/base@{MAIN}", f"org/one@{MAIN}", f"else/two@{MAIN}",
    ]  # fmt: skip
    for seed, checkpoint in enumerate(zoo.checkpoints):
        assert_same(checkpoint.read("w"), weights(seed)["w"])


@pytest.mark.parametrize("revision", ["v1.0", OLD])
def test_a_revision_is_pinned_to_its_commit(cache, revision):
    models = [f"org/one@{revision}", "org/one"]
    table = mergekern.compute_all(models, "org/base", device="cpu")
    assert table.models == (f"one@{revision}", "one")
    assert table.provenance["origins"] == {
        "base": f"org/base@{MAIN}", f"one@{revision}": f"org/one@{OLD}", "one": f"org/one@{MAIN}",
    }  # fmt: skip
    assert_same(open_checkpoint(models[0]).read("w"), weights(3)["w"])


def test_files_have_no_origin(tmp_path):
    save_file(weights(1), tmp_path / "one.safetensors")
    table = mergekern.compute_all([tmp_path / "one.safetensors", weights(2)], weights(0), device="cpu")
    assert "origins" not in table.provenance


def test_a_path_of_that_name_comes_first(cache, tmp_path):
    (tmp_path / "org" / "one").mkdir(parents=True)
    save_file(weights(7), tmp_path / "org" / "one" / "model.safetensors")
    checkpoint = open_checkpoint("org/one")
    assert checkpoint.origin is None
    assert_same(checkpoint.read("w"), weights(7)["w"])


def test_shards_adapters_and_torch_files(cache):
    write_shards(cache / "s", {"model-1.safetensors": {"w": draw(3)}, "model-2.safetensors": {"b": draw(2)}})
    folder = cache / "models--org--sharded"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(MAIN)
    (folder / "snapshots").mkdir()
    (cache / "s").rename(folder / "snapshots" / MAIN)
    assert_same(open_checkpoint("org/sharded").read("b"), draw(2))

    factors = {"q.lora_A.weight": draw(2, 10), "q.lora_B.weight": draw(12, 2)}
    named = {f"base_model.model.{name}": values for name, values in factors.items()}
    snapshot = lay_out(cache, "org/lora", MAIN, named, "main", file="adapter_model.safetensors")
    (snapshot / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    assert_same(open_checkpoint("org/lora").factors("q.weight").left, factors["q.lora_B.weight"])

    for name in ("diffusion_pytorch_model", "consolidated"):
        lay_out(cache, f"org/{name}", MAIN, weights(6), "main", file=f"{name}.safetensors")
        assert_same(open_checkpoint(f"org/{name}").read("w"), weights(6)["w"])

    lay_out(cache, "org/old", MAIN, weights(5), "main", save=torch.save, file="pytorch_model.bin")
    assert_same(open_checkpoint("org/old").read("w"), weights(5)["w"])


def test_pickles_are_not_executed(cache, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    lay_out(cache, "org/bad", MAIN, {"w": Harm()}, "main", save=torch.save, file="pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"weights_only=True.* never executes pickled code"):
        open_checkpoint("org/bad")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("identifier", ["org/none", "org/one@v2", f"org/one@{'b' * 40}", "zoo/mnist"])
def test_what_is_not_in_the_cache(cache, identifier):
    with pytest.raises(
        CheckpointError,
        match=f"^{identifier}: no such file or folder, and as a model of the Hugging Face Hub it cannot",
    ) as error:
        open_checkpoint(identifier)
    assert "offline, only what an earlier download left in the cache is there" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["zoo/a.safetensors", "./org/none", "none", "a/b/c"])
def test_other_paths_are_paths(cache, path):
    with pytest.raises(CheckpointError, match=r"no such file or folder$"):
        open_checkpoint(path)


def test_without_huggingface_hub(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r'^org/one: no such file or folder; .* pip install "mergekern\[hub\]"$'):
        open_checkpoint("org/one")


def test_offline_by_environment(cache, tmp_path):
    code = (
        "import mergekern; options = mergekern.MeasureOptions(device='cpu'); "
        "print(mergekern.measure(['org/one', 'else/two'], 'org/base', options).inner[0, 1])"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    models = {"one": weights(1), "two": weights(2)}
    assert (
        float(done.stdout) == mergekern.measure(models, weights(0), mergekern.MeasureOptions(device="cpu")).inner[0, 1]
    )


def test_recipes_name_models_and_revisions(cache):
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("org/one@v1.0", "else/two")]
    found = mergekern.merge_recipe({"merge_method": "linear", "models": models, "base_model": "else/two"})
    expected = (weights(3)["w"] + weights(2)["w"]) / 2
    torch.testing.assert_close(found["w"], expected)
