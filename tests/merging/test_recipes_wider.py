"""Recipes of further architectures and vocabularies: the tensors that mergekit 0.1.5 gives for them."""

import json
import re
import shutil

import numpy as np
import pytest

import mergekern
from mergekern.merging.recipes.vocabulary import read_vocabulary
from tests.golden.mergekit.wider import zoo
from tests.golden.zoo import GOLDEN

FOLDER = GOLDEN / "mergekit" / "wider"
OUTPUTS = json.loads((FOLDER / "outputs.json").read_text())
# Of a token: mergekit numbers those that it adds in no certain order.
OF_TOKENS = re.compile(r".*(embed_tokens|lm_head|wte|word_embeddings|shared|predictions)\.(weight|bias)")
STEPS = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wider")
    zoo.write(folder)
    return folder


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "merged.npz") as merged:
        found = {}
        for key in merged.files:
            recipe, name = key.split("/", 1)
            found.setdefault(recipe, {})[name] = merged[key]
        return found


def test_every_recipe_has_values():
    assert {path.stem for path in (FOLDER / "recipes").glob("*.yaml")} == OUTPUTS.keys()


@pytest.mark.parametrize("name", OUTPUTS)
def test_agrees_with_mergekit(name, place, golden, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    mergekern.merge_recipe(FOLDER / "recipes" / f"{name}.yaml", output=tmp_path / "out")
    opened = mergekern.checkpoints.open_checkpoint(tmp_path / "out")
    expected, said = golden[name], OUTPUTS[name]
    # mergekit's list of this architecture lacks these.
    assert all(tensor.startswith("cls.predictions.transform.") for tensor in set(opened.order) - expected.keys())
    assert not expected.keys() - set(opened.order)
    assert sorted({str(tensor.dtype).removeprefix("torch.") for tensor in opened.tensors.values()}) == said["dtypes"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config.get(key) for key in said["config"]} == said["config"]
    rows, stepped, total = None, 0, 0
    if said["vocabulary"]:
        numbers = read_vocabulary(tmp_path / "out").numbers
        assert numbers.keys() == said["vocabulary"].keys()
        rows = [numbers[token] for token in sorted(numbers, key=said["vocabulary"].__getitem__)]
    for tensor, values in expected.items():
        found = opened.read(tensor).float().numpy()
        if rows and OF_TOKENS.fullmatch(tensor):
            found = np.concatenate([found[rows], found[len(rows) :]])
        assert found.shape == values.shape, tensor
        difference, allowed = np.abs(found - values), 1e-6 * np.abs(values).max()
        step = STEPS[str(opened.tensors[tensor].dtype).removeprefix("torch.")]
        assert (difference <= allowed + step * np.abs(values)).all(), tensor
        stepped, total = stepped + int((difference > allowed).sum()), total + difference.size
    assert stepped <= 0.02 * total


def tokens(**of_tokens):
    models = [{"model": f"tokens/{name}", "parameters": {"weight": 1}} for name in ("added", "other")]
    return {"merge_method": "linear", "models": models, "tokenizer": {"source": "union", "tokens": of_tokens}}


BAD = {
    "kind": (tokens(ab={"source": {"kind": "zeros"}}), "kind 'zeros' is not known .did you mean 'zero'"),
    "no source": (tokens(new={}), "tokenizer.tokens.new: not every model has this token; give a `source`"),
    "elsewhere": (tokens(new={"source": "tokens/base"}), "tokens/base is no source of the embeddings; they come from"),
    "token": (
        tokens(new={"source": {"kind": "model_token", "model": "tokens/other", "token": "zz"}}),
        "tokens.new: tokens/other has no token 'zz'",
    ),
    "row": (
        tokens(new={"source": {"kind": "model_token", "model": "tokens/other", "token_id": 99}}),
        "of tokens/other has 21 rows, and no row 99",
    ),
    "both": (
        tokens(new={"source": {"kind": "model_token", "model": "tokens/other", "token_id": 9, "token": "a"}}),
        "either `token` or `token_id`",
    ),
    "no embedding": (
        {**tokens(), "models": [{"model": "bodies/none", "parameters": {"weight": 1}}]}, "has no embedding of tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "says"), BAD.values(), ids=BAD)
def test_one_error_and_nothing_written(place, tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(place)
    if not (place / "bodies").exists():
        zoo.save(place / "bodies" / "none", {"w": np.ones((2, 2), np.float32)}, zoo.CONFIGS["llama"])
    with pytest.raises(mergekern.MergekernError, match=says):
        mergekern.merge_recipe(content, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_tokenizer_counts_as_the_base_and_is_said(place, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(place)
    state = {name: np.full(shape, 2.0, np.float32) for name, shape in zoo.llama(layers=2).items()}
    zoo.save(tmp_path / "plain", state, {**zoo.CONFIGS["llama"], "num_hidden_layers": 2})
    for path in (tmp_path / "plain").glob("tokenizer*"):
        path.unlink()
    names = ["tokens/other", str(tmp_path / "plain")]
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in zip(names, (0, 1), strict=True)]
    recipe = {"merge_method": "linear", "models": models, "base_model": "tokens/other", "tokenizer_source": "base"}
    with caplog.at_level("INFO", "mergekern"):
        found = mergekern.merge_recipe(recipe)
    assert found["lm_head.weight"].shape == (21, zoo.HIDDEN)
    assert (found["lm_head.weight"] == 2).all()
    assert "plain has no tokenizer that can be read; its tokens count as those of tokens/other" in caplog.text
    assert f"plain that belong to no token of the result: {zoo.TOKENS - 21}" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "b"}]},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": 7}]},
        {"model": {"vocab": {"a": "0"}}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": [["a", 0.0], []]}},
        {"model": {"vocab": [{"a": 0}]}},
        {"model": []},
    ],
    ids=repr,
)
def test_a_tokenizer_that_says_something_else(content, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    shutil.copytree("tokens/base", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content))
    models = [{"model": str(tmp_path / "model"), "parameters": {"weight": 1}}]
    recipe = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    with pytest.raises(mergekern.CheckpointError, match=r"not a usable tokenizer|the number of token 'a' is"):
        mergekern.merge_recipe(recipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keys_without_effect_are_said(place, monkeypatch, caplog):
    monkeypatch.chdir(place)
    models = [{"model": "llama/one"}, {"model": "llama/two"}]
    plain = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    found = mergekern.merge_recipe({**plain, "random_seed": 3, "x-half": {"weight": 0.5}})
    assert all((found[name] == tensor).all() for name, tensor in mergekern.merge_recipe(plain).items())
    assert "the key 'random_seed' has no effect" in caplog.text
    assert "the key 'x-half' has no effect" in caplog.text


def test_tensors_of_no_module_are_said(place, monkeypatch, caplog):
    monkeypatch.chdir(place)
    part = {"models": [{"model": "t5/one"}]}
    found = mergekern.merge_recipe({"merge_method": "passthrough", "modules": {"encoder": part}})
    assert all(name.startswith("encoder.") for name in found)
    lost = sum(not name.startswith("encoder.") for name in zoo.t5())
    assert f"tensors of no module of the recipe, which the result lacks ({lost}): decoder." in caplog.text
    with pytest.raises(mergekern.OptionError, match="shared and default each have all tensors of no other module"):
        mergekern.merge_recipe({"merge_method": "passthrough", "modules": {"shared": part, "default": part}})


@pytest.mark.parametrize(
    ("method", "own", "shared", "size"),
    [
        ("dare_linear", {"density": 0.3}, {}, 1.0),
        ("dare_ties", {"density": 0.6}, {"rescale": False}, 0.6),
        ("della", {"density": 0.5, "epsilon": 0.4}, {}, 1.0),
        ("della_linear", {"density": 0.7, "epsilon": 0.2}, {"rescale": False}, None),
    ],
)
def test_random_masks_have_the_density_and_the_size_of_mergekits(method, own, shared, size, place, monkeypatch):
    """Masks are others: but of a tensor it too keeps `density`, of the larger half of a row `density + epsilon / 2`."""
    monkeypatch.chdir(place)
    models = [{"model": "bert/one", "parameters": {"weight": 1, **own}}]
    found = mergekern.merge_recipe(
        {"merge_method": method, "base_model": "bert/base", "models": models, "parameters": shared, "dtype": "float32"}
    )
    base, tuned = (mergekern.checkpoints.open_checkpoint(place / "bert" / name) for name in ("base", "one"))
    kept = of_larger = elements = 0
    ratios = []
    for name in (name for name, tensor in base.tensors.items() if len(tensor.shape) == 2):
        delta, merged = tuned.read(name) - base.read(name), found[name] - base.read(name)
        larger = delta.abs() > delta.abs().median(1, keepdim=True).values
        kept, elements = kept + int((merged != 0).sum()), elements + delta.numel()
        of_larger += int(((merged != 0) & larger).sum()) / int(larger.sum()) * delta.numel()
        ratios.append(float(merged.abs().sum() / delta.abs().sum()))
    assert kept / elements == pytest.approx(own["density"], abs=0.03)
    assert of_larger / elements == pytest.approx(own["density"] + own.get("epsilon", 0) / 2, abs=0.05)
    if size is not None:
        assert np.mean(ratios) == pytest.approx(size, abs=1e-5 if size == 1 else 0.04)
