"""adapter_config.json as strangers write it: read as PEFT reads it, or refused in one error, in bounded time."""

import json
import random
import time

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from mergekern.checkpoints import open_checkpoint
from mergekern.checkpoints.adapter_options import AdapterOptions
from mergekern.errors import CheckpointError
from mergekern.kernels.spectrum import zero_spectrum

NAME = "base_model.model.layers.0.q.lora_{}.weight"


def write(folder, text, **tensors):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(text if isinstance(text, str) else json.dumps(text))
    factors = {NAME.format("A"): torch.ones(2, 5), NAME.format("B"): torch.ones(4, 2)}
    save_file(tensors or factors, folder / "adapter_model.safetensors")
    return folder


def config(**changes):
    return {"peft_type": "LORA", "r": 2, "lora_alpha": 3, **changes}


PATTERNS = [
    "q",
    "0.q",
    r"layers\.\d+\.q",
    "^layers.0.q",
    ".*q",
    "(q|k)",
    "[qk]",
    "l.*q",
    "x",
    "ayers.0.q",
    r"\w+",
    "q?",
]
MODULES = ["q", "layers.0.q", "layers.10.q", "m.layers.0.q", "layers.0.k", "kq", "layers0q"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_those_of_peft(pattern):
    options = AdapterOptions(config(r=7, rank_pattern={pattern: 3}), "a")
    for module in MODULES:
        rank = 3 if get_pattern_key([pattern], module) == pattern and pattern != module else 7
        rank = 3 if pattern == module else rank
        assert options.scale(module, rank) == 3 / rank


SLOW = ["(([a-z]+)+)+!", "(a|a)*!", "a*" * 30 + "!", "(a|a)" * 30 + "!", "(a?)" * 30 + "a" * 30, "(.*a){25}!"]


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_take_bounded_time(pattern):
    start = time.perf_counter()
    assert AdapterOptions(config(rank_pattern={pattern: 3}), "a").scale("a" * 29 + "b", 2) == 1.5
    assert time.perf_counter() - start < 5


REFUSED = {
    "no regular expression": ({"rank_pattern": {"(": 4}}, "r or rank_pattern is of no use"),
    "a look-ahead": ({"rank_pattern": {"(?=a)q": 4}}, r"'\(\?=a\)q' cannot be matched in bounded time"),
    "a reference": ({"alpha_pattern": {r"(q)\1": 4}}, "alpha_pattern is of no use .*bounded time"),
    "repeated beyond bounds": ({"rank_pattern": {"a{88888888888888888888}": 4}}, "rank_pattern is of no use"),
    "repeated very often": ({"rank_pattern": {"(((a{900}){900}){900})": 4}}, "rank_pattern is of no use"),
    "a rank beyond floats": ({"r": 10**399}, "r or rank_pattern is of no use"),
    "an alpha beyond floats": ({"lora_alpha": -(10**399)}, "lora_alpha or alpha_pattern is of no use"),
    "no rank": ({"r": 0}, "have rank 2, but adapter_config.json says 0"),
    "a negative rank": ({"r": -2}, "says -2"),
    "true as a rank": ({"r": True}, "r is True"),
    "a list": ({"lora_alpha": [3]}, r"lora_alpha is \[3\]"),
    "null": ({"lora_alpha": None}, "lora_alpha is None"),
    "not a number": ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    "a word for true": ({"use_rslora": "false"}, "use_rslora='false': it is true or false"),
    "a base that is a list": ({"base_model_name_or_path": ["a"]}, r"base_model_name_or_path=\['a'\]"),
    "a kind that is a list": ({"peft_type": ["LORA"]}, r"peft_type \['LORA'\]"),
    "unknown": ({"use_later": 1}, r"use_later=1, an unknown option \(those of PEFT up to 0\.\d+ are known\)"),
    "known to be more": ({"kasa_config": {"beta": 1}}, r"kasa_config=.*which is more than s·BA"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(changes, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(write(tmp_path / "a", config(**changes)))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("option", ["ensure_weight_tying", "velora_config", "loftq_config", "runtime_config"])
def test_options_without_effect_are_accepted(option, tmp_path):
    value = True if option.startswith("ensure") else {"rank": 2}
    assert open_checkpoint(write(tmp_path / "a", config(**{option: value}))).tensors


PARTS = {
    "bias alone": {"base_model.model.x.lora_B.bias": torch.zeros(4)},
    "bias of another shape": {
        "base_model.model.x.lora_A.weight": torch.ones(2, 5), "base_model.model.x.lora_B.weight": torch.ones(4, 2),
        "base_model.model.x.lora_B.bias": torch.zeros(3),
    },
    "bias of A": {
        "base_model.model.x.lora_A.weight": torch.ones(2, 5), "base_model.model.x.lora_B.weight": torch.ones(4, 2),
        "base_model.model.x.lora_A.bias": torch.zeros(2), "base_model.model.x.lora_B.bias": torch.zeros(4),
    },
}  # fmt: skip


@pytest.mark.parametrize("tensors", PARTS.values(), ids=PARTS)
def test_biases_without_their_factors(tensors, tmp_path):
    with pytest.raises(CheckpointError, match="is no bias of a factor beside it"):
        open_checkpoint(write(tmp_path / "a", config(lora_bias=True), **tensors))


def anything(draw, depth=0):
    """Return a random JSON value."""
    simple = [
        None, True, False, 0, -1, 2, 3.5, 1e308, float("nan"), float("inf"), 10**400, "", "LORA", "q", "(", "a" * 99,
        ".*", "true", "gaussian", "\0", "ü",
    ]  # fmt: skip
    kind = draw.randrange(5 if depth < 3 else 3)
    if kind < 3:
        return draw.choice(simple)
    if kind == 3:
        return [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {str(draw.choice(simple)): anything(draw, depth + 1) for _ in range(draw.randrange(4))}


def test_any_values_are_read_or_refused_in_one_error(tmp_path):
    draw = random.Random(0)
    names = [
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "init_lora_weights",
        "peft_type", "base_model_name_or_path", "target_modules", "modules_to_save", "ensure_weight_tying", "bias",
        "task_type", "lora_bias", "use_dora", "layers_to_transform", "another",
    ]  # fmt: skip
    folder, read = write(tmp_path / "a", config()), 0
    for _ in range(1500):
        changes = {name: anything(draw) for name in draw.sample(names, draw.randrange(1, 4))}
        (folder / "adapter_config.json").write_text(json.dumps(config(**changes)))
        message = ""
        try:
            open_checkpoint(folder).factors("layers.0.q.weight")
            read += 1
        except CheckpointError as error:
            message = str(error)
        assert not message or (str(folder) in message and len(message) < 1000)
    assert 50 < read < 1450


def test_deep_values(tmp_path):
    for text in ("[" * 900 + "]" * 900, "[" * 100_000, '"' + "a" * 100_000 + '"'):
        with pytest.raises(CheckpointError):
            open_checkpoint(write(tmp_path / "a", f'{{"peft_type": "LORA", "r": 2, "lora_alpha": {text}}}'))


def test_a_large_matrix_of_small_factors_needs_no_square_one():
    """Two adapters of rank 1: the spectrum of a third that leaves the matrix as it is needs its k vectors alone."""
    zero = zero_spectrum((30_000, 20_000), 10, 100)
    assert sum(part.base.nbytes if part.base is not None else part.nbytes for part in zero[2:5]) < 1 << 23
    assert zero.right_bottom[-1, -1] == 1
    assert zero.right_bottom.sum() == 10
