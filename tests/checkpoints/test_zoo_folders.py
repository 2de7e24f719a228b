"""A folder of models: what of it is a model, what is named as none, and what needs no word."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import mergekern
from mergekern.checkpoints import open_checkpoint, open_zoo
from mergekern.checkpoints.zoo_sources import is_zoo_folder
from mergekern.errors import CheckpointError
from tests.support.checkpoint_files import assert_same, draw

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'3a' * 32}\nsize 98765\n"


def weights(seed=0):
    return {"w": draw(5, 4, seed=seed), "b": draw(4, seed=seed + 50)}


def model(folder, seed=0, file="model.safetensors"):
    """Write a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file(weights(seed), folder / file)
    return folder


def write(path, content=b"{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def zoo(tmp_path):
    """A folder of a base and two models."""
    for seed, name in enumerate(("base", "one", "two")):
        model(tmp_path / "zoo" / name, seed)
    return tmp_path / "zoo"


def trained_optimizer():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    return optimizer


def saved_optimizer(path, **how):
    torch.save(trained_optimizer().state_dict(), path, **how)


def saved_schedule(path):
    torch.save(torch.optim.lr_scheduler.StepLR(trained_optimizer(), 3).state_dict(), path)


def pipeline(path):
    write(path / "model_index.json")
    for part in ("unet", "vae"):
        model(path / part, file="diffusion_pytorch_model.safetensors")


# What is beside the models, by its name: how it is made, and what is said of it.
NO_MODELS = {
    "run/": (lambda p: [model(p / f"checkpoint-{n}") for n in (10, 20)], "2 folders in it are; give their paths, such"),
    "further/": (lambda p: model(p / "a" / "b"), "holds some further down, such as further/a/b"),
    "fsdp/": (lambda p: write(p / "pytorch_model_fsdp_0" / "__0_0.distcp"), "accelerate merge-weights"),
    "dcp/": (lambda p: write(p / "__0_0.distcp"), "shards of torch.distributed.checkpoint"),
    "deepspeed/": (lambda p: write(p / "global_step70" / "mp_rank_00_model_states.pt"), "zero_to_fp32.py"),
    "gguf/": (lambda p: [write(p / "config.json"), write(p / "m-Q5.gguf")], "give the checkpoint they were made from"),
    "pipeline/": (pipeline, "a pipeline of diffusers; give its parts one by one, such as pipeline/unet"),
    "onnx/": (lambda p: write(p / "model.onnx"), "weights of ONNX"),
    "keras/": (lambda p: write(p / "tf_model.h5"), "weights of Keras or TensorFlow"),
    "flax/": (lambda p: write(p / "flax_model.msgpack"), "weights of Flax"),
    "pointer/": (lambda p: write(p / "model.safetensors", POINTER), "model.safetensors in it is a Git LFS pointer"),
    "pointer_of_any_name/": (lambda p: write(p / "m.safetensors", POINTER), "its weights are a Git LFS pointer"),
    "pointer.safetensors": (lambda p: write(p, POINTER), "git lfs pull"),
    "several/": (lambda p: [model(p, file=f"{n}.safetensors") for n in "xy"], "2 files of weights; give their paths"),
    "half/": (lambda p: model(p, file="model-00001-of-00003.safetensors"), "1 of 3 shards"),
    "state/": (lambda p: write(p / "optimizer.bin"), "state of a training run"),
    "tokenizer/": (lambda p: [write(p / "tokenizer.json"), write(p / "merges.txt")], "a tokenizer without a model"),
    "runs/": (lambda p: write(p / "Mar03_10-20-30_host" / "events.out.tfevents.1"), "logs of a training run"),
    "logs/": (lambda p: write(p / "events.out.tfevents.1"), "logs of a training run"),
    "configured/": (lambda p: write(p / "config.json"), "a configuration without weights"),
    "notes/": (lambda p: [write(p / f"{n}.txt") for n in "abc"], r"no file of weights in it (a.txt, b.txt and 1 more)"),
    "empty/": (lambda p: p.mkdir(), "an empty folder"),
    "optimizer.pt": (lambda p: write(p), "state of a training run"),
    "rng_state_1.pth": (lambda p: write(p), "state of a training run"),
    "training_args.bin": (lambda p: write(p), "state of a training run"),
    "adam.pt": (saved_optimizer, "state of a training run"),
    "newer_adam.pt": (lambda p: saved_optimizer(p, pickle_protocol=4), "state of a training run"),
    "schedule.pt": (saved_schedule, "state of a training run"),
    "random.pt": (lambda p: torch.save({"cpu": torch.get_rng_state()}, p), "torch file without weights"),
    "model-00001-of-00002.safetensors": (lambda p: save_file(weights(), p), "one shard of a model"),
    "large.dat": (lambda p: write(p, bytes(2 << 20)), "a file of 2 MB of no known kind"),
    "dangling.safetensors": (lambda p: p.symlink_to("gone"), "a link to gone, where nothing is"),
    "circle": (lambda p: p.symlink_to("circle"), "a link to circle, where nothing is"),
    "pipe.safetensors": (os.mkfifo, "a pipe, socket or device"),
    "pipe.pt": (os.mkfifo, "a pipe, socket or device"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model_is_named(zoo, name):
    make, says = NO_MODELS[name]
    make(zoo / name.rstrip("/"))
    opened = open_zoo(zoo)
    assert opened.model_names == ("one", "two")
    assert len(opened.left_out) == 1
    assert opened.left_out[0].startswith(f"{name} is left out: ")
    assert says in opened.left_out[0]
    assert opened.left_out[0] in mergekern.compute_all(zoo, metrics="task_vector_cosine_similarity").notes


def test_side_files_need_no_word(zoo):
    for name in ("README.md", "trainer_state.json", "all_results.json", "LICENSE", ".gitattributes", "small.dat"):
        write(zoo / name)
    write(zoo / ".cache" / "model.safetensors")
    write(zoo / "scores.parquet", bytes(2 << 20))
    mergekern.compute_all(zoo, statistics=zoo / "kept", metrics="task_vector_cosine_similarity").save(zoo / "t.json")
    assert open_zoo(zoo).left_out == ()


def test_a_model_beside_a_manifest_is_a_model(zoo):
    write(model(zoo / "three", 3) / "manifest.json")
    write(zoo / "three" / "calibration.json")
    assert open_zoo(zoo).model_names == ("one", "three", "two")
    write(zoo / "foreign" / "manifest.json")
    assert open_zoo(zoo).left_out == ("foreign/ is left out: no file of weights in it (manifest.json)",)


def test_the_base_inside_a_run_is_no_model(zoo):
    folder = model(zoo / "run" / "checkpoint-0", 8)
    for base in (folder, folder / "model.safetensors"):
        assert open_zoo(zoo, base=base).model_names == ("one", "two")


def test_many_are_counted(zoo):
    for number in range(14):
        (zoo / f"empty_{number:02}").mkdir()
    table = mergekern.compute_all(zoo, metrics="task_vector_cosine_similarity")
    assert table.notes[9:] == ["empty_09/ is left out: an empty folder", "and 4 more files and folders are left out"]
    assert len(table.provenance["left_out"]) == 14


@pytest.mark.parametrize("state", [{"w": torch.ones(2)}, {"state": torch.ones(2), "param_groups": torch.ones(1)}])
def test_torch_files_of_weights_are_models(zoo, state):
    torch.save({**weights(3), **state}, zoo / "optimizer_of_mine.pt")
    assert "optimizer_of_mine" in open_zoo(zoo, on_mismatch="skip").model_names


def test_pickles_that_would_run_code_are_refused_and_not_left_out(zoo):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, ("harm",))

    torch.save(Harm(), zoo / "c.pt")
    with pytest.raises(CheckpointError, match=r"c\.pt: torch\.load\(weights_only=True\)"):
        open_zoo(zoo)


def test_a_run_with_one_checkpoint_is_a_model(zoo):
    model(zoo / "run" / "checkpoint-500", 7)
    write(zoo / "run" / "trainer_state.json")
    opened = open_zoo(zoo)
    assert opened.model_names == ("one", "run", "two")
    assert_same(opened.models[1].read("w"), weights(7)["w"])
    assert opened.notes == {"run": ["read from checkpoint-500/, the only model in the folder"]}
    assert not is_zoo_folder(zoo / "run")


def test_the_output_of_a_trainer_is_a_zoo(zoo, tmp_path):
    # https://github.com/huggingface/transformers/issues/29184 has such folders.
    out = model(tmp_path / "out", 5)
    for seed, step in enumerate((500, 1000)):
        saved_optimizer(model(out / f"checkpoint-{step}", 10 + seed) / "optimizer.pt")
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json"):
        write(out / name)
    write(out / "runs" / "events.out.tfevents.1")
    assert is_zoo_folder(out)
    opened = open_zoo(out, base=zoo / "base")
    assert opened.model_names == ("checkpoint-1000", "checkpoint-500", "out")
    for found, seed in zip(opened.models, (11, 10, 5), strict=True):
        assert_same(found.read("w"), weights(seed)["w"])
    assert opened.notes == {"out": ["the weights in the folder itself are this model"]}
    assert opened.left_out == ("runs/ is left out: logs of a training run",)
    assert open_checkpoint(out).notes == []
    assert open_zoo(out, base=out).model_names == ("checkpoint-1000", "checkpoint-500")


def test_modules_of_an_embedding_model_are_no_models(zoo, tmp_path):
    # https://github.com/huggingface/sentence-transformers/issues/3776: 2_Dense holds weights.
    folder = model(tmp_path / "embedding")
    model(folder / "2_Dense")
    write(folder / "modules.json", json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    assert not is_zoo_folder(folder)
    with pytest.raises(
        mergekern.MergekernError, match=r"1 model found .*2_Dense/ is left out: a module of the sentence-"
    ):
        open_zoo(folder, base=zoo / "base")


def test_a_file_of_a_usual_name_among_others_is_one_of_them(tmp_path):
    for seed, name in enumerate(("base", "model", "other")):
        save_file(weights(seed), tmp_path / f"{name}.safetensors")
    assert open_zoo(tmp_path).model_names == ("model", "other")
    assert is_zoo_folder(tmp_path)


def test_a_file_beside_the_weights_of_a_model_is_named(zoo, tmp_path):
    out = model(tmp_path / "out", 5)
    model(out / "checkpoint-7", 6)
    save_file(weights(8), out / "mine.safetensors")
    opened = open_zoo(out, base=zoo / "base")
    assert opened.model_names == ("checkpoint-7", "out")
    assert opened.left_out[0].startswith("mine.safetensors is left out: a file beside the weights of out")


@pytest.mark.parametrize("name", ["merged.safetensors", "merged"])
def test_merges_are_no_models_of_the_zoo_that_they_were_made_of(zoo, name):
    mergekern.merge(zoo, None, "weight_average", output=zoo / name)
    opened = open_zoo(zoo)
    assert opened.model_names == ("one", "two")
    assert f"{name}{'' if '.' in name else '/'} is left out: a merge that mergekern wrote" in opened.left_out[0]


def test_a_folder_of_merges_is_a_zoo(zoo, tmp_path):
    mergekern.merge_all(zoo, None, ["weight_average", "ties"], output=tmp_path / "out")
    folder = tmp_path / "merges"
    folder.mkdir()
    for method in ("weight_average", "ties"):
        for path in (tmp_path / "out" / method).iterdir():
            path.rename(folder / path.name.replace("one+two", method))
    assert open_zoo(folder, base=zoo / "base").model_names == ("ties", "weight_average")


def test_a_base_that_is_no_model_is_an_error(zoo):
    (zoo / "base" / "model.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"cannot be the base: model.safetensors in it is a Git LFS pointer"):
        open_zoo(zoo)
    assert open_zoo(zoo, base=weights()).model_names == ("one", "two")


def test_a_folder_without_models_says_what_it_holds(tmp_path):
    write(tmp_path / "x" / "model.onnx")
    with pytest.raises(CheckpointError, match=r"no checkpoints in it .*; x/ is left out: weights of ONNX"):
        open_zoo(tmp_path, base=weights())


ODD_PATHS = {"NUL": ("a\0b", "holds no NUL"), "bytes": ("caf\udce9.pt", r"caf\\xe9\.pt: the path is not valid UTF-8")}


@pytest.mark.parametrize(("path", "says"), ODD_PATHS.values(), ids=ODD_PATHS)
def test_paths_that_cannot_be(zoo, path, says):
    for call in (
        lambda: open_checkpoint(path),
        lambda: open_zoo(path),
        lambda: open_zoo(zoo, base=path),
        lambda: open_zoo([path, zoo / "one"], base=zoo / "base"),
        lambda: open_zoo({"a": path, "b": zoo / "one"}, base=zoo / "base"),
    ):
        with pytest.raises(CheckpointError, match=says):
            call()


def test_a_model_whose_name_is_not_utf8_is_refused(zoo):
    os.rename(zoo / "two", os.fsencode(zoo) + b"/tw\xf6")
    with pytest.raises(CheckpointError, match=r"tw\\xf6: the path is not valid UTF-8; rename"):
        open_zoo(zoo)


def test_a_side_file_whose_name_is_not_utf8_can_be_shown(zoo):
    (zoo / "empty").mkdir()
    os.rename(zoo / "empty", os.fsencode(zoo) + b"/l\xe4r")
    assert open_zoo(zoo).left_out == (r"l\xe4r/ is left out: an empty folder",)


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000], ids=["name", "path"])
def test_names_that_are_too_long(zoo, path):
    for call in (lambda: open_zoo(path), lambda: open_zoo([zoo / "one", path], base=zoo / "base")):
        with pytest.raises(CheckpointError, match=r"cannot be read .*File name too long|not a folder|no such file"):
            call()
