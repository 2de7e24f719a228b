"""Methods against the values that mergekit gives, for the recipes in `golden/mergekit` of one value for all tensors."""

import json
from functools import cache

import numpy as np
import pytest
import torch

import mergekern
from tests.golden.mergekit import zoo
from tests.golden.zoo import GOLDEN

FOLDER = GOLDEN / "mergekit"
# Of each recipe: method, models, weights and options.
RECIPES = {
    "linear": ("linear", "code math", [0.6, 0.9], {}),
    "linear-unnormalized": ("linear", "code math chat", [0.3, 0.45, 0.2], {"normalize": False}),
    "linear-base-listed": ("linear", "base code logic", [1.0, 0.5, 0.5], {}),
    "slerp": ("slerp", "code math", None, {"t": 0.3}),
    "slerp-base-second": ("slerp", "math code", None, {"t": 0.3}),
    "nuslerp": ("nuslerp", "code math", [0.7, 0.5], {}),
    "nuslerp-rows": ("nuslerp", "code chat", [0.25, 0.75], {"along": "rows"}),
    "nuslerp-columns": ("nuslerp", "code chat", [0.25, 0.75], {"along": "columns"}),
    "multislerp": ("multislerp", "code math chat", [0.5, 0.3, 0.4], {}),
    "multislerp-unnormalized": ("multislerp", "code math chat", [0.45] * 3, {"of": "deltas", "normalize": False}),
    "karcher": ("karcher", "code math chat", None, {}),
    "karcher-base": ("karcher", "base code math logic", None, {"max_iter": 50, "tol": 1e-7}),
    "model_stock": ("model_stock", "code math logic", None, {}),
    "model_stock-filter_wise": ("model_stock", "code math", None, {"along": "rows"}),
    "model_stock-opposing": ("model_stock", "code chat", None, {"along": "rows"}),
    "task_arithmetic": ("task_arithmetic", "code math logic", [0.7, -0.3, 0.5], {"scale": 0.8}),
    "ties": ("ties", "code math chat", [0.5, 0.8, 0.3], {"density": [0.5, 0.3, 0.7], "scale": 1.0}),
    "ties-sum": ("ties", "code math logic", [0.5, 0.8, 1.0], {"density": 0.2, "scale": 0.6, "aggregate": "sum"}),
    "ties-no-density": ("ties", "code math chat", [0.4] * 3, {"density": 1.0, "scale": 1.0}),
    "dare_linear": ("dare", "code math logic", [0.6, 0.35, 0.2], {"rate": 0, "scale": 1.1, "aggregate": "sum"}),
    "dare_ties": ("dare_ties", "code math logic", [0.6, 0.35, 0.2], {"rate": 0, "scale": 1.1, "aggregate": "sum"}),
    "breadcrumbs": ("breadcrumbs", "code math logic", [0.5, 0.4, 0.3], {"density": 0.85, "gamma": 0.06, "scale": 1.0}),
    "breadcrumbs-no-room": (
        "breadcrumbs", "code chat", [0.5, 0.4],
        {"density": {"the code": 0.9, "the chat": 0.3}, "gamma": 0.2, "scale": 1.0},
    ),
    "breadcrumbs-rescaled": (
        "breadcrumbs", "code math", [0.5, 0.4], {"density": 0.4, "gamma": 0.05, "rescale": "norm", "scale": 1.0},
    ),
    "della": ("della", "code math logic", [0.6, 0.35, 0.2], {"density": 1.0, "scale": 1.1}),
    "della_linear": (
        "della_linear", "code math logic", [0.6, 0.35, 0.2], {"density": 1.0, "scale": 1.1, "aggregate": "sum"},
    ),
    "sce": ("sce", "code math chat", None, {"density": 0.35}),
    "sce-all": ("sce", "code math logic", None, {}),
    "ram": ("ram", "code math logic", None, {"epsilon": 0.01}),
    "ramplus_tl": ("ramplus_tl", "code math logic", None, {"epsilon": 0.02, "r": 0.25, "alpha": 0.4}),
    "arcee_fusion": ("arcee_fusion", "code", None, {}),
    "nearswap": ("nearswap", "math", None, {"t": 8e-3}),
}  # fmt: skip


@cache
def golden():
    base, tuned = zoo.make()
    models = dict(zip(("base", *zoo.Spec().names), (base, *tuned), strict=True))
    tensors = {name: {key: torch.from_numpy(value).float() for key, value in m.items()} for name, m in models.items()}
    with np.load(FOLDER / "merged.npz") as merged, np.load(FOLDER / "arbitrary.npz") as arbitrary:
        return tensors, dict(merged), dict(arbitrary), json.loads((FOLDER / "outputs.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_agrees_with_mergekit(recipe):
    method, names, weights, options = RECIPES[recipe]
    tensors, merged, arbitrary, outputs = golden()
    # The base serves as a model too, under another name.
    models = {f"the {name}": tensors[name] for name in names.split()}
    base = tensors["code" if recipe == "nearswap" else "base"]
    found = mergekern.merge(models, base, method, weights=weights, options=options)
    of_recipe = {key.split("/")[1]: value for key, value in merged.items() if key.split("/")[0] == recipe}
    assert len(of_recipe) >= 11
    for name, expected in of_recipe.items():
        change = outputs[recipe]["largest_change"][name]
        skipped = arbitrary.get(f"{recipe}/{name}", np.zeros(expected.shape, bool))
        difference = np.abs(found[name].numpy() - expected)[~skipped]
        assert difference.max(initial=0.0) <= 1e-5 * change + 5e-7 * np.abs(expected).max(), name
