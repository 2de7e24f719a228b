"""The study and what is built on it, on tiny zoos: files, resuming, and numbers that fit together."""

import doctest
import json
from itertools import combinations

import click
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import group_study
import mergeability_study
import mergekern
import regularized_finetuning
from mergekern.prediction import read_scores
from study import analysis, findings, scoring
from zoos import making

METHODS = ["weight_average", "tsv"]
TASKS = ["rotated", "parity", "three_or_eight", "erased_quadrant", "low_digits"]
PAIRS = list(combinations(sorted(TASKS), 2))


@pytest.fixture(autouse=True, scope="module")
def short_training():
    """Let perceptrons learn in a second, and few folds validate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(making.RECIPES, "mlp", (60, 4e-3, 30, 2e-3))
        patch.setattr(analysis, "SEEDS", range(2))
        patch.setitem(analysis.REGIMES, "both unseen", analysis.LeaveTasksOut(repeats=3))
        patch.setattr(
            analysis,
            "CANDIDATES",
            {name: analysis.CANDIDATES[name] for name in ("dense", "linear", "additive", "additive+metrics")},
        )
        patch.setattr(scoring, "SAVED_EVERY", 3)
        yield


def run(command, *arguments):
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(command, list(map(str, arguments)))
    finally:
        torch.set_num_threads(threads)


def study(out, *options):
    arguments = ("--architecture", "mlp", "--tasks", len(TASKS), "--methods", ",".join(METHODS), *options)
    return run(mergeability_study.main, out, *arguments)


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of four tasks and two methods; tests leave it as it was."""
    out = tmp_path_factory.mktemp("study") / "mlp"
    result = study(out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it that a test may change."""
    for name, content in contents(finished).items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "copy"


@pytest.mark.parametrize("module", [scoring, analysis, findings, regularized_finetuning, group_study])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_scores_are_in_the_format_of_the_study(finished):
    scores = pd.read_csv(finished / "scores.csv")
    assert list(scores.columns) == ["method", "model_a", "model_b", "accuracy", "normalized_accuracy"]
    for method in METHODS:
        series = read_scores(finished / "scores.csv", method, "normalized_accuracy")
        assert list(series.index) == PAIRS
        assert series.between(0.2, 1.2).all()


def test_scores_are_those_of_merging_and_running_each_model(finished):
    zoo = finished / "zoo"
    alone = pd.read_csv(finished / "alone.csv", index_col="model")
    scores = pd.read_csv(finished / "scores.csv").set_index(["method", "model_a", "model_b"])

    def accuracy(state, task):
        encoder = making.build("mlp")
        encoder.load_state_dict(state)
        data = load_file(zoo / "calibration" / f"{task}.safetensors")
        with torch.no_grad():
            logits = encoder(data["test.inputs"]) @ data["head.weight"].T + data["head.bias"]
        return (logits.argmax(1) == data["test.labels"]).double().mean().item()

    records = json.loads((zoo / "model.json").read_text())["tasks"]
    for task in TASKS:
        single = accuracy(load_file(zoo / f"{task}.safetensors"), task)
        assert alone.loc[task, "accuracy"] == pytest.approx(single, abs=0.01)
        assert records[task]["accuracy"] == pytest.approx(single, abs=0.01)
    for method in METHODS:
        for a, b in (PAIRS[0], PAIRS[-1]):
            models = {name: zoo / f"{name}.safetensors" for name in (a, b)}
            merged = mergekern.merge(models, zoo / "base.safetensors", method)
            found = [accuracy(merged, task) for task in (a, b)]
            row = scores.loc[(method, a, b)]
            assert row["accuracy"] == pytest.approx(np.mean(found), abs=0.01)
            ratios = np.array(found) / alone.loc[[a, b], "accuracy"]
            assert row["normalized_accuracy"] == pytest.approx(ratios.mean(), abs=0.01)


def test_metrics_are_those_of_the_models(finished):
    table = mergekern.MetricTable.load(finished / "metrics.parquet")
    assert len(table.metrics) == 28
    assert list(table.to_pandas().index) == PAIRS
    expected = mergekern.compute_all(finished / "zoo", metrics="task-vector geometry", device="cpu").to_pandas()
    np.testing.assert_array_equal(table.to_pandas()[expected.columns], expected)


def test_analysis_has_every_method_regime_and_predictor(finished):
    validation = pd.read_csv(finished / "analysis" / "validation.csv", index_col=["method", "regime", "predictor"])
    assert len(validation) == len(METHODS) * len(analysis.REGIMES) * len(analysis.CANDIDATES)
    variance = pd.read_csv(finished / "analysis" / "variance_components.csv", index_col="method")
    np.testing.assert_allclose(variance["tasks"] + variance["pair"], 1)
    coefficients = pd.read_csv(finished / "analysis" / "coefficients.csv", index_col="metric")
    assert coefficients.shape == (28, len(METHODS))
    pairs = pd.read_csv(finished / "analysis" / "fingerprints.csv")
    assert pairs[["topk_overlap", "sign_agreement"]].stack().between(0, 1).all()
    assert "rotated" in (finished / "report.html").read_text()
    text = (finished / "findings.md").read_text()
    for method in METHODS:
        assert method in text


def test_a_second_run_changes_nothing(finished):
    before = contents(finished)
    assert study(finished).exit_code == 0
    assert contents(finished) == before


@pytest.mark.parametrize("stage", ["fine-tuning", "metrics", "merging", "measuring", "validating"])
def test_killed_at_any_stage_it_ends_with_the_same_files(copied, stage, monkeypatch):
    """Leave what a run killed in this stage leaves, start it again, kill it there once more, and start it again."""
    before = contents(copied)
    later = {
        "fine-tuning": ["zoo/parity.safetensors", "statistics", "metrics.parquet", "scores.csv", "analysis"],
        "metrics": ["statistics", "metrics.parquet", "scores.csv"],
        "merging": ["scores.csv"],
        "measuring": ["scores.csv"],
        "validating": ["analysis"],
    }[stage]
    for name in [*before]:
        if any(name == gone or name.startswith(f"{gone}/") for gone in [*later, "findings.md"]):
            (copied / name).unlink()
    killed = click.ClickException("killed")
    with monkeypatch.context() as patch:
        places = {
            "fine-tuning": (making, "learn"), "metrics": (mergeability_study.mergekern, "compute_all"),
            "merging": (scoring.mergekern, "merge_all"), "measuring": (scoring._Scores, "add"),
            "validating": (analysis, "analyse_method"),
        }  # fmt: skip
        owner, name = places[stage]
        real, calls = getattr(owner, name), []

        def interrupted(*args, **kwargs):
            calls.append(name)
            if len(calls) > {"measuring": 4, "validating": 1}.get(stage, 0):
                raise killed
            return real(*args, **kwargs)

        patch.setattr(owner, name, interrupted)
        assert study(copied).exit_code == 1
        assert calls
    if stage == "measuring":
        assert len(pd.read_csv(copied / "scores.csv")) == 3
    assert study(copied).exit_code == 0
    assert contents(copied) == before


def test_other_options_need_force(finished):
    before = contents(finished)
    result = study(finished, "--seed", "1")
    assert result.exit_code == 1
    assert "other options" in result.output
    assert contents(finished) == before


def test_unknown_methods_are_named(tmp_path):
    result = run(mergeability_study.main, tmp_path / "new", "--methods", "tsv,tis")
    assert result.exit_code == 2
    assert "no method 'tis'" in result.output
    assert not (tmp_path / "new").exists()


def test_groups_of_a_study(copied):
    def run_groups():
        result = run(group_study.main, copied, "--groups", "3", "--methods", "weight_average")
        assert result.exit_code == 0, result.output
        return contents(copied / "groups")

    before = run_groups()
    scores = pd.read_csv(copied / "groups" / "scores.csv")
    metrics = pd.read_csv(copied / "groups" / "metrics.csv", index_col="models")
    assert scores["models"].str.count(r"\+").value_counts().to_dict() == {1: 3, 2: 3, 3: 3, 4: 1}
    assert list(metrics.index) == list(scores["models"])
    study_scores = read_scores(copied / "scores.csv", "weight_average")
    table = mergekern.MetricTable.load(copied / "metrics.parquet").to_pandas()
    for row in scores[scores["models"].str.count(r"\+") == 1].itertuples():
        pair = tuple(row.models.split("+"))
        assert row.accuracy == study_scores[pair]
        assert metrics.loc[row.models, "effective_rank"] == table.loc[pair, "effective_rank"]
    correlations = pd.read_csv(copied / "groups" / "correlations.csv", index_col=["method", "n"])
    of_three = scores[scores["models"].str.count(r"\+") == 2].set_index("models")["normalized_accuracy"]
    expected = np.corrcoef(metrics.loc[of_three.index, "effective_rank"], of_three)[0, 1]
    assert correlations.loc[("weight_average", 3), "effective_rank"] == pytest.approx(expected)
    (copied / "groups" / "scores.csv").write_text("\n".join(scores.to_csv(index=False).splitlines()[:4]) + "\n")
    assert run_groups() == before


def test_regularized_finetuning_stays_nearer_to_the_base(tmp_path):
    arguments = (
        "--architecture", "mlp", "--tasks", "3", "--methods", "weight_average", "--weights", "0,1",
    )  # fmt: skip
    result = run(regularized_finetuning.main, tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    moved = pd.read_csv(tmp_path / "metrics.csv", index_col=["metric", "weight"])
    distance = moved.loc["task_vector_l2_distance"]
    assert distance.loc[1.0, "mean"] < 0.7 * distance.loc[0.0, "mean"]
    assert (moved.xs(0.0, level="weight")["shift"] == 0).all()
    accuracy = pd.read_csv(tmp_path / "accuracy.csv", index_col=["method", "weight"])
    found = [read_scores(tmp_path / f"distance_from_base={w}" / "scores.csv", "weight_average", "normalized_accuracy")
             for w in (0, 1)]  # fmt: skip
    assert accuracy["gain"].tolist() == pytest.approx([0, 100 * (found[1].mean() - found[0].mean())])
    before = contents(tmp_path)
    assert run(regularized_finetuning.main, tmp_path, *arguments).exit_code == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("penalty", ["gradient_magnitude", "subspace_distance"])
def test_penalties_change_what_is_learned(penalty):
    losses = {}
    for weight in (0.0, 10.0):
        encoder = making.build("vit")
        making.initialise(encoder, torch.Generator().manual_seed(0))
        recipe = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "penalties": {penalty: weight}}
        inputs, labels = making.DIGITS.load()
        with making.sdpa_kernel(making.SDPBackend.MATH):
            model = torch.nn.Sequential(encoder, torch.nn.Linear(64, 10))
            making.initialise(model[1], torch.Generator().manual_seed(0))
            making.fit(model, inputs[:64], labels[:64], recipe, torch.Generator().manual_seed(0))
        losses[weight] = torch.cat([parameter.detach().flatten() for parameter in encoder.parameters()])
    assert (losses[0.0] - losses[10.0]).abs().max() > 1e-5
