"""Merged files: they look like the base, are written whole or not at all, and carry a record; bad input is refused."""

import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model

import mergekern
from mergekern import METHODS
from mergekern.checkpoints import writer
from mergekern.errors import MergekernError, NonFiniteError, OptionError, OutputError
from tests.merging.zoos import BUFFERS, SHAPES, assert_equal, drawn, first, fitting
from tests.support.checkpoint_files import write_shards


def merge(zoo, output, method="ties", **how):
    models = sorted(zoo.glob("model_*"))
    return mergekern.merge(models, next(zoo.glob("base*")), method, output=output, **how)


def test_a_file_like_the_base(zoo, tmp_path):
    out = tmp_path / "out.safetensors"
    expected = merge(zoo, None)
    assert merge(zoo, out, max_memory=200) == out
    assert_equal(load_file(out), expected)
    for name, buffer in BUFFERS.items():
        assert torch.equal(expected[name], buffer)
    with safe_open(out, "pt") as file, safe_open(tmp_path / "base.safetensors", "pt") as base:
        metadata = file.metadata()
        assert list(file.keys()) == list(base.keys())
    record = json.loads(metadata.pop("mergekern"))
    assert metadata == {"format": "pt", "author": "someone"}
    assert json.loads((tmp_path / "out.mergekern.json").read_text()) == record
    assert record["method"] == "ties"
    options = {"density": 0.2, "scale": 0.3, "scope": "tensor", "aggregate": "mean", "sign": "mass"}
    assert record["options"] == options
    hashes = mergekern.compute_all(sorted(zoo.glob("model_*")), zoo / "base.safetensors").provenance["content_hashes"]
    assert record["base"] == hashes["base"]
    assert [(m["name"], m["hash"], m["weight"]) for m in record["models"]] == [
        (name, hashes[name], 1.0) for name in ("model_0", "model_1")
    ]
    assert sorted(path.name for path in zoo.iterdir() if "out" in path.name) == [
        "out.mergekern.json",
        "out.safetensors",
    ]


def test_dtype(zoo, tmp_path):
    out = tmp_path / "out.safetensors"
    merge(zoo, out, dtype="bfloat16")
    for name, tensor in merge(zoo, None).items():
        assert torch.equal(load_file(out)[name], tensor.bfloat16() if name in SHAPES else tensor)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors_stay_tied(tmp_path):
    torch.manual_seed(0)
    base, first, second = (Tied() for _ in range(3))
    merged = mergekern.merge([first, second], base, "weight_average")
    assert merged.keys() == base.state_dict().keys()
    assert merged["embed.weight"].data_ptr() == merged["head.weight"].data_ptr()
    for name, model in (("base", base), ("model_0", first), ("model_1", second)):
        save_model(model, tmp_path / f"{name}.safetensors")
    out = tmp_path / "out.safetensors"
    merge(tmp_path, out, "weight_average")
    loaded = Tied()
    from safetensors.torch import load_model

    load_model(loaded, out)
    assert torch.equal(loaded.head.weight, merged["head.weight"])
    with safe_open(out, "pt") as file:
        assert len(list(file.keys())) == 1


def test_ties_that_a_model_undid_are_undone(tmp_path):
    shared = torch.ones(3)
    base = {"embed": shared, "head": shared}
    first, second = {"embed": torch.zeros(3), "head": torch.full((3,), 5.0)}, {"embed": shared + 1, "head": shared + 2}
    out = tmp_path / "out.safetensors"
    mergekern.merge([first, second], base, "weight_average", output=out)
    assert load_file(out)["embed"].tolist() == [1.0] * 3
    assert load_file(out)["head"].tolist() == [4.0] * 3


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_sharded_folder(tmp_path, kind):
    base, tuned = drawn(2, SHAPES)
    for name, tensors in {"base": base, **tuned}.items():
        shards = {f"s-1.{kind}": {"a": tensors["a"]}, f"s-2.{kind}": {n: tensors[n] for n in ("b", "c")}}
        index = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}[kind]
        folder = write_shards(tmp_path / name, shards, save_file if kind == "safetensors" else torch.save, index)
        (folder / "config.json").write_text('{"model_type": "none"}')
        (folder / "tokenizer.json").write_text(f'"{name}"')
        (folder / "tf_model.h5").write_text("weights of another format")
    out = tmp_path / "out"
    mergekern.merge([tmp_path / n for n in tuned], tmp_path / "base", "ties", output=out)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "mergekern.json", "model.safetensors.index.json", "s-1.safetensors", "s-2.safetensors",
        "tokenizer.json",
    ]  # fmt: skip
    assert (out / "tokenizer.json").read_text() == '"base"'
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": "s-1.safetensors", "b": "s-2.safetensors", "c": "s-2.safetensors"}
    assert index["metadata"]["total_size"] == 4 * (48 + 6 + 30)
    expected = mergekern.merge(tuned, base, "ties")
    assert_equal(load_file(out / "s-1.safetensors") | load_file(out / "s-2.safetensors"), expected)
    with pytest.raises(OutputError, match="overwrite=True"):
        mergekern.merge([tmp_path / n for n in tuned], tmp_path / "base", "ties", output=out)
    mergekern.merge([tmp_path / n for n in tuned], tmp_path / "base", "weight_average", output=out, overwrite=True)
    assert json.loads((out / "mergekern.json").read_text())["method"] == "weight_average"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("config", [False, True], ids=["bare", "Hugging Face"])
def test_the_name_says_whether_shards_become_a_file_or_a_folder(tmp_path, config):
    base, tuned = drawn(2, SHAPES)
    for name, tensors in {"base": base, **tuned}.items():
        shards = {"s-1.safetensors": {"a": tensors["a"]}, "s-2.safetensors": {n: tensors[n] for n in ("b", "c")}}
        folder = write_shards(tmp_path / name, shards)
        if config:
            (folder / "config.json").write_text("{}")
    models, expected = [tmp_path / name for name in tuned], mergekern.merge(tuned, base, "ties")
    file = mergekern.merge(models, tmp_path / "base", "ties", output=tmp_path / "out.safetensors")
    assert_equal(load_file(file), expected)
    folder = mergekern.merge(models, tmp_path / "base", "ties", output=tmp_path / "out")
    assert_equal(load_file(folder / "s-1.safetensors") | load_file(folder / "s-2.safetensors"), expected)
    assert {path.name for path in folder.iterdir()} == {
        "s-1.safetensors", "s-2.safetensors", "model.safetensors.index.json", "mergekern.json",
        *(["config.json"] if config else []),
    }  # fmt: skip
    before = content(tmp_path)
    with pytest.raises(OutputError, match=r"shard of 'model_0'"):
        mergekern.merge(models, tmp_path / "base", "ties", output=models[0] / "s-1.safetensors", overwrite=True)
    assert content(tmp_path) == before


def test_a_folder_can_be_merged_into_a_file(tmp_path):
    base, tuned = drawn(2, SHAPES)
    folders_of(tmp_path, {"base": base, **tuned})
    out = merge(tmp_path, tmp_path / "out.safetensors")
    assert_equal(load_file(out), mergekern.merge(tuned, base, "ties"))


def folders_of(place, tensors_of):
    for name, tensors in tensors_of.items():
        (place / name).mkdir()
        save_file(tensors, place / name / "model.safetensors")
        (place / name / "config.json").write_text("{}")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED = {
    "method": (OptionError, "did you mean 'ties'", {"method": "tise"}),
    "capitals": (OptionError, "did you mean 'ties'", {"method": "TIES"}),
    "one weight": (OptionError, "a number for each model", {"weights": 0.5}),
    "option": (OptionError, "did you mean 'density'", {"options": {"densty": 0.1}}),
    "value": (OptionError, "density must be above 0 and at most 1", {"options": {"density": 0.0}}),
    "scope": (OptionError, "'tensor' or 'model'", {"options": {"scope": "layer"}}),
    "seed": (OptionError, "whole number", {"method": "dare", "options": {"seed": 0.5}}),
    "dtype": (OptionError, "did you mean 'float32'", {"dtype": "flaot32"}),
    "device": (OptionError, "device 'cuda:7' cannot be used", {"device": "cuda:7"}),
    "weight": (OptionError, "did you mean 'model_", {"weights": {"model_O": 1}}),
    "weights": (OptionError, "3 weights for 2 models", {"weights": [1, 2, 3]}),
    "negative": (OptionError, "must be above 0", {"weights": [1, -1]}),
    "no weight": (OptionError, "must be above 0", {"weights": [0, 0]}),
    "budget": (OptionError, "does not hold one element", {"max_memory": 3}),
}


@pytest.mark.parametrize(("error", "says", "how"), REFUSED.values(), ids=REFUSED)
def test_bad_options(zoo, tmp_path, error, says, how):
    before = content(tmp_path)
    with pytest.raises(MergekernError, match=says) as caught:
        merge(zoo, tmp_path / "out.safetensors", **how)
    assert type(caught.value) is error
    assert content(tmp_path) == before


def test_help_shows_every_argument(zoo, tmp_path):
    before = content(tmp_path)
    for function in (mergekern.merge, mergekern.merge_all, mergekern.mergekit_config):
        parameters = inspect.signature(function).parameters.values()
        assert not any(parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in parameters)
        described = inspect.getdoc(function).partition("Args:")[2].partition("Returns:")[0]
        assert all(re.search(rf"\b{parameter.name}\b.*:", described) for parameter in parameters)
    with pytest.raises(TypeError, match="'weight'"):
        merge(zoo, tmp_path / "out.safetensors", weight=[1, 2])
    assert content(tmp_path) == before


def test_tensors_with_any_strides(tmp_path):
    shapes = {"transposed": (6, 8), "steps": (5,), "same": (3, 4), "one": (1,)}
    base, tuned = drawn(2, shapes)
    tuned["model_0"]["same"] = torch.full((3, 4), 2.0)
    base |= {"ids": torch.arange(4), "count": torch.tensor([3])}

    def strided(model):
        values = {name: tensor.clone() for name, tensor in model.items()}
        values["transposed"] = model["transposed"].T.contiguous().T
        values["steps"], values["one"] = (model[name].repeat_interleave(2)[::2] for name in ("steps", "one"))
        if "count" in model:
            values["ids"], values["count"] = (model[name].repeat_interleave(2)[::2] for name in ("ids", "count"))
        elif not model["same"].std():
            values["same"] = model["same"][0, 0].expand(3, 4)
        return values

    for method in METHODS:
        some = first(tuned, fitting(method, 2))
        found = mergekern.merge(
            {name: strided(model) for name, model in some.items()}, strided(base), method,
            output=tmp_path / f"{method}.safetensors",
        )  # fmt: skip
        assert_equal(load_file(found), mergekern.merge(some, base, method))


def test_numbers_of_numpy_and_torch(zoo, tmp_path):
    expected = merge(zoo, None, "dare", options={"rate": 0.5, "seed": 3}, weights=[1, 2])
    for weights in (np.array([1, 2]), np.array([1, 2], np.float32), torch.tensor([1, 2])):
        out = merge(
            zoo, tmp_path / "out.safetensors", "dare", weights=weights, overwrite=True,
            options={"rate": np.float32(0.5), "seed": np.int64(3)},
        )  # fmt: skip
        assert_equal(load_file(out), expected)


@pytest.mark.parametrize(
    ("name", "says"),
    [("out.pt", ".safetensors"), ("nowhere/out.safetensors", "does not exist"), ("model_0.safetensors", "itself"),
     ("there.safetensors", "overwrite=True")],
)  # fmt: skip
def test_bad_outputs(zoo, tmp_path, name, says):
    (tmp_path / "there.safetensors").write_text("something")
    before = content(tmp_path)
    with pytest.raises(OutputError, match=says):
        merge(zoo, tmp_path / name)
    assert content(tmp_path) == before


def test_folders_of_others_are_not_replaced(tmp_path):
    base, tuned = drawn(2, SHAPES)
    folders_of(tmp_path, {"base": base, **tuned})
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/notes").touch()
    with pytest.raises(OutputError, match=r"only what mergekern wrote"):
        merge(tmp_path, tmp_path / "precious", overwrite=True)


def test_what_somebody_added_to_a_merged_folder_is_not_removed(tmp_path):
    base, tuned = drawn(2, SHAPES)
    folders_of(tmp_path, {"base": base, **tuned})
    out = merge(tmp_path, tmp_path / "out")
    (out / "results.csv").touch()
    with pytest.raises(OutputError, match=r"holds results.csv, which mergekern did not write"):
        merge(tmp_path, out, "tsv", overwrite=True)
    (out / "results.csv").unlink()
    (out / ".DS_Store").touch()
    merge(tmp_path, out, "tsv", overwrite=True)


def test_an_empty_folder_may_be_replaced(tmp_path):
    base, tuned = drawn(2, SHAPES)
    folders_of(tmp_path, {"base": base, **tuned})
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="overwrite=True"):
        merge(tmp_path, tmp_path / "out")
    merge(tmp_path, tmp_path / "out", overwrite=True)
    assert_equal(load_file(tmp_path / "out/model.safetensors"), mergekern.merge(tuned, base, "ties"))


@pytest.mark.parametrize("method", ["ties", "weight_average", "tsv", "dare"])
@pytest.mark.parametrize("where", ["b", "a"])
def test_non_finite_weights(zoo, tmp_path, method, where):
    spoilt = load_file(zoo / "model_1.safetensors")
    spoilt[where].view(-1)[2] = float("nan")
    save_file(spoilt, zoo / "model_1.safetensors")
    before = content(tmp_path)
    with pytest.raises(NonFiniteError, match=f"'{where}' holds NaN or infinite values: 1 in 'model_1'"):
        merge(zoo, tmp_path / "out.safetensors", method)
    assert content(tmp_path) == before


@pytest.mark.parametrize("there", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_leaves_what_was_there(zoo, tmp_path, monkeypatch, there, call):
    out = tmp_path / "out.safetensors"
    if there:
        merge(zoo, out, "weight_average")
    before = content(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.os, call, full)
    with pytest.raises(OutputError, match="No space left"):
        merge(zoo, out, overwrite=True)
    assert content(tmp_path) == before


def test_a_kill_leaves_what_was_there(zoo, tmp_path):
    out = tmp_path / "out.safetensors"
    merge(zoo, out, "weight_average")
    old = out.read_bytes()
    program = f"""
import os, signal, mergekern
def stop(progress):
    if progress.tensors_done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
mergekern.merge({[str(p) for p in sorted(zoo.glob("model_*"))]}, {str(zoo / "base.safetensors")!r}, "ties",
                output={str(out)!r}, overwrite=True, progress=stop)
"""
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert out.read_bytes() == old


def test_float16_beyond_its_range(tmp_path):
    base, model = {"w": torch.zeros(2).half()}, {"w": torch.full((2,), 60000.0).half()}
    with pytest.raises(OptionError, match="beyond the range of float16"):
        mergekern.merge([model, {"w": model["w"]}], base, "task_arithmetic", options={"scale": 1.0})
