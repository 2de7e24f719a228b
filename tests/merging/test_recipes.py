"""Recipes of mergekit, as files: the values that mergekit 0.1.5 gives for them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoints import open_checkpoint
from mergekern.cli import main
from mergekern.merging.recipes.methods import methods_of_mergekit
from tests.golden.mergekit import zoo
from tests.golden.zoo import GOLDEN

FOLDER = GOLDEN / "mergekit"
RECIPES = sorted(path.stem for path in (FOLDER / "recipes").glob("*.yaml"))
OUTPUTS = json.loads((FOLDER / "outputs.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that the recipes' paths count from."""
    folder = tmp_path_factory.mktemp("mergekit")
    zoo.write(folder)
    return folder


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "merged.npz") as merged, np.load(FOLDER / "arbitrary.npz") as arbitrary:
        return dict(merged), dict(arbitrary)


@pytest.mark.parametrize("name", RECIPES)
def test_agrees_with_mergekit(name, place, golden, monkeypatch):
    monkeypatch.chdir(place)
    merged, arbitrary = golden
    found = mergekern.merge_recipe(FOLDER / "recipes" / f"{name}.yaml")
    assert len(found) == OUTPUTS[name]["tensors"]
    of_recipe = {key.split("/", 1)[1]: value for key, value in merged.items() if key.split("/")[0] == name}
    assert len(of_recipe) >= 11
    stepped = total = 0
    for tensor, expected in of_recipe.items():
        assert str(found[tensor].dtype) == f"torch.{OUTPUTS[name]['dtype']}"
        kept = ~arbitrary.get(f"{name}/{tensor}", np.zeros(expected.shape, bool))
        difference = np.abs(found[tensor].float().numpy() - expected)[kept]
        size, change = np.abs(expected)[kept], OUTPUTS[name]["largest_change"][tensor]
        allowed = 1e-5 * change + 5e-7 * np.abs(expected).max()
        if OUTPUTS[name]["loose"]:
            assert (difference <= 2.0**-6 * size + 0.1 * change).all(), tensor
            continue
        one_step = 2.0**-7 * size if OUTPUTS[name]["dtype"] == "bfloat16" else 0.0
        assert (difference <= allowed + one_step).all(), tensor
        stepped, total = stepped + int((difference > allowed).sum()), total + difference.size
    assert stepped <= 0.02 * total


def recipe(method, *names, **keys):
    """Return a recipe of models, with the weight 1 each."""
    models = [{"model": f"tiny/{name}", "parameters": {"weight": 1}} for name in names]
    return {"merge_method": method, "models": models, **keys}


def stack(*ranges, **keys):
    """Return a recipe of layers of `code`, one after the other."""
    sources = [[{"model": "tiny/code", "layer_range": list(layers)}] for layers in ranges]
    return {"merge_method": "passthrough", "slices": [{"sources": each} for each in sources], **keys}


TWO_AND_ONE = [
    {"sources": [{"model": "tiny/code", "layer_range": [0, 2]}, {"model": "tiny/math", "layer_range": [0, 2]}]},
    {"sources": [{"model": "tiny/code", "layer_range": [2, 4]}]},
]
BAD = {
    "method": (recipe("linaer", "code", "math"), "'linaer' is not supported .did you mean 'linear'"),
    "key": (recipe("linear", "code", modells=[]), "unknown key 'modells' .did you mean 'models'"),
    "key of a source": (
        {"merge_method": "linear", "slices": [{"sources": [{"modell": "a"}]}]}, "slices.0.sources.0: unknown key",
    ),
    "both": (recipe("linear", "code", slices=TWO_AND_ONE), "either `models` or `slices`"),
    "modules": (
        {"merge_method": "linear", "modules": {"decodr": {"models": [{"model": "tiny/code"}]}}},
        "modules: no tensor belongs to 'decodr'",
    ),
    "empty module": ({"merge_method": "linear", "modules": {"default": {}}}, "modules.default: give either `models`"),
    "parameter": (recipe("linear", "code", parameters={"wieght": 1}), "'wieght' .did you mean 'weight'"),
    "no number": (recipe("linear", "code", parameters={"weight": "much"}), "weight: 'much' is no number"),
    "no value": (
        {"merge_method": "linear", "models": [{"model": "tiny/code"}, {"model": "tiny/math"}]},
        "no value of 'weight' for tiny/code",
    ),
    "range": (
        recipe("ties", "code", "math", base_model="tiny/base", parameters={"density": 2}),
        "tiny/code: density must be above 0 and at most 1, not 2",
    ),
    "no base": (recipe("ties", "code", "math"), "ties needs a base_model, which is missing"),
    "base of slices": (
        {"merge_method": "ties", "slices": TWO_AND_ONE[:1], "base_model": "tiny/base"}, "no source of slices.0; add it",
    ),
    "three": (recipe("slerp", "code", "math", base_model="tiny/base", parameters={"t": 0.5}), "two models, not 3"),
    "twice": (recipe("linear", "code", "code"), "tiny/code is there twice"),
    "layers": (stack([0, 5]), r"layer_range \[0, 5\] goes beyond its 4 layers"),
    "lengths": (
        {
            "merge_method": "linear",
            "slices": [{"sources": [*TWO_AND_ONE[1]["sources"], {"model": "tiny/math", "layer_range": [0, 1]}]}],
        },
        "have 1 and 2 layers; give equally many",
    ),
    "dtype": (recipe("linear", "code", dtype="bf16"), "did you mean 'bfloat16'"),
    "template": (recipe("linear", "code", chat_template="chatlm"), "did you mean 'chatml'"),
    "tokens": (
        recipe("linear", "code", tokenizer={"source": "union", "tokens": {"a": {}}}), "tokenizer.tokens.a: not every",
    ),
    "adapter": (recipe("linear", "code+tiny/math"), "tiny/math: is no LoRA adapter"),
    "absent": (recipe("linear", "nowhere/at/all"), "no such file or folder in the working folder"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "says"), BAD.values(), ids=BAD)
def test_one_error_that_names_the_key_and_nothing_written(place, tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(place)
    with pytest.raises(mergekern.MergekernError, match=says):
        mergekern.merge_recipe(content, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_other_methods_have_no_effect_and_are_said(place, monkeypatch, caplog):
    monkeypatch.chdir(place)
    plain = mergekern.merge_recipe(recipe("linear", "code", "math"))
    found = mergekern.merge_recipe(recipe("linear", "code", "math", parameters={"density": 0.5, "int8_mask": True}))
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert "parameter 'density' is none of linear, and has no effect" in caplog.text


@pytest.mark.parametrize("rescale", [False, True])
def test_ties_with_rescale_brings_magnitudes_back(rescale, tmp_path, monkeypatch):
    """As mergekit's `rescaled_masked_tensor` by the norm l1; one model, so that nothing is elected."""
    monkeypatch.chdir(tmp_path)
    base = torch.arange(6.0)
    save_file({"w": base}, "base.safetensors")
    save_file({"w": base + torch.tensor([4.0, -1.0, 0.5, 0.0, -8.0, 2.5])}, "a.safetensors")
    content = {
        "merge_method": "ties", "base_model": "base.safetensors", "dtype": "float32",
        "models": [{"model": "a.safetensors", "parameters": {"weight": 1, "density": 0.34}}],
        "parameters": {"rescale": rescale, "normalize": False},
    }  # fmt: skip
    found = mergekern.merge_recipe(content)["w"]
    factor = 16 / 12 if rescale else 1.0
    assert torch.allclose(found - base, factor * torch.tensor([4.0, 0.0, 0.0, 0.0, -8.0, 0.0]))


def test_multislerp_refuses_another_eps(place, monkeypatch):
    monkeypatch.chdir(place)
    plain = mergekern.merge_recipe(recipe("multislerp", "code", "math"))
    found = mergekern.merge_recipe(recipe("multislerp", "code", "math", parameters={"eps": "1e-8"}))
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    with pytest.raises(mergekern.OptionError, match=r"eps is 0\.1"):
        mergekern.merge_recipe(recipe("multislerp", "code", "math", parameters={"eps": 0.1}))


def test_a_folder_follows_its_layers(place, tmp_path, monkeypatch):
    shutil.copytree(place / "tiny", tmp_path / "tiny")
    path = tmp_path / "tiny" / "code" / "config.json"
    kinds = ["full", "sliding", "full", "chunked"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_types": kinds, "max_window_layers": 4}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stack([1, 4], [3, 4], [0, 2])))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # Paths are found beside the recipe too.
    steps = []
    mergekern.merge_recipe(tmp_path / "recipe.yaml", output="out", progress=steps.append)
    config = json.loads(Path("out/config.json").read_text())
    assert (config["num_hidden_layers"], config["max_window_layers"]) == (6, 6)
    assert config["layer_types"] == ["sliding", "full", "chunked", "chunked", "full", "sliding"]
    held, found = load_file(tmp_path / "tiny/code/model.safetensors"), load_file("out/model.safetensors")
    for layer, source in enumerate([1, 2, 3, 3, 0, 1]):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(found[name.format(layer)], held[name.format(source)])
    record = json.loads(Path("out/mergekern.json").read_text())
    assert (record["method"], record["recipe"]) == ("passthrough", stack([1, 4], [3, 4], [0, 2]))
    assert [step.tensors_done for step in steps] == sorted(step.tensors_done for step in steps)
    assert steps[-1].tensors_done == steps[-1].tensors_total == len(found)
    with pytest.raises(mergekern.OutputError, match="is there already"):
        mergekern.merge_recipe(tmp_path / "recipe.yaml", output="out")


def test_large_stacks_are_spread_over_shards(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("mergekern.merging.recipes.result.SHARD_BYTES", 100_000)
    mergekern.merge_recipe(stack([0, 4], [0, 4]), output=tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    whole = mergekern.merge_recipe(stack([0, 4], [0, 4]))
    opened = open_checkpoint(tmp_path / "out")
    assert opened.tensors.keys() == whole.keys()
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in whole.items())


def test_the_tokenizer_of_a_model_crops_embeddings_to_its_tokens(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "tiny", "tiny")
    for name in ("code", "math"):
        state = load_file(f"tiny/{name}/model.safetensors")
        for part in ("model.embed_tokens.weight", "lm_head.weight"):
            state[part] = torch.cat([state[part], torch.ones(4, 32)])
        save_file(state, f"tiny/{name}/model.safetensors")
    Path("tiny/math/tokenizer_config.json").write_text('{"chat_template": "{{ messages }} of math"}')
    given = recipe("linear", "code", "math", tokenizer={"source": "tiny/math"}, chat_template="auto")
    mergekern.merge_recipe(given, output="out")
    found = load_file("out/model.safetensors")
    assert found["lm_head.weight"].shape == found["model.embed_tokens.weight"].shape == (80, 32)
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 80
    assert Path("out/chat_template.jinja").read_text() == "{{ messages }} of math"
    tokens = json.loads(Path("tiny/math/tokenizer.json").read_text())
    tokens["model"]["vocab"]["w3"] = 99
    Path("tiny/math/tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(mergekern.OptionError, match="80 tokens of tiny/math are not numbered from 0 on without gaps"):
        mergekern.merge_recipe(given)


def test_a_model_with_an_adapter(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    shutil.copytree(place / "tiny" / "base", tmp_path / "a+b@c")
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    (tmp_path / "lora").mkdir()
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    held = load_file("tiny/base/model.safetensors")
    query = "model.layers.1.self_attn.q_proj.weight"
    long = {"model": {"path": str(tmp_path / "a+b@c")}, "lora": {"path": str(tmp_path / "lora")}}
    for model in (f"tiny/base+{tmp_path}/lora", long):
        source = {"model": model, "layer_range": [1, 2]}
        found = mergekern.merge_recipe({"merge_method": "passthrough", "slices": [{"sources": [source]}]})
        assert found[query.replace(".1.", ".0.")].dtype == torch.float32
        torch.testing.assert_close(found[query.replace(".1.", ".0.")], held[query] + 2 * up @ down)
        assert torch.equal(found["lm_head.weight"], held["lm_head.weight"])
    found = mergekern.merge_recipe(
        {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/a+b@c"}]}
    )  # A path that is there is one.
    assert torch.equal(found[query], held[query])


def test_models_of_two_depths(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "tiny", "tiny")
    mergekern.merge_recipe(stack([0, 4], [1, 4]), output="tiny/deep")
    slices = [
        {"sources": [{"model": "tiny/math", "layer_range": [0, 2]}, {"model": "tiny/deep", "layer_range": [5, 7]}]}
    ]
    given = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 0.5}}
    found = mergekern.merge_recipe(given)
    code, math = (load_file(f"tiny/{name}/model.safetensors") for name in ("code", "math"))
    name = "model.layers.{}.mlp.up_proj.weight"
    torch.testing.assert_close(found[name.format(1)], (math[name.format(1)] + code[name.format(3)]) / 2)
    assert name.format(2) not in found


def test_the_command(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    config = FOLDER / "recipes" / "ties.yaml"
    done = CliRunner().invoke(main, ["merge", "--config", str(config), "--out", str(tmp_path / "o.safetensors")])
    assert done.exit_code == 0, done.output
    expected = mergekern.merge_recipe(config)
    assert all(torch.equal(load_file(tmp_path / "o.safetensors")[name], each) for name, each in expected.items())
    for more in (["tiny/code"], ["--method", "ties"], ["--dtype", "float16"]):
        refused = CliRunner().invoke(main, ["merge", *more, "--config", str(config), "--out", "out"])
        assert "exclude each other" in refused.output


def test_every_recipe_is_of_a_method_that_is_there():
    named = {yaml.safe_load((FOLDER / "recipes" / f"{name}.yaml").read_text())["merge_method"] for name in RECIPES}
    assert named == set(methods_of_mergekit())
