"""Configurations for mergekit: read as recipes, they give what the merges give."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file

import mergekern
from mergekern.cli import main
from tests.golden.mergekit import zoo

LORA = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("c@d+e")
    zoo.write(folder)
    draw = torch.Generator().manual_seed(0)
    for name in ("x", "y"):
        path = folder / "lora" / name
        path.mkdir(parents=True)
        sides = {"A": torch.randn(1, 32, generator=draw), "B": torch.randn(32, 1, generator=draw)}
        module = "base_model.model.model.layers.2.self_attn.q_proj"
        save_file(
            {f"{module}.lora_{side}.weight": each for side, each in sides.items()}, path / "adapter_model.safetensors"
        )
        (path / "adapter_config.json").write_text(json.dumps(LORA))
    return folder


def written(place, *arguments):
    """Return what the command writes, and what it says."""
    out = place / "config.yaml"
    line = ["merge", *map(str, arguments), "--mergekit-config", "--overwrite", "--out", str(out)]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 0, done.output
    return out, done.output


@pytest.mark.parametrize(
    ("method", "options", "weights"),
    [
        ("ties", {"density": 0.3, "scale": 0.7}, [[1.0, 0.2], {"mlp": [0, 1], "*": 0.4}]),
        ("linear", {"normalize": False}, [0.3, [0.9, 0.1]]),
        ("slerp", {}, [0.75, 0.25]),
        ("nuslerp", {"of": "deltas", "along": "columns"}, [0.4, 0.5]),
        ("model_stock", {"along": "rows", "clip": False}, None),
        ("task_arithmetic", {}, [-0.5, {"self_attn": 1, "*": 0.25}]),
    ],
)
def test_read_as_a_recipe_it_gives_the_same(place, method, options, weights):
    base, models = place / "tiny" / "base", [place / "tiny" / "code", place / "tiny" / "math"]
    arguments = [part for name, value in options.items() for part in ("-o", f"{name}={json.dumps(value)}")]
    arguments += ["--weights", json.dumps(weights)] if weights else []
    out, said = written(place, *models, "--base", base, "--method", method, *arguments)
    assert "mergekit-yaml" in said
    found = mergekern.merge_recipe(out)
    expected = mergekern.merge(models, base, method, options=options, weights=weights)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "options", "weights"),
    [
        ("linear", {}, [0.3, 0.9]),
        ("slerp", {"t": 0.3}, None),
        ("nuslerp", {"of": "models"}, [0.4, 0.5]),
        ("multislerp", {}, [1.0, [0.2, 0.6]]),
        ("karcher", {"max_iter": 20}, None),
    ],
)
def test_without_a_base(place, method, options, weights):
    models = [place / "tiny" / "code", place / "tiny" / "math"]
    arguments = [part for name, value in options.items() for part in ("-o", f"{name}={json.dumps(value)}")]
    arguments += ["--weights", json.dumps(weights)] if weights else []
    out, _ = written(place, *models, "--method", method, *arguments)
    content = yaml.safe_load(out.read_text())
    assert ("base_model" in content) == (method == "slerp")
    found = mergekern.merge_recipe(out)
    for name, tensor in mergekern.merge(models, method=method, options=options, weights=weights).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_method_of_task_vectors_needs_a_base(place):
    models = [str(place / "tiny" / "code"), str(place / "tiny" / "math")]
    refused = CliRunner().invoke(main, ["merge", *models, "--method", "ties", "--mergekit-config", "--out", "new.yaml"])
    assert "no base checkpoint" in refused.output
    assert not Path("new.yaml").exists()
    with pytest.raises(mergekern.OptionError, match="ties needs a base"):
        mergekern.mergekit_config(models, None, "ties")


def test_adapters_are_written_in_the_long_form(place):
    models, base = [place / "lora" / "x", place / "lora" / "y"], place / "tiny" / "base"
    out, said = written(place, *models, "--base", base, "--method", "task_arithmetic", "--dtype", "bfloat16")
    assert said.rstrip().splitlines()[-2].endswith("merged --lora-merge-cache lora-merge-cache")
    content = yaml.safe_load(out.read_text())
    assert content["models"][0]["model"] == {"model": {"path": str(base)}, "lora": {"path": str(models[0])}}
    assert (content["dtype"], content["out_dtype"]) == ("float32", "bfloat16")
    found = mergekern.merge_recipe(out)
    expected = mergekern.merge(models, base, "task_arithmetic", dtype="bfloat16")
    assert all(found[name].dtype == torch.bfloat16 for name in expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-7, atol=1e-7)


def test_models_of_the_hub_are_written_by_name_and_commit(place, tmp_path):
    folders = []
    for name in ("base", "code", "math"):
        folder = tmp_path / f"models--org--{name}" / "snapshots" / "abc123"
        folder.mkdir(parents=True)
        for file in (place / "tiny" / name).iterdir():
            (folder / file.name).symlink_to(file)
        folders.append(folder)
    os.rename(place / "config.yaml", tmp_path / "kept.yaml")
    out, said = written(place, *folders[1:], "--base", folders[0], "--method", "ties")
    content = yaml.safe_load(out.read_text())
    assert content["base_model"] == "org/base@abc123"
    assert [each["model"] for each in content["models"]] == ["org/code@abc123", "org/math@abc123"]
    assert f"mergekit-yaml {out} merged\n" in said


def test_what_mergekit_has_not(place):
    with pytest.raises(mergekern.OptionError, match=r"the pattern 'h\.\?\.w' is none"):
        mergekern.mergekit_config(["a", "b"], "base", "ties", weights=[1, {"h.?.w": 1, "*": 2}])
    line = ["merge", str(place / "tiny"), "--method", "ties", "--mergekit-config", "--exclude", "mlp"]
    refused = CliRunner().invoke(main, [*line, "--out", str(Path(place) / "new.yaml")])
    assert "cannot be written" in refused.output
