"""Merged adapters as PEFT loads them, and PEFT's own merges of adapters of every kind that is read."""

import json
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

import mergekern
from tests.support.adapters import Convolutions, adapt, bert, gpt2, llama, seeded, state

WEIGHTS = [0.75, -0.5]  # PEFT rounds them to float32
LINEAR = {"target_modules": ["q_proj", "down_proj"], "r": 4}
CASES = {
    "linear": (llama, LINEAR, {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 3}),
    "other modules and ranks": (llama, LINEAR, {"target_modules": ["q_proj", "up_proj"], "r": 2, "use_rslora": True}),
    "patterns": (
        llama,
        {**LINEAR, "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}, "alpha_pattern": {"down_proj": 3}},
        {**LINEAR, "rank_pattern": {r"layers\.\d\.mlp\.down_proj": 3}},
    ),
    "some layers": (llama, {**LINEAR, "layers_to_transform": [1]}, LINEAR),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head"], "r": 4},
                   {"target_modules": ["embed_tokens"], "r": 3, "lora_alpha": 5}),
    "transposed weights": (gpt2, {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True},
                           {"target_modules": ["c_attn"], "r": 2, "fan_in_fan_out": True}),
    "convolutions": (Convolutions, {"target_modules": ["wide", "point", "along"], "r": 4, "lora_alpha": 3},
                     {"target_modules": ["wide", "point"], "r": 2}),
    "biases of B": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj"], "r": 4, "lora_bias": True},
                    {"target_modules": ["k_proj"], "r": 4}),
    "classifier": (bert, {"target_modules": ["query", "dense"], "r": 4},
                   {"target_modules": "all-linear", "r": 2, "exclude_modules": "classifier"}),
}  # fmt: skip


def load(model, folder):
    """Return the state dict of a model that PEFT merges an adapter into, every tensor of which must find its place."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    said = [str(warning.message) for warning in caught]
    assert not [text for text in said if "adapter keys" in text or "not used" in text], said
    found = {name.replace(".modules_to_save", "").replace(".default", "") for name in adapted.state_dict()}
    assert set(load_file(folder / "adapter_model.safetensors")) <= found
    return state(adapted.merge_and_unload())


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_sum_of_the_adapters(case, tmp_path):
    build, *options = CASES[case]
    model = seeded(build)
    base = state(model)
    merged = [adapt(model, tmp_path / name, seed=i, **options[i]) for i, name in enumerate("ab")]
    mergekern.merge_adapters([tmp_path / "a", tmp_path / "b"], "cat", weights=WEIGHTS, output=tmp_path / "cat")
    mergekern.merge_adapters(
        [tmp_path / "a", tmp_path / "b"], "svd", weights=WEIGHTS, svd_rank=100, output=tmp_path / "svd"
    )
    for out in ("cat", "svd"):
        found = load(seeded(build), tmp_path / out)
        assert found.keys() == base.keys()
        for name, value in base.items():
            expected = value + sum(w * (each[name] - value) for w, each in zip(WEIGHTS, merged, strict=True))
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-13, msg=f"{out} {name}")


COMBINED = {
    "svd": {"svd_rank": 2},
    "linear": {},
    "ties": {"density": 0.4},
    "ties_svd": {"density": 0.3, "svd_rank": 3, "majority_sign": "frequency"},
    "magnitude_prune": {"density": 0.5},
    "magnitude_prune_svd": {"density": 0.3},
}


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (llama, {"target_modules": ["embed_tokens", "o_proj"]}),
        (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        (Convolutions, {"target_modules": ["wide", "point"]}),
    ],
    ids=["embeddings", "transposed", "convolutions"],
)
def test_merges_are_those_of_peft(build, given, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        adapt(seeded(build), folder, seed=seed, merge=False, r=4, lora_alpha=3 + seed, **given)
    adapted = PeftModel.from_pretrained(seeded(build), folders[0], "a", autocast_adapter_dtype=False)
    adapted.load_adapter(folders[1], "b", autocast_adapter_dtype=False)
    for combination, options in COMBINED.items():
        asked = {key.replace("majority_sign", "majority_sign_method"): value for key, value in options.items()}
        adapted.base_model.add_weighted_adapter(["a", "b"], WEIGHTS, combination, combination, **asked)
        out = tmp_path / combination
        mergekern.merge_adapters(folders, combination, weights=WEIGHTS, output=out, **options)
        adapted.load_adapter(out, "ours", autocast_adapter_dtype=False)
        layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
        assert len(layers) >= 1
        for layer in layers:
            found, expected = layer.get_delta_weight("ours"), layer.get_delta_weight(combination)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-8, msg=combination)
        adapted.delete_adapter("ours")


def test_a_head_saved_whole_is_averaged(tmp_path):
    model = seeded(bert)
    options = {"target_modules": ["query"], "r": 4, "task_type": "SEQ_CLS"}
    merged = [adapt(model, tmp_path / name, seed=i, **options) for i, name in enumerate("ab")]
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(mergekern.OptionError, match=r"2 tensors saved whole .*classifier.bias.*saved_whole='average'"):
        mergekern.merge_adapters(folders, "cat", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    mergekern.merge_adapters(folders, "cat", weights=[3, 1], output=tmp_path / "out", saved_whole="average")
    found = load(seeded(bert), tmp_path / "out")
    for name in ("classifier.weight", "classifier.bias"):
        expected = (3 * merged[0][name] + merged[1][name]) / 4
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-14)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    expected = 3 * merged[0][name] + merged[1][name] - 3 * state(model)[name]
    torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-13)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "classifier" in config["modules_to_save"]
    mergekern.merge_adapters(folders, "cat", output=tmp_path / "skipped", saved_whole="skip")
    found = load(seeded(bert), tmp_path / "skipped")
    assert torch.equal(found["classifier.weight"], state(seeded(bert))["classifier.weight"])
    record = json.loads((tmp_path / "skipped" / "mergekern.json").read_text())
    assert [note for note in record["notes"] if "left out (2): classifier.bias, classifier.weight" in note]


def test_equal_embeddings_beside_factors_are_kept(tmp_path):
    for seed, name in enumerate("ab"):
        adapt(seeded(llama), tmp_path / name, seed=seed, target_modules=["embed_tokens"], r=4)
    merged = mergekern.merge_adapters([tmp_path / "a", tmp_path / "b"], "cat")
    (name,) = (name for name in merged.tensors if "base_layer" in name)
    assert torch.equal(merged.tensors[name], state(seeded(llama))["model.embed_tokens.weight"])
    assert any("with equal values, which are kept (1)" in note for note in merged.notes)
    assert np.isfinite(merged.truncation_error)
