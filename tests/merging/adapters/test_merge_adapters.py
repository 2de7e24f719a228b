"""merge_adapters: what is refused and with which words, what is written and noted, and what the bits depend on."""

import json
import logging

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoints import open_checkpoint
from mergekern.cli import main
from mergekern.errors import CheckpointError, MismatchError, NonFiniteError, OptionError, OutputError
from mergekern.merging.adapters.registry import COMBINATIONS

SIZES = {"layers.0.q": (6, 5), "layers.0.up": (12, 6), "layers.1.q": (6, 5)}
PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "lora_alpha": 4, "base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}


def write(folder, seed=0, rank=2, modules=SIZES, dtype=torch.float32, extra=(), **config):
    """Write an adapter, and return its folder."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    tensors = dict(extra)
    for module in modules:
        m, n = SIZES[module]
        for side, shape in (("A", (rank, n)), ("B", (m, rank))):
            tensors[f"{PREFIX}{module}.lora_{side}.weight"] = torch.randn(shape, generator=draw).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({module.rpartition(".")[2] for module in modules})
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "target_modules": targets, **CONFIG, **config}))
    return folder


def delta(folder, module):
    """Return ΔW of a module of an adapter, as it is read; zeros where the adapter does not change it."""
    adapter = open_checkpoint(folder)
    if f"{module}.weight" not in adapter.factored:
        return torch.zeros(SIZES[module], dtype=torch.float64)
    left, right, scale = adapter.factors(f"{module}.weight")
    return left.double() @ right.double() * scale


def options_of(name):
    given = {"density": 0.5, "svd_rank": 2, "majority_sign": "frequency", "seed": 3}
    return {option: given[option] for option in COMBINATIONS[name].options}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [write(folder / name, seed, lora_alpha=2 + seed) for seed, name in enumerate("abc")]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_order_of_adapters_changes_no_bit(name, folders, tmp_path):
    weights = {"a": 0.5, "b": -1.0, "c": 2.0}
    files = []
    for index, order in enumerate((folders, folders[::-1], folders[1:] + folders[:1])):
        out = tmp_path / str(index)
        mergekern.merge_adapters(list(order), name, weights=weights, output=out, **options_of(name))
        files.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert sorted(files[0]) == ["adapter_config.json", "adapter_model.safetensors", "mergekern.json"]
    assert all(other == files[0] for other in files[1:])


def test_threads_change_no_bit(folders, monkeypatch):
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(mergekern.merge_adapters(folders, "ties_svd", density=0.4, svd_rank=2).tensors)
    assert all(torch.equal(values, found[1][name]) for name, values in found[0].items())


def test_a_merge_is_read_back_as_the_sum_where_ranks_and_modules_differ(tmp_path):
    a = write(tmp_path / "a", 0, rank=2)
    b = write(tmp_path / "b", 1, rank=3, modules=["layers.0.q"], use_rslora=True)
    mergekern.merge_adapters([a, b], "cat", weights=[2, -1], output=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 5
    assert config["rank_pattern"] == config["alpha_pattern"] == {"layers.0.up": 2, "layers.1.q": 2}
    assert config["target_modules"] == sorted(SIZES)
    for module in SIZES:
        expected = 2 * delta(a, module) - delta(b, module)
        torch.testing.assert_close(delta(tmp_path / "out", module), expected, rtol=0, atol=1e-6)
    record = json.loads((tmp_path / "out" / "mergekern.json").read_text())
    assert record["notes"] == [
        "modules that not all adapters change, where only those that do count (2): layers.0.up, layers.1.q"
    ]
    assert [(model["name"], model["weight"]) for model in record["models"]] == [("a", 2.0), ("b", -1.0)]
    assert (record["method"], record["base"], record["truncation_error"]) == ("cat", "org/base", {})


def test_the_error_of_the_truncation_is_that_of_the_dense_sum(folders, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="mergekern.notes"):
        mergekern.merge_adapters(folders, "svd", svd_rank=3, output=tmp_path / "out")
    lost, square, worst = 0.0, 0.0, 0.0
    for module in SIZES:
        values = np.linalg.svd(sum(delta(folder, module) for folder in folders).numpy(), compute_uv=False) ** 2
        lost, square = lost + values[3:].sum(), square + values.sum()
        worst = max(worst, np.sqrt(values[3:].sum() / values.sum()))
    record = json.loads((tmp_path / "out" / "mergekern.json").read_text())
    assert float(record["truncation_error"]["all modules"]) == pytest.approx(np.sqrt(lost / square), abs=1e-7)
    assert float(record["truncation_error"]["worst module"]) == pytest.approx(worst, abs=1e-7)
    assert f"approximation by a lower rank: {np.sqrt(lost / square):.3g} in all modules" in caplog.text
    merged = mergekern.merge_adapters(folders, "svd", svd_rank=3)
    assert merged.truncation_error == pytest.approx(np.sqrt(lost / square), rel=1e-12)
    assert mergekern.merge_adapters(folders, "cat").truncation_error == 0.0


def test_one_adapter_alone_gets_a_lower_rank(folders):
    merged = mergekern.merge_adapters(folders[0], "svd", svd_rank=1)
    b, a = (merged.tensors[f"{PREFIX}layers.0.q.lora_{side}.weight"].double().numpy() for side in "BA")
    u, s, v = np.linalg.svd(delta(folders[0], "layers.0.q").numpy())
    np.testing.assert_allclose(b @ a, s[0] * np.outer(u[:, 0], v[0]), rtol=0, atol=1e-6)
    assert merged.config["target_modules"] == ["q", "up"]
    assert 0 < merged.truncation_error < 1


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float64", "float16")])
def test_the_result_has_the_widest_dtype_of_the_factors_or_the_one_asked_for(dtypes, tmp_path):
    names = [write(tmp_path / d, i, dtype=getattr(torch, t)) for i, (d, t) in enumerate(zip("ab", dtypes, strict=True))]
    exact = mergekern.merge_adapters(names, "cat", dtype="float64").tensors
    merged = mergekern.merge_adapters(names, "cat")
    expected = torch.promote_types(*(getattr(torch, dtype) for dtype in dtypes))
    assert {values.dtype for values in merged.tensors.values()} == {expected}
    assert any("of several dtypes" in note for note in merged.notes) == (dtypes[0] != dtypes[1])
    for name, values in exact.items():
        stored = values if expected == torch.float64 else values.float().to(expected)
        assert torch.equal(merged.tensors[name], stored)


def test_values_beyond_the_dtype_are_refused_and_nothing_is_left(folders, tmp_path):
    with pytest.raises(OptionError, match=r"layers\.0\.q\.lora_A.*beyond the range of float16; pass a wider dtype"):
        mergekern.merge_adapters(folders, "cat", weights=[1e6, 1, 1], dtype="float16", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_masks_follow_seed_and_content(folders):
    def merged(paths, seed):
        return mergekern.merge_adapters(paths, "dare_linear", density=0.5, seed=seed).tensors

    renamed = {"z": folders[0], "y": folders[1]}
    first, second = merged(folders[:2], 0), merged(folders[:2], 1)
    assert all(torch.equal(values, merged(renamed, 0)[name]) for name, values in first.items())
    assert not all(torch.equal(values, second[name]) for name, values in first.items())


def test_a_module_name_without_parent_is_not_taken_for_all_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "q", (6, 5))
    a, b = write(tmp_path / "a", 0, modules=["q"]), write(tmp_path / "b", 1, rank=3, modules=["q", "layers.0.q"])
    config = mergekern.merge_adapters([a, b], "cat").config
    assert config["target_modules"] == r"layers\.0\.q|q"
    assert config["rank_pattern"] == {"layers.0.q": 3}


# --- what is refused


@pytest.mark.parametrize(
    ("combination", "options", "message"),
    [
        ("cats", {}, "unknown combination 'cats' .*did you mean 'cat'"),
        ("cat", {"density": 0.5}, "cat takes no density; it takes no options"),
        ("ties", {"density": 0.5, "svd_rank": 2}, "ties takes no svd_rank; it takes density, majority_sign"),
        ("ties", {}, "ties needs a density"),
        ("dare_linear", {"density": 0}, "density must be above 0 and at most 1, not 0"),
        ("magnitude_prune", {"density": 1.5}, "density must be above 0 and at most 1, not 1.5"),
        ("svd", {"svd_rank": 0}, "svd_rank must be a positive integer, not 0"),
        ("ties", {"density": 1, "majority_sign": "mean"}, "majority_sign must be 'total' or 'frequency', not 'mean'"),
        ("dare_ties", {"density": 1, "seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ("cat", {"weights": [1, 2]}, "2 weights for 3 models"),
        ("cat", {"weights": [1, 2, float("nan")]}, "a weight must be a finite number, not nan"),
        ("cat", {"weights": {"a": 1, "b": 1, "d": 1}}, "a weight for 'd', which is no model"),
        ("cat", {"dtype": "int8"}, "dtype must be one of"),
        ("cat", {"saved_whole": "first"}, "saved_whole must be 'error' or 'average' or 'skip', not 'first'"),
        ("cat", {"rename": {"decoder": "model"}}, "rename: no tensor .* has 'decoder' in its name"),
    ],
)  # fmt: skip
def test_options_that_are_wrong(combination, options, message, folders, tmp_path):
    with pytest.raises(OptionError, match=message):
        mergekern.merge_adapters(folders, combination, output=tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def whole(values):
    return {f"{PREFIX}head.weight": torch.tensor(values)}


REFUSED = {
    "ranks": ({"rank": 3}, "linear", MismatchError, r"'layers.0.q' has the ranks 2 in 'a', 3 in 'b'.* cat and svd"),
    "base": ({"base_model_name_or_path": "org/other"}, "cat", OptionError,
             r"different bases \(a: org/base; b: org/other\).*base_name=NAME"),
    "orientation": ({"fan_in_fan_out": True}, "cat", OptionError, "fan_in_fan_out is true in b and not in a"),
    "DoRA": ({"use_dora": True}, "cat", CheckpointError, "use_dora=True, which is more than s·BA"),
    "whole": ({"extra": whole([1.0])}, "cat", OptionError, r"1 tensors saved whole .*\(head.weight\).*saved_whole="),
    "whole and factors": ({"modules": ["layers.0.q", "layers.0.up"], "extra": {f"{PREFIX}layers.1.q.weight":
                          torch.ones(6, 5)}}, "cat", MismatchError, "'layers.1.q.weight' is held whole by b and as"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "combination", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_adapters_that_do_not_fit_together(changes, combination, error, message, tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", 1, **changes)
    with pytest.raises(error, match=message):
        mergekern.merge_adapters([a, b], combination, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_shapes_names_and_values_that_do_not_fit(folders, tmp_path, monkeypatch):
    path = tmp_path / "wrapped" / "adapter_model.safetensors"
    write(path.parent, 1)
    tensors = load_file(path)
    save_file({name.replace(PREFIX, PREFIX + "model."): values for name, values in tensors.items()}, path)
    with pytest.raises(MismatchError, match=r"'a' changes 'layers.0.q.weight' where 'wrapped' changes 'model.layers"):
        mergekern.merge_adapters([folders[0], path.parent], "cat")
    merged = mergekern.merge_adapters([folders[0], path.parent], "cat", rename={"model.layers": "layers"})
    assert "3 of its tensors were renamed as asked (in wrapped)" in merged.notes
    tensors[f"{PREFIX}layers.1.q.lora_A.weight"][0, 2] = float("nan")
    save_file(tensors, path)
    with pytest.raises(NonFiniteError, match=r"'layers.1.q' of 'wrapped': 1 values are NaN or infinite"):
        mergekern.merge_adapters([folders[0], path.parent], "cat", output=tmp_path / "out")
    monkeypatch.setitem(SIZES, "layers.0.q", (6, 7))
    other = write(tmp_path / "other")
    with pytest.raises(MismatchError, match=r"'layers.0.q.weight': \(6, 5\) in 'a', \(6, 7\) in 'other'"):
        mergekern.merge_adapters([folders[0], other], "cat")
    save_file({"w": torch.ones(2)}, tmp_path / "full.safetensors")
    with pytest.raises(CheckpointError, match=r"full.safetensors: no LoRA adapter; whole models are merged by merge"):
        mergekern.merge_adapters([folders[0], tmp_path / "full.safetensors"], "cat")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["svd", "ties_svd"])
def test_sums_that_are_too_large_are_refused(name, tmp_path):
    a = write(tmp_path / "a", dtype=torch.float64, lora_alpha=1e307)
    with pytest.raises(OptionError, match=r"'layers.0.q': the sum of its products is too large for float64"):
        mergekern.merge_adapters(a, name, **options_of(name), output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_biases_of_b_beside_an_embedding_are_refused(tmp_path):
    bias = {f"{PREFIX}layers.0.q.lora_B.bias": torch.ones(6)}
    a = write(tmp_path / "a", modules=["layers.0.q"], extra=bias, lora_bias=True)
    factors = {
        f"{PREFIX}embed.lora_embedding_{side}": torch.ones(shape) for side, shape in (("A", (2, 9)), ("B", (6, 2)))
    }
    b = write(tmp_path / "b", extra=factors)
    with pytest.raises(OptionError, match=r"'embed' is an embedding, and other modules have biases of B"):
        mergekern.merge_adapters([a, b], "cat")


def test_adapters_without_a_common_module_are_merged_with_a_note(tmp_path):
    a, b = write(tmp_path / "a", modules=["layers.0.q"]), write(tmp_path / "b", modules=["layers.0.up"])
    assert "adapters that share no module with another: a, b" in mergekern.merge_adapters([a, b], "cat").notes


def test_a_base_is_named_where_adapters_differ(tmp_path):
    a = write(tmp_path / "a", task_type="SEQ_2_SEQ_LM")
    b = write(tmp_path / "b", base_model_name_or_path="org/other")
    (b / "tokenizer.json").write_text("{}")
    merged = mergekern.merge_adapters([a, b], "linear", base_name="org/same")
    assert merged.config["base_model_name_or_path"] == "org/same"
    assert merged.config["task_type"] is None
    assert merged.notes == [
        "task_type differs among the adapters, and is left open: CAUSAL_LM, SEQ_2_SEQ_LM",
        "files beside the adapters, which are not copied (1): tokenizer.json",
    ]
    assert mergekern.merge_adapters([b, a], "linear", base_name="org/same").notes == merged.notes


# --- the output


def test_output_is_replaced_only_where_it_is_ours(folders, tmp_path):
    out = tmp_path / "out"
    mergekern.merge_adapters(folders, "cat", output=out)
    with pytest.raises(OutputError, match="is there already; pass overwrite=True"):
        mergekern.merge_adapters(folders, "svd", output=out)
    mergekern.merge_adapters(folders, "svd", output=out, overwrite=True)
    assert json.loads((out / "mergekern.json").read_text())["method"] == "svd"
    with pytest.raises(OutputError, match="is 'out' itself, which is read"):
        mergekern.merge_adapters([out, folders[0]], "svd", output=out, overwrite=True)
    (out / "mergekern.json").unlink()
    with pytest.raises(OutputError, match="only what mergekern wrote is replaced"):
        mergekern.merge_adapters(folders, "svd", output=out, overwrite=True)
    with pytest.raises(OutputError, match="an adapter is a folder"):
        mergekern.merge_adapters(folders, "svd", output=tmp_path / "out.safetensors")
    with pytest.raises(OutputError, match="the folder it is to lie in does not exist"):
        mergekern.merge_adapters(folders, "svd", output=tmp_path / "no" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_adapter_that_changes_meanwhile_is_noticed(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", 1)

    def change(_):
        save_file(load_file(a / "adapter_model.safetensors"), a / "new.safetensors")
        (a / "new.safetensors").replace(a / "adapter_model.safetensors")

    with pytest.raises(CheckpointError, match="was changed while 'a' was being read"):
        mergekern.merge_adapters([a, b], "cat", output=tmp_path / "out", progress=change)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_command(folders, tmp_path):
    out = tmp_path / "out"
    line = ["merge-adapters", *map(str, folders), "--combination", "ties", "--weights=-1,2,0.5", "--density", "0.5"]
    result = CliRunner().invoke(main, [*line, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output
    expected = mergekern.merge_adapters(folders, "ties", weights=[-1, 2, 0.5], density=0.5)
    found = load_file(out / "adapter_model.safetensors")
    assert found.keys() == expected.tensors.keys()
    assert all(torch.equal(values, found[name]) for name, values in expected.tensors.items())
    assert json.loads((out / "adapter_config.json").read_text()) == expected.config
    result = CliRunner().invoke(main, [*line[:-2], "--out", str(out), "--overwrite"])
    assert (result.exit_code, result.output) == (
        1,
        "Error: ties needs a density, the share of the elements that are kept, such as density=0.5\n",
    )
