"""Recipes of mergekit, as files: the values that mergekit 0.1.5 gives for them."""

import json

import numpy as np
import pytest

import mergekern
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
