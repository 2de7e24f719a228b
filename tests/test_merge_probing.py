"""Merge probes: beside merging and running every model by hand, what a method does alone, and that runs continue."""

import itertools

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import mergekern
from mergekern import CalibrationError, MetricTable, MismatchError, OptionError, StatisticsError
from mergekern.cli import main
from mergekern.functional.merge_probes import merge_probes
from mergekern.metrics import CATALOGUE, MERGE_PROBES, is_metric, metric_of
from mergekern.prediction import ablate_categories
from mergekern.report import write_report
from tests.encoders import make_case

SOLO = [name for name in MERGE_PROBES if name.startswith("solo")]


pytestmark = pytest.mark.usefixtures("one_thread")


def run(case, methods, models=None, base=None, **options):
    calibration = options.pop("calibration", None) or case.calibration()
    return merge_probes(models or case.models, base or case.base, calibration=calibration, methods=methods, **options)


def outcome(case, state, task):
    """Loss and accuracy of a state dict on a task, by plain PyTorch."""
    module = case.make()
    module.load_state_dict(state)
    inputs, labels, (weight, bias) = case.tasks[task]
    with torch.no_grad():
        module.eval()
        features = module(**inputs) if isinstance(inputs, dict) else module(inputs)
        logits = features @ weight.T + bias
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def by_hand(case, method, merge):
    """The probes of every pair from `merge`: (a, b or None) -> state dict."""
    single = {name: outcome(case, state, name) for name, state in case.models.items()}
    rows = {}
    for a, b in itertools.combinations(case.models, 2):
        row = {}
        for kind, both in (("solo", (merge(a, None), merge(b, None))), ("direct", (merge(a, b),) * 2)):
            found = [outcome(case, state, task) for state, task in zip(both, (a, b), strict=True)]
            losses = [merged[0] - single[task][0] for merged, task in zip(found, (a, b), strict=True)]
            shares = [merged[1] / single[task][1] for merged, task in zip(found, (a, b), strict=True)]
            row |= {f"{kind}_loss_mean[{method}]": np.mean(losses), f"{kind}_loss_worst[{method}]": max(losses)}
            row |= {f"{kind}_accuracy_mean[{method}]": np.mean(shares), f"{kind}_accuracy_worst[{method}]": min(shares)}
        rows[a, b] = row
    return pd.DataFrame(rows).T


@pytest.mark.parametrize(("kind", "method"), [("transformer", "tsv"), ("convolutions", "ties"), ("text", "isotropic")])
def test_agrees_with_merging_and_running_by_hand(kind, method):
    case = make_case(kind, samples=37)

    def merge(a, b):
        other = {"second": case.base} if b is None else {"second": case.models[b]}
        return mergekern.merge({"first": case.models[a], **other}, case.base, method)

    frame = run(case, method, direct=True).to_pandas()
    expected = by_hand(case, method, merge)
    assert list(frame) == list(expected[frame.columns]) == [f"{name}[{method}]" for name in MERGE_PROBES]
    pd.testing.assert_frame_equal(frame, expected[frame.columns], rtol=1e-5, atol=1e-5, check_names=False)
    assert frame.std().min() > 1e-3


# Methods whose merge of one task vector with a zero one follows from their papers.
KNOWN_ALONE = ["weight_average", "task_arithmetic", "ties", "tsv", "isotropic", "isotropic_cts", "tall_masks"]


def alone(method, delta):
    """What such a method is to do to one task vector beside a zero one, for a matrix and for a vector."""
    if method == "weight_average":
        return delta / 2
    if method == "task_arithmetic":
        return 0.3 * delta
    if method == "tall_masks":
        return delta
    if method == "ties":
        kept = np.sort(np.abs(delta).ravel())[::-1][int(0.2 * delta.size) - 1]
        return 0.3 * np.where(np.abs(delta) >= kept, delta, 0)
    if delta.ndim == 1:
        return delta / 2
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    rank = len(values)
    if method == "tsv":
        return left[:, : rank // 2] * values[: rank // 2] @ right[: rank // 2]
    if method == "isotropic":
        return values[: rank // 2].sum() / rank * left[:, : rank // 2] @ right[: rank // 2]
    assert method == "isotropic_cts"  # 80 % in common, and half of the rest are the model's own
    kept = int(0.8 * rank) + round((rank - int(0.8 * rank)) / 2)
    return values[:kept].sum() / rank * left[:, :kept] @ right[:kept]


@pytest.mark.parametrize("method", KNOWN_ALONE)
def test_alone_a_method_does_what_its_paper_says(method, monkeypatch):
    """What reaches the models is caught; the merges are those of a model with the base."""
    draw = np.random.default_rng(0)
    base = {"weight": draw.standard_normal((10, 20)), "bias": draw.standard_normal(10)}
    deltas = {name: {key: draw.standard_normal(v.shape) for key, v in base.items()} for name in "ab"}
    models = {name: {key: base[key] + delta[key] for key in base} for name, delta in deltas.items()}
    caught = catch_merges(monkeypatch)
    merge_probes(models, base, calibration=linear_calibration("ab"), methods=method)
    assert list(caught) == [(method, "a"), (method, "b")]
    for (_, name), merged in caught.items():
        for key, delta in deltas[name].items():
            np.testing.assert_allclose(merged[key].numpy() - base[key], alone(method, delta), atol=1e-9)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_alone_dare_keeps_the_elements_that_it_keeps_in_a_pair(method, monkeypatch):
    draw = np.random.default_rng(0)
    base = {"weight": np.zeros((10, 20)), "bias": np.zeros(10)}
    models = {name: {key: draw.standard_normal(v.shape) for key, v in base.items()} for name in "ab"}
    caught = catch_merges(monkeypatch)
    merge_probes(models, base, calibration=linear_calibration("ab"), methods=method, direct=True)
    factor = {"dare": 1 / 0.1 / 2, "dare_ties": 0.3 / 0.1}[method]
    a, b, both = (caught[method, names]["weight"].numpy() for names in ("a", "b", "a + b"))
    for merged, name in ((a, "a"), (b, "b")):
        kept = merged != 0
        assert 0.02 < kept.mean() < 0.2
        np.testing.assert_allclose(merged[kept], factor * models[name]["weight"][kept])
    one = (a != 0) ^ (b != 0)  # where one of them is kept alone, the pair has what it has alone
    np.testing.assert_allclose(both[one], (a + b)[one])
    assert (both[(a == 0) & (b == 0)] == 0).all()


def catch_merges(monkeypatch):
    """Let merged tensors be kept by (method, models) as they are handed over."""
    caught, real = {}, mergekern.functional.merge_probes.open_checkpoint

    def catch(state, what):
        method, _, models = what.partition(" of ")
        caught[method, models] = state
        return real(state, what)

    monkeypatch.setattr(mergekern.functional.merge_probes, "open_checkpoint", catch)
    return caught


def linear_calibration(names, count=12, loss=nn.functional.cross_entropy, dtype=torch.float64, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(count, 20, generator=draw)
    labels = torch.arange(count) % 10 if loss is nn.functional.cross_entropy else torch.randn(count, 10, generator=draw)
    head = torch.eye(10), None
    model = nn.Linear(20, 10)
    return mergekern.Calibration(model, dict.fromkeys(names, (inputs, labels, head)), "", loss=loss, dtype=dtype)


def test_solo_probes_are_of_single_models():
    case = make_case("transformer", models=4)
    table = run(case, "ties")
    assert len(table.metrics) == 4
    mean, worst = (table.matrix(f"solo_loss_{what}[ties]") for what in ("mean", "worst"))
    own = np.diagonal(mean)
    np.testing.assert_allclose(mean, (own[:, None] + own) / 2)
    np.testing.assert_allclose(worst, np.maximum(own[:, None], own))
    lowest = table.matrix("solo_accuracy_worst[ties]")
    np.testing.assert_allclose(lowest, np.minimum.outer(np.diagonal(lowest), np.diagonal(lowest)))


def test_tall_masks_leaves_a_model_alone_as_it_is():
    table = run(make_case("text"), "tall_masks")
    assert np.abs(table.matrix("solo_loss_worst[tall_masks]")).max() < 1e-6


def test_batches_and_the_order_of_models_do_not_matter():
    case = make_case("convolutions", samples=11)
    frame = run(case, ["tsv", "dare"], direct=True).to_pandas()
    for size in (1, 4):
        other = run(case, ["tsv", "dare"], direct=True, calibration=case.calibration(activation_batch_size=size))
        pd.testing.assert_frame_equal(other.to_pandas(), frame, rtol=1e-5, atol=1e-6)
    turned = run(case, ["tsv", "dare"], {name: case.models[name] for name in ("m2", "m0", "m1")}, direct=True)
    for name in frame:
        np.testing.assert_array_equal(turned.matrix(name)[1, 0], frame.loc[("m0", "m2"), name])
    small = run(case, ["tsv", "dare"], direct=True, merged_memory=1).to_pandas()
    pd.testing.assert_frame_equal(small, frame, check_exact=True)


def test_options_of_methods():
    case = make_case("transformer")
    plain, all_of_it = run(case, "ties"), run(case, "ties", options={"ties": {"density": 1.0, "scale": 1.0}})
    assert np.abs(all_of_it.matrix("solo_loss_mean[ties]")).max() < 1e-5
    assert np.abs(plain.matrix("solo_loss_mean[ties]")).max() > 1e-2
    assert all_of_it.provenance["merge_probes"]["methods"]["ties"]["density"] == 1.0


def test_labels_that_are_no_classes_have_losses_alone():
    calibration = linear_calibration("ab", loss=nn.functional.mse_loss)
    models = {name: {"weight": np.ones((10, 20)), "bias": np.full(10, float(value))} for value, name in enumerate("ab")}
    base = {"weight": np.zeros((10, 20)), "bias": np.zeros(10)}
    table = merge_probes(models, base, calibration=calibration, methods="weight_average", direct=True)
    assert list(table.metrics) == [f"{name}[weight_average]" for name in MERGE_PROBES if "loss" in name]
    assert not table.notes
    inputs, labels, _ = calibration.tasks["a"]

    def loss(value, share):
        features = share * inputs.double().sum(1, keepdim=True) + value
        return nn.functional.mse_loss(features.expand(-1, 10), labels.double()).item()

    expected = np.mean([loss(0, 0.5) - loss(0, 1), loss(0.5, 0.5) - loss(1, 1)])
    assert table.matrix("solo_loss_mean[weight_average]")[0, 1] == pytest.approx(expected)


def test_losses_that_are_not_finite_have_no_value_and_are_not_measured_again(tmp_path):
    calibration = linear_calibration("abc", dtype=torch.float32, scale=1e37)
    draw = np.random.default_rng(0)
    scales = {"a": 1e3, "b": 1e3, "c": 1e-37}
    models = {
        name: {"weight": scale * draw.standard_normal((10, 20)), "bias": np.zeros(10)} for name, scale in scales.items()
    }
    base = {"weight": np.zeros((10, 20)), "bias": np.zeros(10)}
    arguments = {"calibration": calibration, "methods": "weight_average", "statistics": tmp_path / "kept"}
    table = merge_probes(models, base, **arguments)
    assert np.isnan(table.matrix("solo_loss_mean[weight_average]")[0, 1])
    assert np.isfinite(table.matrix("solo_loss_mean[weight_average]")[2, 2])
    assert any("a loss is not finite" in note and "(a, b)" in note for note in table.notes)
    seen = []
    merge_probes(models, base, progress=seen.append, **arguments)
    assert [step.probe for step in seen] == [""]


def test_adapters_are_probed_as_the_models_they_make(tmp_path):
    torch.manual_seed(0)
    case = make_case("transformer", samples=37)
    full, adapters = {}, {}
    for name in case.models:
        model = peft.get_peft_model(
            built(case), peft.LoraConfig(r=8, target_modules=["linear1", "linear2"], init_lora_weights=False)
        )
        model.save_pretrained(tmp_path / name)
        adapters[name], full[name] = tmp_path / name, model.merge_and_unload().state_dict()
    found, expected = (run(case, ["tsv", "ties"], models, direct=True) for models in (adapters, full))
    assert found.to_pandas().filter(like="loss").std().min() > 1e-3
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), rtol=1e-4, atol=1e-4)


def built(case):
    module = case.make()
    module.load_state_dict(case.base)
    return module


def test_half_precision_and_tensors_that_not_all_share():
    case = make_case("transformer")
    half = {name: {k: v.bfloat16() for k, v in state.items()} for name, state in case.models.items()}
    base = {name: values.bfloat16() for name, values in case.base.items()}
    found, near = run(case, "weight_average", half, base).to_pandas(), run(case, "weight_average").to_pandas()
    losses = [name for name in near if "loss" in name]
    np.testing.assert_allclose(found[losses], near[losses], atol=0.1)
    assert (found != near).any().any()
    case.models["m1"]["extra"] = torch.ones(2)
    with pytest.raises(MismatchError, match="extra"):
        run(case, "ties")
    with pytest.raises(MismatchError, match="not in the model: extra"):
        run(case, "ties", on_mismatch="skip")


# --- continuing


def test_a_run_that_was_killed_continues(tmp_path, monkeypatch):
    case = make_case("transformer", models=4)
    folder = tmp_path / "kept"
    arguments = {"methods": ["tsv", "weight_average"], "direct": True}
    whole = run(case, **arguments).to_pandas()
    measured = catch_merges(monkeypatch)
    taken, real = [], mergekern.functional.merge_probes._MethodProbes.put

    def killed(self, *arguments):
        taken.append(arguments)
        if len(taken) > 9:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mergekern.functional.merge_probes._MethodProbes, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            run(case, statistics=folder, **arguments)
    assert sorted(path.name for path in folder.iterdir()) == ["tsv.safetensors", "weight_average.safetensors"]
    first = len(measured)
    measured.clear()
    pd.testing.assert_frame_equal(run(case, statistics=folder, **arguments).to_pandas(), whole, check_exact=True)
    assert 0 < len(measured) < 20 - 7 < first + 20
    measured.clear()
    pd.testing.assert_frame_equal(run(case, statistics=folder, **arguments).to_pandas(), whole, check_exact=True)
    assert not measured
    more = run(case, ["tsv", "weight_average", "ties"], statistics=folder)
    assert {method for method, _ in measured} == {"ties"}
    pd.testing.assert_frame_equal(
        more.to_pandas()[[f"{name}[tsv]" for name in SOLO]], whole[[f"{n}[tsv]" for n in SOLO]]
    )


@pytest.mark.parametrize("what", ["weights", "base", "samples", "options", "names", "damaged"])
def test_what_belongs_to_other_inputs_is_measured_again(what, tmp_path):
    case, folder = make_case("transformer"), tmp_path / "kept"
    run(case, "ties", statistics=folder)
    options = {}
    if what == "weights":
        case.models["m1"]["patches.bias"] = case.models["m1"]["patches.bias"] + 1
    elif what == "base":
        case.base["patches.bias"] = case.base["patches.bias"] + 1
    elif what == "samples":
        inputs, labels, head = case.tasks["m1"]
        case.tasks["m1"] = (inputs + 1, labels, head)
    elif what == "options":
        options["options"] = {"ties": {"density": 0.5}}
    elif what == "names":
        case.models = {name: case.models[f"m{(int(name[1]) + 1) % 3}"] for name in case.models}
    else:
        (folder / "ties.safetensors").write_bytes(b"nothing")
    found, expected = run(case, "ties", statistics=folder, **options), run(case, "ties", **options)
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), check_exact=True)


def test_progress_counts_merges():
    seen = []
    run(make_case("transformer"), ["ties", "tsv"], direct=True, progress=seen.append)
    assert [step.probe for step in seen][:3] == ["ties of m0", "tsv of m0", "ties of m1"]
    assert seen[-1].probe == ""
    assert seen[-1].tensors_done == seen[-1].tensors_total > 0
    assert len(seen) == 2 * (3 + 3) + 1


# --- what cannot be


def test_bad_input_is_named(tmp_path):
    case = make_case("transformer")
    with pytest.raises(OptionError, match=r"unknown merge method 'tis' \(did you mean 'ties'"):
        run(case, "tis")
    with pytest.raises(CalibrationError, match="no calibration samples for 'extra'"):
        run(case, "ties", {**case.models, "extra": case.models["m0"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(StatisticsError, match="is a file"):
        run(case, "ties", statistics=tmp_path / "file")
    bad = {name: {k: v * torch.nan if v.is_floating_point() else v for k, v in state.items()} if name == "m1" else state
           for name, state in case.models.items()}  # fmt: skip
    with pytest.raises(mergekern.NonFiniteError, match="m1"):
        run(case, "ties", bad, statistics=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    lacking = {name: values for name, values in case.base.items() if name != "patches.bias"}
    with pytest.raises(MismatchError, match=r"'base' does not fit.*missing: patches.bias"):
        run(case, "ties", base=lacking, on_mismatch="skip")


# --- the catalogue and the table


def test_the_metrics_of_the_catalogue_stay_what_all_is():
    assert len(CATALOGUE) >= 28
    assert not CATALOGUE.keys() & MERGE_PROBES.keys()
    case = make_case("transformer")
    table = mergekern.compute_all(case.models, case.base, calibration=case.calibration())
    assert list(table.metrics) == list(CATALOGUE)
    for name in ("merge probes", "solo_loss_mean"):
        with pytest.raises(OptionError, match=r"mergekern\.merge_probes"):
            mergekern.compute_all(case.models, case.base, metrics=["all", name])


@pytest.mark.parametrize("name", MERGE_PROBES)
def test_entries_are_complete(name):
    entry = MERGE_PROBES[name]
    assert entry.name == name == entry.function.__name__
    assert entry.category == "merge probes"
    assert entry.runs_models
    assert entry.range[0] < entry.range[1]
    assert entry.more_mergeable == ("lower" if "loss" in name else "higher")
    assert entry.explanation.startswith("What a merge method does")
    column = metric_of(f"{name}[ties]")
    assert (column.name, column.formula) == (f"{name}[ties]", entry.formula)
    assert not is_metric(name)
    assert not is_metric("stable_rank[ties]")
    with pytest.raises(OptionError, match="did you mean"):
        metric_of(f"{name}s[ties]")


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_a_table_of_both_is_kept_and_reported(tmp_path, suffix):
    case = make_case("transformer", models=4)
    metrics = mergekern.compute_all(case.models, case.base, calibration=case.calibration(), per_layer=True)
    probed = run(case, ["ties", "tsv"], {name: case.models[name] for name in ("m3", "m1", "m0", "m2")}, direct=True)
    table = metrics.join(probed)
    assert table.models == metrics.models
    assert table.metrics == (*metrics.metrics, *probed.metrics)
    assert table.matrix("direct_loss_mean[tsv]")[0, 3] == probed.matrix("direct_loss_mean[tsv]")[2, 0]
    assert table.provenance["merge_probes"]["calibration"]["samples"] == dict.fromkeys(case.models, 10)
    table.save(tmp_path / f"table.{suffix}")
    loaded = MetricTable.load(tmp_path / f"table.{suffix}")
    pd.testing.assert_frame_equal(loaded.to_pandas(), table.to_pandas(), check_exact=True)
    assert loaded.per_layer("solo_loss_mean[ties]").shape[1] == 0
    assert loaded.ranked("solo_loss_mean[ties]")["solo_loss_mean[ties]"].is_monotonic_increasing
    write_report(loaded, tmp_path / "report.html", metric="direct_accuracy_worst[tsv]")
    page = (tmp_path / "report.html").read_text()
    assert "merge probes" in page
    assert "Direct accuracy worst, tsv" in page
    write_report(loaded, tmp_path / "figures.pdf", metric="direct_accuracy_worst[tsv]")


def test_tables_that_do_not_fit_are_not_joined():
    one = MetricTable("ab", {"stable_rank": np.ones((2, 2))})
    with pytest.raises(OptionError, match="both tables have stable_rank"):
        one.join(one)
    with pytest.raises(OptionError, match="only one has b, c"):
        one.join(MetricTable("ac", {"spectral_gap": np.ones((2, 2))}))


def test_ablation_knows_the_category():
    draw = np.random.default_rng(0)
    index = pd.MultiIndex.from_tuples(list(itertools.combinations("abcdef", 2)), names=["model_a", "model_b"])
    columns = ["stable_rank", "solo_loss_mean[ties]", "solo_loss_worst[ties]"]
    X = pd.DataFrame(draw.standard_normal((15, 3)), index, columns)
    found = ablate_categories(mergekern.prediction.make_predictor("linear"), X, X.sum(axis=1))
    assert found["metrics"].to_dict() == {"all metrics": 3, "effective rank": 1, "merge probes": 2}


# --- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out, case = tmp_path_factory.mktemp("zoo"), make_case("transformer")
    for name, state in {"base": case.base, **case.models}.items():
        save_file(state, out / f"{name}.safetensors")
    case.calibration().save(out / "samples")
    return out


def command(*arguments):
    result = CliRunner().invoke(main, ["metrics", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_metrics_with_merge_probes(folder, tmp_path):
    given = ["--calibration", folder / "samples", "--model", "tests.encoders:Transformer"]
    given += ["--merge-probes", "ties,tsv", "--direct-probes", "--statistics", tmp_path / "statistics"]
    given += ["--out", tmp_path / "table.parquet", "--sort-by", "direct_loss_worst[tsv]"]
    for _ in range(2):
        result = command(folder, *given)
        assert result.exit_code == 0, result.output
        assert "ranked by direct_loss_worst[tsv] (lower is more mergeable)" in result.stdout
    found = MetricTable.load(tmp_path / "table.parquet")
    assert len(found.metrics) == len(CATALOGUE) + 2 * len(MERGE_PROBES)
    case = make_case("transformer")
    expected = run(case, ["ties", "tsv"], direct=True).to_pandas()
    pd.testing.assert_frame_equal(found.to_pandas()[expected.columns], expected, check_exact=True)
    assert "tsv of m0 + m1" not in result.stderr  # the second time nothing is measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merge-probes", "ties"], "give --calibration and --model"),
        (["--merge-probes", "tis"], "no method 'tis' (did you mean 'ties'?)"),
        (["--direct-probes"], "of use with --merge-probes only"),
    ],
)
def test_what_the_command_refuses(folder, arguments, message):
    result = command(folder, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_list_has_them():
    lines = {line.split()[0]: line for line in command("--list").stdout.splitlines() if line.strip()}
    for name, entry in MERGE_PROBES.items():
        assert entry.formula in lines[name]
