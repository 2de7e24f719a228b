"""Names of models that differ from their base's by a prefix, a wrapper, or in the middle."""

import re
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mergekern
from mergekern.checkpoints import open_zoo
from mergekern.checkpoints.names import bridge
from mergekern.errors import MismatchError, OptionError
from tests.support.adapters import adapt, llama, seeded, state
from tests.support.checkpoint_files import draw


def body(seed, layers=12):
    """Return the tensors of a small model of several layers."""
    return {"emb.weight": draw(9, 6, seed=seed)} | {
        f"h.{layer}.{part}.weight": draw(6, 6, seed=seed + 10 * layer + i)
        for layer in range(layers)
        for i, part in enumerate(("q", "k", "norm.LayerNorm"))
    }


def called(change, tensors):
    return {change(name): tensor for name, tensor in tensors.items()}


BASE, ONE, TWO = body(0), body(1000), body(2000)


def expected():
    return mergekern.measure({"one": ONE, "two": TWO}, BASE).inner


WAYS = {
    "data parallel": (lambda n: f"module.{n}", "its names have the wrapper 'module.', which the base's lack"),
    # https://github.com/pytorch/pytorch/issues/101107
    "compiled": (lambda n: f"_orig_mod.{n}", "have the wrapper '_orig_mod.'"),
    "both": (lambda n: f"_orig_mod.module.{n}", "have the wrapper 'module.'"),
    "FSDP": (lambda n: "_fsdp_wrapped_module." + n.replace("h.", "h._fsdp_wrapped_module."), "'_fsdp_wrapped_module.'"),
    "recomputed": (lambda n: n.replace(".k.", "._checkpoint_wrapped_module.k."), "'_checkpoint_wrapped_module.'"),
    # https://github.com/arcee-ai/mergekit/issues/284
    "a task's body": (lambda n: f"bert.{n}", "have the prefix 'bert.'"),
    "two parts": (lambda n: f"base_model.model.{n}", "have the prefix 'base_model.model.'"),
    "wrapped and inside": (lambda n: f"module.bert.{n}", "have the prefix 'bert.'"),
    "in every layer": (lambda n: re.sub(r"(h\.\d+)", r"\1.inner", n), "'h.#.inner.' where the base's have 'h.#.'"),
    "an old spelling": (lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma"), "have 'LayerNorm.gamma' where"),
}


@pytest.mark.parametrize("side", ["models", "base", "one model"])
@pytest.mark.parametrize("way", WAYS)
def test_one_renaming_of_all_tensors_is_seen(way, side):
    change, note = WAYS[way]
    zoo = {"one": ONE if side == "base" else called(change, ONE), "two": TWO}
    if side == "models":
        zoo["two"] = called(change, TWO)
    opened = open_zoo(zoo, called(change, BASE) if side == "base" else BASE)
    np.testing.assert_array_equal(mergekern.measure(opened).inner, expected())
    notes = "; ".join(opened.models[0].notes)
    assert note.split("'")[1] in notes
    assert side == "base" or note in notes
    assert bool(opened.models[1].notes) == (side != "one model")


def test_the_note_reaches_the_table():
    zoo = {name: called(lambda n: f"bert.{n}", model) for name, model in (("one", ONE), ("two", TWO))}
    notes = mergekern.compute_all(zoo, BASE, metrics="effective rank").notes
    assert any("its names have the prefix 'bert.', which the base's lack (in all 2 models)" in note for note in notes)
    notes = mergekern.compute_all({"one": ONE, "two": TWO}, zoo["one"], metrics="effective rank").notes
    assert any("its names lack the prefix 'bert.' of the base's" in note for note in notes)


def test_names_that_transformers_moved():
    """Of models of text and images, as 4.52 renamed them: four parts at once."""
    old = {
        **called(lambda n: f"language_model.model.{n}", ONE),
        "language_model.lm_head.weight": draw(9, 6),
        **called(lambda n: f"vision_tower.{n}", TWO),
        "multi_modal_projector.linear_1.weight": draw(4, 5),
    }
    new = {
        **called(lambda n: f"model.language_model.{n}", ONE),
        "lm_head.weight": draw(9, 6),
        **called(lambda n: f"model.vision_tower.{n}", TWO),
        "model.multi_modal_projector.linear_1.weight": draw(4, 5),
    }
    for base, model in ((old, new), (new, old)):
        zoo = open_zoo({"one": model, "two": base}, base)
        assert len(zoo.tensors) == len(base)
        assert mergekern.measure(zoo).inner[0, 0] == 0


def test_what_is_matched_is_named_as_in_the_base():
    merged = mergekern.merge({"one": called(lambda n: f"module.{n}", ONE), "two": TWO}, BASE, "weight_average")
    expected = mergekern.merge({"one": ONE, "two": TWO}, BASE, "weight_average")
    assert list(merged) == list(expected)
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


def test_integer_buffers_are_renamed_too():
    buffers = {"positions.ids": torch.arange(5)}
    zoo = open_zoo({"one": called(lambda n: f"bert.{n}", ONE | buffers), "two": TWO | buffers}, BASE | buffers)
    assert zoo.models[0].buffers == ["positions.ids"]
    assert torch.equal(zoo.models[0].read_buffer("positions.ids"), buffers["positions.ids"])


def test_a_head_beside_the_body_is_a_mismatch_by_itself():
    head = {"classifier.weight": draw(3, 6), "classifier.bias": draw(3)}
    zoo = {name: called(lambda n: f"bert.{n}", m) | head for name, m in (("one", ONE), ("two", TWO))}
    with pytest.raises(MismatchError) as caught:
        open_zoo(zoo, BASE)
    assert str(caught.value).splitlines()[:2] == [
        "2 tensors do not match between the checkpoints:",
        "  classifier.weight: in 'one' but missing in 'base'; in 'two' but missing in 'base'",
    ]
    opened = open_zoo(zoo, BASE, on_mismatch="skip")
    assert len(opened.tensors) == len(BASE)
    np.testing.assert_array_equal(mergekern.measure(opened).inner, expected())


UNCLEAR = {
    "one word for another": ({"encoder.h.w": (2, 2)}, {"decoder.h.w": (2, 2)}),
    "two that fit": ({"h.w": (2, 2)}, {"encoder.h.w": (2, 2), "decoder.h.w": (2, 2)}),
    "other shapes": ({"h.w": (2, 2), "h.b": (2,)}, {"m.h.w": (2, 2), "m.h.b": (3,)}),
    "not all": ({"h.w": (2, 2), "g.w": (2, 2)}, {"m.h.w": (2, 2), "m.f.w": (2, 2)}),
    "heads": ({"body": (1,), "classifier.dense.weight": (2, 2)}, {"body": (1,), "lm_head.dense.weight": (2, 2)}),
    "layers": ({"h.1.w": (2, 2)}, {"h.0.w": (2, 2)}),
}


@pytest.mark.parametrize(("own", "known"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_not_clear_is_left(own, known):
    assert not bridge(own, known).names
    assert not bridge(known, own).names


def test_an_error_names_the_likely_prefix_and_rename_takes_it():
    zoo = {name: called(lambda n: f"transformer.{n}", m) for name, m in (("one", ONE), ("two", TWO))}
    base = called(lambda n: f"backbone.{n}", BASE)
    with pytest.raises(MismatchError) as caught:
        open_zoo(zoo, base)
    message = str(caught.value)
    assert message.count("\n") < 16
    assert "and 64 more" in message
    assert 'pass rename={"transformer": "backbone"} (--rename transformer=backbone' in message
    table = mergekern.compute_all(zoo, base, metrics="task-vector geometry", rename={"transformer.": "backbone."})
    assert "37 of its tensors were renamed as asked (in all 2 models)" in table.notes
    options = mergekern.MeasureOptions("task-vector geometry", rename={"transformer": "backbone"})
    np.testing.assert_array_equal(mergekern.measure(zoo, base, options).inner, expected())
    merged = mergekern.merge(zoo, base, "weight_average", rename={"transformer": "backbone"})
    assert list(merged) == list(base)
    assert mergekern.sketch(zoo, base, rename={"transformer": "backbone"}).models == ("one", "two")


RENAMES = {
    "the first place": ({"a.x.x.w": "a.y.x.w"}, {"x": "y"}),
    "whole parts": ({"ax.xa.w": "ax.xa.w", "x.w": "y.w"}, {"x": "y"}),
    "the longest": ({"m.x.w": "z.w"}, {"m": "n", "m.x": "z"}),
    "left out": ({"m.w": "w"}, {"m.": ""}),
    "added": ({"w": "m.w"}, {"": "m"}),
    "the end": ({"norm.gamma": "norm.weight"}, {"gamma": "weight"}),
}


@pytest.mark.parametrize(("names", "rename"), RENAMES.values(), ids=RENAMES)
def test_rule_of_rename(names, rename):
    model = {name: draw(3, seed=i) for i, name in enumerate(names)}
    base = {name: draw(3) for name in names.values()}
    zoo = open_zoo({"one": model, "two": base}, base, rename=rename)
    assert list(zoo.models[0].tensors) == list(names.values())


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        (["a"], OptionError, "rename is a mapping"),
        ({"a": 3}, OptionError, "rename is a mapping"),
        ({"nowhere": "x"}, OptionError, "no tensor that the base lacks has 'nowhere' in its name"),
        ({"h": "x", "g": "x"}, MismatchError, r"'h\.w' and 'g\.w' both become 'x\.w'"),
    ],
)
def test_bad_rename(rename, error, message):
    model = {"h.w": draw(2), "g.w": draw(2)}
    with pytest.raises(error, match=message):
        open_zoo({"one": model, "two": model}, {"b.w": draw(2)}, rename=rename)


def test_mismatches_of_many_tensors_and_models_are_short_and_soon_said():
    base = {f"a{i}.weight": torch.zeros(1) for i in range(20000)}
    model = {f"b{i}.weight": torch.zeros(1) for i in range(20000)}
    start = time.process_time()
    with pytest.raises(MismatchError) as caught:
        open_zoo(dict.fromkeys("abcdef", model), base)
    assert time.process_time() - start < 20
    message = str(caught.value)
    assert len(message) < 2000
    assert "40,000 tensors do not match" in message
    assert "a0.weight: in 'base' but missing in all 6 models" in message
    assert "and 39,990 more" in message


# --- adapters


def test_adapters_under_other_names_without_a_base(tmp_path):
    """The same modules under two names are not orthogonal: https://github.com/illuin-tech/colpali/issues/424."""
    for name, part in (("old", "model"), ("new", "model.language_model"), ("other", "decoder")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
        tensors = {
            f"base_model.model.{part}.layers.{layer}.v.lora_{side}.weight": torch.ones(shape)
            for layer in range(3)
            for side, shape in (("A", (2, 5)), ("B", (4, 2)))
        }
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
    with pytest.raises(MismatchError, match=r"'old' changes 'model\.layers.* where 'new' changes .*; pass base=PATH"):
        mergekern.measure([tmp_path / "old", tmp_path / "new"])
    with pytest.raises(MismatchError, match=r"'old' and 'other' change no tensor in common .* pass base=PATH"):
        mergekern.measure([tmp_path / "old", tmp_path / "other"])
    base = {f"model.layers.{layer}.v.weight": torch.zeros(4, 5) for layer in range(3)}
    inner = mergekern.measure([tmp_path / "old", tmp_path / "new"], base).inner
    assert inner[0, 1] == pytest.approx(inner[0, 0], rel=1e-12)


def test_adapters_of_other_modules_of_one_base(tmp_path):
    model = seeded(llama)
    adapt(model, tmp_path / "a", target_modules=["q_proj"], r=2)
    adapt(model, tmp_path / "b", target_modules=["up_proj"], r=2)
    with pytest.raises(MismatchError, match="'a' and 'b' change no tensor in common"):
        mergekern.measure([tmp_path / "a", tmp_path / "b"])
    assert mergekern.measure([tmp_path / "a", tmp_path / "b"], state(model)).inner[0, 1] == 0
    adapt(model, tmp_path / "c", target_modules=["q_proj", "up_proj"], r=2)
    assert mergekern.measure([tmp_path / n for n in "abc"]).inner[0, 1] == 0  # c shows that names are the same
