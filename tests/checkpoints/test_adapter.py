"""LoRA adapters as PEFT saves them, against the weights that PEFT merges them into."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoints import open_checkpoint, open_zoo
from mergekern.errors import CheckpointError, MismatchError, OptionError
from tests.support.adapters import Convolutions, adapt, bert, configure, gpt2, llama, seeded, state
from tests.support.checkpoint_files import assert_same

LINEAR = {"target_modules": ["q_proj", "down_proj"], "r": 4}
CASES = {
    "plain": (llama, LINEAR),
    "alpha": (llama, {**LINEAR, "lora_alpha": 3}),
    "rslora": (llama, {**LINEAR, "lora_alpha": 5, "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": "all-linear", "r": 3, "lora_alpha": 7, "use_rslora": True,
            "rank_pattern": {"k_proj": 2, r"layers\.1\.self_attn\.q_proj": 6, "q_proj": 5},
            "alpha_pattern": {r"model.layers.\d.mlp.up_proj": 11, "^o_proj": 1000},
        },
    ),
    "some layers": (llama, {**LINEAR, "layers_to_transform": [1]}),
    "modules to save": (llama, {**LINEAR, "modules_to_save": ["lm_head", "norm"]}),
    "all biases": (lambda: llama(attention_bias=True), {**LINEAR, "bias": "all"}),
    "biases of adapted modules": (lambda: llama(attention_bias=True), {**LINEAR, "bias": "lora_only"}),
    "bias of B": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj"], "r": 4, "lora_bias": True}),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head"], "r": 4}),
    "tied embeddings": (lambda: llama(tie_word_embeddings=True), {"target_modules": ["embed_tokens"], "r": 4}),
    "head of a classifier": (bert, {"target_modules": ["query", "dense"], "r": 4, "task_type": "SEQ_CLS"}),
    "transposed weights": (gpt2, {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True}),
    "convolutions": (Convolutions, {"target_modules": ["wide", "point", "along"], "r": 4, "lora_alpha": 3}),
    "orthogonal start": (llama, {**LINEAR, "init_lora_weights": "orthogonal"}),
    "rank above the sizes": (llama, {"target_modules": ["q_proj"], "r": 64}),
}  # fmt: skip


def save_base(model, folder):
    folder.mkdir()
    save_file(state(model), folder / "model.safetensors") if not _tied(model) else model.save_pretrained(folder)
    return folder


def _tied(model):
    return getattr(getattr(model, "config", None), "tie_word_embeddings", False)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_peft_merges(case, tmp_path):
    build, options = CASES[case]
    model = seeded(build)
    base = save_base(model, tmp_path / "base")
    merged = {name: adapt(model, tmp_path / name, seed=seed, **options) for seed, name in enumerate("ab")}
    zoo = open_zoo([tmp_path / "a", tmp_path / "b"], base)
    changed = set()
    for checkpoint in zoo.models:
        for tensor in zoo.tensors:
            name, expected = tensor.name, merged[checkpoint.name][tensor.name]
            torch.testing.assert_close(checkpoint.read(name), expected, rtol=0, atol=1e-14)
            if checkpoint.change(name) == "factors":
                left, right, scale = checkpoint.factors(name)
                delta = ((left.double() @ right.double()) * scale).reshape(expected.shape)
                torch.testing.assert_close(delta, expected - zoo.base.read(name), rtol=0, atol=1e-14)
            elif checkpoint.change(name) == "none":
                assert torch.equal(expected, zoo.base.read(name))
            if not torch.equal(expected, zoo.base.read(name)):
                changed.add(name)
                start, stop = tensor.shape[-1] // 2, min(expected.numel(), 3 * tensor.shape[-1])
                assert torch.equal(checkpoint.read_range(name, start, stop), checkpoint.read(name).view(-1)[start:stop])
    assert changed


def test_what_is_held_whole_and_what_as_factors(tmp_path):
    model = seeded(lambda: llama(attention_bias=True))
    options = {
        "target_modules": ["q_proj", "embed_tokens"],
        "r": 4,
        "bias": "lora_only",
        "modules_to_save": ["lm_head"],
    }
    adapt(model, tmp_path / "a", **options)
    adapter = open_checkpoint(tmp_path / "a").bound(open_checkpoint(state(model)))
    found = {name: adapter.change(name) for name in adapter.tensors if adapter.change(name) != "none"}
    assert found == {
        "lm_head.weight": "whole",
        # PEFT saves the base's embeddings beside the factors. The copies are unchanged.
        "model.embed_tokens.weight": "factors",
        **{f"model.layers.{layer}.self_attn.q_proj.bias": "whole" for layer in (0, 1)},
        **{f"model.layers.{layer}.self_attn.q_proj.weight": "factors" for layer in (0, 1)},
    }


def test_changed_embeddings_beside_factors_count(tmp_path):
    model = seeded(llama)
    merged = adapt(model, tmp_path / "a", target_modules=["embed_tokens"], r=4)
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    saved = tensors["base_model.model.model.embed_tokens.base_layer.weight"]
    saved[3] += 1.0
    save_file(tensors, path)
    adapter = open_checkpoint(tmp_path / "a").bound(open_checkpoint(state(model)))
    assert adapter.change("model.embed_tokens.weight") == "whole"
    expected = merged["model.embed_tokens.weight"].clone()
    expected[3] += 1.0
    torch.testing.assert_close(adapter.read("model.embed_tokens.weight"), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_dtypes_and_files_of_factors(dtype, file, tmp_path):
    model = seeded(llama)
    adapt(model, tmp_path / "a", **LINEAR)
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = {name: values.to(dtype) for name, values in load_file(path).items()}
    path.unlink()
    (save_file if file.endswith("safetensors") else torch.save)(tensors, path.with_name(file))
    adapter = open_checkpoint(tmp_path / "a")
    assert adapter.dtypes == {dtype}
    left, right, scale = adapter.factors("model.layers.0.self_attn.q_proj.weight")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    assert_same(left, tensors[name.format("B")])
    assert_same(right, tensors[name.format("A")])
    assert scale == 8 / 4


def test_a_read_has_the_same_bits_from_wherever_it_begins(tmp_path):
    model = seeded(lambda: llama(), seed=3)
    adapt(model, tmp_path / "a", target_modules=["embed_tokens"], r=16)
    adapter = open_checkpoint(tmp_path / "a").bound(open_checkpoint(state(model)))
    whole = adapter.read("model.embed_tokens.weight").view(-1)
    for start in (0, 1, 23, 24, 25, 700):
        assert torch.equal(adapter.read_range("model.embed_tokens.weight", start, 1100), whole[start:1100])
    assert torch.equal(adapter.read_columns("model.embed_tokens.weight", 5, 9), whole.view(50, 24)[:, 5:9])


# --- names


@pytest.mark.parametrize(("wrapped", "stored"), [("", "model."), ("model.", ""), ("x.", "y.")])
def test_names_that_differ_by_a_prefix(wrapped, stored, tmp_path):
    """An adapter trained on a bare model fits a base that was saved with its head, and the other way round."""
    model = seeded(llama)
    merged = adapt(model, tmp_path / "a", **LINEAR)
    path = tmp_path / "a" / "adapter_model.safetensors"
    renamed = {n.replace("model.model.model.", f"model.model.{wrapped}", 1): v for n, v in load_file(path).items()}
    save_file(renamed, path)
    base = {name.removeprefix("model."): value for name, value in state(model).items()}
    base = {stored + name: value for name, value in base.items()}
    adapter = open_checkpoint(tmp_path / "a")
    name = "layers.1.mlp.down_proj.weight"
    if wrapped == "x.":
        with pytest.raises(MismatchError, match=r"x\.layers\.0\.mlp\.down_proj\.weight.*missing in 'base'"):
            open_zoo({"a": tmp_path / "a", "b": base}, base)
    else:
        found = adapter.bound(open_checkpoint(base)).read(stored + name)
        torch.testing.assert_close(found, merged["model." + name], rtol=0, atol=1e-14)


def test_without_a_base_wrapped_names_are_not_taken_for_others(tmp_path):
    model = seeded(llama)
    for name in "ab":
        adapt(model, tmp_path / name, **LINEAR)
    path = tmp_path / "b" / "adapter_model.safetensors"
    save_file({n.replace("model.model.model.", "model.model.", 1): v for n, v in load_file(path).items()}, path)
    with pytest.raises(MismatchError, match=r"'a' changes 'model\.layers.* where 'b' changes 'layers.*pass base=PATH"):
        mergekern.measure([tmp_path / "a", tmp_path / "b"])
    inner = mergekern.measure([tmp_path / "a", tmp_path / "b"], state(model)).inner
    assert inner[0, 1] == pytest.approx(inner[0, 0], rel=1e-12)


def test_adapters_that_name_different_bases(tmp_path, caplog):
    for name in "ab":
        adapt(seeded(llama), tmp_path / name, **LINEAR)
        configure(tmp_path / name, base_model_name_or_path=f"org/{name}")
    with caplog.at_level(logging.WARNING):
        open_zoo([tmp_path / "a", tmp_path / "b"], needs_base=False)
    assert "the adapters name different bases" in caplog.text


# --- what is refused, and how


def renamed(old, new):
    def change(folder):
        path = folder / "adapter_model.safetensors"
        save_file({name.replace(old, new): values for name, values in load_file(path).items()}, path)

    return change


def only(keep):
    def change(folder):
        path = folder / "adapter_model.safetensors"
        save_file({name: values for name, values in load_file(path).items() if keep(name)}, path)

    return change


REFUSED = {
    "LoHa": ({"peft_type": "LOHA"}, "peft_type 'LOHA'; of adapters only LoRA is read: merge it into its base"),
    "IA3": ({"peft_type": "IA3"}, "peft_type 'IA3'; .*merge_and_unload"),
    "VeRA": ({"peft_type": "VERA"}, "peft_type 'VERA'; .*merge_and_unload"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "peft_type 'ADALORA'; .*merge_and_unload"),
    "prompts": ({"peft_type": "PREFIX_TUNING"}, "a PREFIX_TUNING adapter, which changes no weights: leave it out"),
    "no kind": ({"peft_type": None}, "peft_type None"),
    "DoRA": ({"use_dora": True}, "use_dora=True, which is more than s·BA: merge it into its base"),
    "QALoRA": ({"use_qalora": True}, "use_qalora=True"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication="),
    "parameters": ({"target_parameters": ["experts.down"]}, "target_parameters="),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices="),
    "activated LoRA": ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens="),
    "an option not known yet": ({"use_tomorrow": {"a": 1}}, "use_tomorrow=.*more than s·BA"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', with which .* changes its base: convert it"),
    "OLoRA": ({"init_lora_weights": "olora"}, "'olora', .*path_initial_model_for_weight_conversion"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "'loftq'"),
    "no number": ({"lora_alpha": "8"}, "lora_alpha or alpha_pattern is of no use .*'8'"),
    "another rank": ({"r": 8}, r"'model\.layers\.0\.mlp\.down_proj' have rank 4, but adapter_config\.json says 8"),
    "a bad pattern": ({"rank_pattern": {"(": 4}}, "r or rank_pattern is of no use"),
    "a list of patterns": ({"rank_pattern": [4]}, "r or rank_pattern is of no use"),
    "magnitudes": (renamed("lora_A.weight", "lora_magnitude_vector"), "magnitude_vector' is more than LoRA factors"),
    "half": (only(lambda name: "lora_A" in name), "only '.*lora_A.weight' is there"),
    "nothing": (only(lambda name: False), "holds no tensors"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "a PEFT adapter without its wei"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "config.json: not a usable config"),
    "a list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "config.json: not a usable config"),
    "truncated": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"12345678"),
        "adapter_model.safetensors: not a readable",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    adapt(seeded(llama), folder, **LINEAR)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(change, message, saved, tmp_path):
    for name, content in saved.items():
        (tmp_path / name).write_bytes(content)
    configure(tmp_path, **change) if isinstance(change, dict) else change(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_grouped_convolutions_are_refused(tmp_path):
    adapt(seeded(Convolutions), tmp_path, merge=False, target_modules=["grouped"], r=4)
    with pytest.raises(CheckpointError, match=r"'grouped' have shapes .*convolutions in one group"):
        open_checkpoint(tmp_path)


def test_attention_of_torch_is_refused(tmp_path):
    """PEFT 0.21 adds the factors of its output projection twice, forwards and when it merges."""
    adapt(seeded(Convolutions), tmp_path, target_modules=["attention"], r=4)
    with pytest.raises(
        CheckpointError, match=r"attention\.base_layer\.out_proj\.lora_A.* wrapped torch.nn module; merge"
    ):
        open_checkpoint(tmp_path)


def test_two_parts_of_one_tied_tensor_are_refused(tmp_path):
    adapt(seeded(llama), tmp_path / "a", target_modules=["embed_tokens", "lm_head"], r=4)
    tied = state(seeded(llama))
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"]
    with pytest.raises(CheckpointError, match="which are one tensor in the base"):
        open_zoo({"a": tmp_path / "a", "b": tied}, tied)


def test_shapes_that_do_not_fit_the_base(tmp_path):
    adapt(seeded(llama), tmp_path / "a", **LINEAR)
    base = state(seeded(llama))
    base["model.layers.1.mlp.down_proj.weight"] = torch.zeros(24, 41)
    with pytest.raises(MismatchError, match=r"down_proj\.weight: shape \(24, 41\) in 'base', \(24, 40\) in 'a'"):
        open_zoo({"a": tmp_path / "a", "b": base}, base)


# --- the base


@pytest.fixture
def folders(tmp_path):
    for seed, name in enumerate("ab"):
        adapt(seeded(llama), tmp_path / name, seed=seed, **LINEAR)
    return [tmp_path / "a", tmp_path / "b"]


def test_a_base_is_needed_for_what_is_held_whole(folders, tmp_path):
    adapt(seeded(llama), tmp_path / "c", modules_to_save=["lm_head"], **LINEAR)
    configure(tmp_path / "c", base_model_name_or_path="org/base")
    with pytest.raises(OptionError, match=r"c: holds 'lm_head.weight' whole .*pass base=org/base, or on_mismatch"):
        mergekern.measure([*folders, tmp_path / "c"])
    statistics = mergekern.measure([*folders, tmp_path / "c"], options=mergekern.MeasureOptions(on_mismatch="skip"))
    assert [line.partition(":")[0] for line in statistics.skipped] == ["lm_head.weight"]
    assert len(statistics.layers) == 4


def test_a_base_is_needed_beside_full_checkpoints_and_for_merges(folders):
    with pytest.raises(OptionError, match="no base checkpoint"):
        mergekern.measure({"a": folders[0], "full": state(seeded(llama))})
    with pytest.raises(OptionError, match="no base checkpoint"):
        mergekern.merge(folders, method="ties")


def test_an_adapter_is_no_base(folders):
    with pytest.raises(CheckpointError, match="a LoRA adapter cannot be the base"):
        open_zoo([*folders[1:], state(seeded(llama))], folders[0])


def test_reads_without_a_base_say_so(folders):
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' is an adapter's, .*pass base=PATH"):
        open_checkpoint(folders[0]).read("model.layers.0.self_attn.q_proj.weight")
    zoo = open_zoo(folders, needs_base=False)
    with pytest.raises(CheckpointError, match="pass base=PATH"):
        zoo.base.read(zoo.tensors[0].name)


def test_merges_are_those_of_the_merged_models(tmp_path):
    model = seeded(llama)
    options = {"target_modules": ["q_proj", "embed_tokens"], "r": 4, "modules_to_save": ["norm"]}
    merged = {name: adapt(model, tmp_path / name, seed=seed, **options) for seed, name in enumerate("ab")}
    folders = {name: tmp_path / name for name in merged}
    for method in ("ties", "tsv", "task_arithmetic"):
        found = mergekern.merge(folders, state(model), method)
        expected = mergekern.merge(merged, state(model), method)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12, msg=f"{method} {name}")
        whole = mergekern.merge(folders, state(model), method, max_memory=3000)
        assert all(torch.equal(whole[name], found[name]) for name in found), method


def test_a_folder_of_adapters_is_a_zoo(folders, tmp_path):
    assert open_zoo(tmp_path, needs_base=False).model_names == ("a", "b")
    save_file(state(seeded(llama)), tmp_path / "base.safetensors")
    zoo = open_zoo(tmp_path)
    assert zoo.base.name == "base"
    assert len(zoo.tensors) == len(state(seeded(llama)))
    assert json.loads((folders[0] / "adapter_config.json").read_text())["peft_type"] == "LORA"
