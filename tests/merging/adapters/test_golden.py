"""What PEFT's add_weighted_adapter gives, as ΔW of every module; see tests/golden/peft_adapters/README.md."""

import json

import numpy as np
import pytest

import mergekern
from tests.golden.zoo import GOLDEN

FOLDER = GOLDEN / "peft_adapters"
CASES = json.loads((FOLDER / "cases.json").read_text())
# PEFT keeps the first adapter's use_rslora, so that its scale of `cat` is √8 where it should be 1.
TOO_LARGE = {"cat-rslora": np.sqrt(8.0)}


@pytest.fixture(scope="module")
def deltas():
    with np.load(FOLDER / "deltas.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_peft(case, deltas):
    asked = dict(CASES[case])
    folders = [FOLDER / "adapters" / name for name in asked.pop("adapters")]
    rank = asked.pop("r")
    asked["majority_sign"] = asked.pop("majority_sign_method", "total")
    merged = mergekern.merge_adapters(folders, asked.pop("combination_type"), **asked)
    assert merged.config["r"] == rank
    assert not merged.config["use_rslora"]
    expected = {key.partition("/")[2]: array for key, array in deltas.items() if key.partition("/")[0] == case}
    assert len(expected) >= 6
    for module, delta in expected.items():
        delta = delta / TOO_LARGE.get(case, 1.0)
        b, a = (merged.tensors[f"base_model.model.{module}.lora_{side}.weight"].double().numpy() for side in "BA")
        ranks, alphas = (merged.config[name].get(module, rank) for name in ("rank_pattern", "alpha_pattern"))
        assert len(a) == ranks == alphas
        assert np.abs(b @ a - delta).max() <= 1e-5 * np.abs(delta).max(), module
