"""Weights by layer and by name, and tensors that are left to the base."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.cli import main

NAMES = [*(f"h.{layer}.{part}.w" for layer in range(3) for part in ("attn", "mlp")), "head"]
BASE = dict.fromkeys(NAMES, torch.zeros(2))
MODELS = {"a": dict.fromkeys(NAMES, torch.ones(2)), "b": {name: torch.full((2,), 2.0) for name in NAMES}}


def merged(weights, method="task_arithmetic", **more):
    options = {"scale": 1.0} if method == "task_arithmetic" else {}
    found = mergekern.merge(MODELS, BASE, method, weights=weights, options=options, **more)
    return {name: tensor[0].item() for name, tensor in found.items()}


def test_gradients_and_patterns():
    found = merged({"a": [1.0, 0.0], "b": {"mlp": [0, 10, 20], "h.?.attn.w": 5, "*": -1}})
    assert found == {
        "h.0.attn.w": 11.0, "h.0.mlp.w": 1.0, "h.1.attn.w": 10.5, "h.1.mlp.w": 20.5, "h.2.attn.w": 10.0,
        "h.2.mlp.w": 40.0, "head": -1.0,
    }  # fmt: skip
    assert merged([[2, 2], 3]) == merged([2, 3])


@pytest.mark.parametrize("method", ["slerp", "ties", "tsv", "weight_average"])
def test_each_tensor_is_merged_as_with_its_weights_alone(method):
    draw = torch.Generator().manual_seed(0)
    base, *states = ({name: torch.randn(4, 3, generator=draw) for name in NAMES} for _ in range(3))
    models = dict(zip("ab", states, strict=True))
    weights = {"a": [1.0, 0.25], "b": {"attn": 0.5, "*": [0.5, 1.5]}}
    found = mergekern.merge(models, base, method, weights=weights)
    of_both = {"h.1.attn.w": (0.625, 0.5), "h.2.mlp.w": (0.25, 1.5), "head": (1.0, 0.5)}
    for name, plain in of_both.items():
        assert torch.equal(found[name], mergekern.merge(models, base, method, weights=plain)[name])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"a": 1, "b": {"mlp": 1}}, r"no weight of 'b' for tensor 'h.0.attn.w'; add the pattern '\*'"),
        ({"a": 1, "b": {"mpl": 1, "*": 1}}, "the pattern 'mpl' is the first to fit for no tensor"),
        ({"a": 1, "b": [1, float("nan")]}, "finite number, not nan"),
        ({"a": 1, "b": {}}, "one pattern at least"),
        ({"a": 1, "b": "1"}, "finite number, not '1'"),
    ],
)
def test_weights_that_cannot_be(weights, says):
    with pytest.raises(mergekern.OptionError, match=says):
        merged(weights)


def test_weights_of_a_mean_are_checked_for_every_tensor():
    with pytest.raises(mergekern.OptionError, match="must not be negative, and one must be above 0"):
        merged({"a": [1, 0], "b": [1, 0]}, "weight_average")


def test_only_and_exclude():
    found = merged(None, only=["h.1", "head"], exclude="attn")
    assert {name for name, value in found.items() if value} == {"h.1.mlp.w", "head"}
    # Gradients go over all layers, merged or not.
    assert merged({"a": [0, 1], "b": 0}, only="h.1")["h.1.mlp.w"] == 0.5
    for wrong in ({"only": "hed"}, {"exclude": ["head", "*.mlp"]}):
        with pytest.raises(mergekern.OptionError, match=r"no tensor has '(hed|\*.mlp)' in its name"):
            merged(None, **wrong)


def test_the_command_and_its_record(tmp_path):
    for name, state in {"base": BASE, **MODELS}.items():
        save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / f"{name}.safetensors")
    out = tmp_path / "out.safetensors"
    weights = '{"a": [1, 0], "b": {"mlp": 2, "*": 0}}'
    lines = ["merge", tmp_path, "--method", "task_arithmetic", "-o", "scale=1.0", "--weights", weights, "--out", out]
    done = CliRunner().invoke(main, [*map(str, lines), "--exclude", "head", "--exclude", "h.0"])
    assert done.exit_code == 0, done.output
    expected = merged(json.loads(weights), exclude=["head", "h.0"])
    assert {name: tensor[0].item() for name, tensor in load_file(out).items()} == expected
    record = json.loads((tmp_path / "out.mergekern.json").read_text())
    assert [model["weight"] for model in record["models"]] == [[1.0, 0.0], {"mlp": 2.0, "*": 0.0}]
    left = "tensors that were left out of the merge, and are the base's (3): h.0.attn.w, h.0.mlp.w, head"
    assert left in record["notes"]
