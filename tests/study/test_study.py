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
from threadpoolctl import threadpool_limits

import group_study
import mergekern
import regularized_finetuning
from mergekern.cli import main
from mergekern.prediction import MergePredictor, model, read_scores
from mergekern.study import analysis, comparison, probing, scoring, stages
from mergekern.study.zoos import making

METHODS = ["weight_average", "tsv"]
CANDIDATES = {
    **{
        name: analysis.CANDIDATES[name]
        for name in (
            "dense", "linear", "solo", "direct", "metrics+solo", "additive", "additive+metrics", "additive+solo",
            "additive+metrics+solo",
        )
    },
    "additive, 7 merges": analysis.Candidate("additive", (), 7),
    "additive, 40 merges": analysis.CANDIDATES["additive, 40 merges"],
}  # fmt: skip
# Columns that depend on running times.
TIMED = ("timings.csv", "comparison.csv", "comparison.svg", "findings.md")
TASKS = ["rotated", "parity", "three_or_eight", "erased_quadrant", "low_digits"]
PAIRS = list(combinations(sorted(TASKS), 2))


@pytest.fixture(autouse=True, scope="module")
def short_training(one_thread):
    """Short training, few folds, and one thread, since everything is small."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        patch.setitem(making.RECIPES, "mlp", (60, 4e-3, 30, 2e-3))
        patch.setattr(analysis, "RANDOM_STATES", range(2))
        patch.setitem(analysis.REGIMES, "both unseen", analysis.LeaveTasksOut(n_repeats=3))
        patch.setattr(
            analysis,
            "CANDIDATES",
            CANDIDATES,
        )
        patch.setattr(comparison, "CANDIDATES", CANDIDATES)
        patch.setattr(probing, "TIMED_MERGES", 2)
        patch.setitem(model.REGIMES, "both unseen", analysis.LeaveTasksOut(n_repeats=3))
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
    return run(main, "study", out, *arguments)


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
    """A copy of the study that a test may change."""
    for name, content in contents(finished).items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "copy"


@pytest.mark.parametrize("module", [regularized_finetuning, group_study])
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


def test_budget_curves_stand_beside_what_needs_no_fit(finished):
    found = pd.read_csv(finished / "budget.csv", index_col=["method", "predictor", "merges"])
    for method in METHODS:
        of_method = found.loc[method]
        assert of_method.loc["prior+additive"].index.tolist() == [0, 5]
        assert of_method.loc["additive"].index.tolist() == [5]
        assert (of_method["regret"].dropna() >= 0).all()


def test_metrics_are_those_of_the_models(finished):
    table = mergekern.MetricTable.load(finished / "metrics.parquet")
    assert list(table.metrics) == list(mergekern.CATALOGUE)
    assert list(table.to_pandas().index) == PAIRS
    expected = mergekern.compute_all(finished / "zoo", metrics="task-vector geometry", device="cpu").to_pandas()
    np.testing.assert_array_equal(table.to_pandas()[expected.columns], expected)


def test_analysis_has_every_method_regime_and_predictor(finished):
    validation = pd.read_csv(finished / "analysis" / "validation.csv", index_col=["method", "regime", "predictor"])
    # Ten pairs are fewer than 40 merges.
    assert len(validation) == len(METHODS) * len(analysis.REGIMES) * (len(CANDIDATES) - 1)
    variance = pd.read_csv(finished / "analysis" / "variance_components.csv", index_col="method")
    np.testing.assert_allclose(variance["tasks"] + variance["pair"], 1)
    coefficients = pd.read_csv(finished / "analysis" / "coefficients.csv", index_col="metric")
    assert coefficients.shape == (len(mergekern.CATALOGUE), len(METHODS))
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


@pytest.mark.parametrize(
    "stage", ["fine-tuning", "metrics", "merging", "measuring", "probing", "timing", "validating", "fitting"]
)
def test_killed_at_any_stage_it_ends_with_the_same_files(copied, stage, monkeypatch):
    """Restore the files of a run killed in this stage, resume, kill it in the same stage again, and resume."""
    before = contents(copied)
    later = {
        "fine-tuning": ["zoo/parity.safetensors", "statistics", "metrics.parquet", "scores.csv", "analysis"],
        "metrics": ["statistics", "metrics.parquet", "scores.csv"],
        "merging": ["scores.csv"],
        "measuring": ["scores.csv"],
        "probing": ["probes", "timings.csv"],
        "timing": ["timings.csv"],
        "validating": ["analysis"],
        "fitting": ["predictors", "report.html"],
    }[stage]
    anew = TIMED if "timings.csv" in later else ()
    if stage == "timing":  # the folder of a run that has all probes
        kept = [
            line for line in before["timings.csv"].decode().splitlines() if not line.startswith(("metrics", "merges"))
        ]
        later = []
        (copied / "timings.csv").write_text("\n".join(kept) + "\n")
    for name in [*before]:
        if any(name == gone or name.startswith(f"{gone}/") for gone in [*later, "findings.md"]):
            (copied / name).unlink()
    killed = click.ClickException("killed")
    with monkeypatch.context() as patch:
        places = {
            "fine-tuning": (making, "learn"), "metrics": (stages, "compute_all"),
            "merging": (scoring, "merge_all"), "measuring": (scoring._Scores, "add"),
            "probing": (probing, "merge_probes"), "timing": (probing, "score_merges"),
            "validating": (analysis, "analyse_method"), "fitting": (stages.MergePredictor, "fit"),
        }  # fmt: skip
        owner, name = places[stage]
        real, calls = getattr(owner, name), []

        def interrupted(*args, **kwargs):
            calls.append(name)
            if len(calls) > {"measuring": 4, "probing": 3, "timing": 1, "validating": 1, "fitting": 1}.get(stage, 0):
                raise killed
            return real(*args, **kwargs)

        patch.setattr(owner, name, interrupted)
        assert study(copied).exit_code == 1
        assert calls
    if stage == "measuring":
        assert len(pd.read_csv(copied / "scores.csv")) == 3
    assert study(copied).exit_code == 0
    after = contents(copied)
    for files in (before, after):  # the statistics name the original folder, not the copy
        manifest = json.loads(files["statistics/manifest.json"])
        files["statistics/manifest.json"] = {**manifest, "sources": None, "checksum": None}
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name] and name not in anew] == []
    if stage == "probing":  # a method that was finished before the kill keeps its seconds
        assert calls.count("merge_probes") == 4


def test_probes_are_those_of_the_models_on_samples_that_give_no_scores(finished):
    zoo = finished / "zoo"
    calibration = stages.read_calibration(finished, equal=False)
    for name, task in calibration.tasks.items():
        data = load_file(zoo / "calibration" / f"{name}.safetensors")
        assert task.size == 10
        held_out = {tuple(row) for row in data["test.inputs"].flatten(1).tolist()}
        assert not held_out & {tuple(row) for row in task.inputs.flatten(1).tolist()}
    for method in METHODS:
        table = mergekern.MetricTable.load(finished / "probes" / f"{method}.parquet")
        assert len(table.metrics) == 8
        expected = mergekern.merge_probes(zoo, calibration=calibration, methods=method, direct=True)
        pd.testing.assert_frame_equal(table.to_pandas(), expected.to_pandas(), rtol=1e-6, atol=1e-6)


def test_the_comparison_is_of_the_validation_and_the_timings(finished):
    found = pd.read_csv(finished / "comparison.csv", index_col=["method", "predictor"])
    assert set(found.index) == {(m, name) for m in METHODS for name in CANDIDATES if name != "additive, 40 merges"}
    timings = pd.read_csv(finished / "timings.csv", keep_default_na=False).set_index(["what", "method"])
    assert (timings["seconds"] > 0).all()
    assert timings["count"].to_dict() == {
        ("metrics", ""): 5,
        **{(what, m): n for m in METHODS for what, n in (("solo probes", 5), ("direct probes", 10), ("merges", 2))},
    }
    seconds = timings["seconds"]
    for m in METHODS:
        metrics, solo, merge = seconds["metrics", ""], seconds["solo probes", m], seconds["merges", m] / 2
        assert found.loc[(m, "linear"), "seconds"] == metrics
        assert found.loc[(m, "direct"), "seconds"] == seconds["direct probes", m]
        assert found.loc[(m, "additive, 7 merges"), "seconds"] == pytest.approx(7 * merge)
        assert found.loc[(m, "additive+metrics+solo"), "seconds"] == pytest.approx(metrics + solo + 10 * merge)
    validation = pd.read_csv(finished / "analysis" / "validation.csv").set_index(["regime", "method", "predictor"])
    known, unseen = (validation["val_r"].xs(regime) for regime in ("partner known", "both unseen"))
    pd.testing.assert_series_equal(found["r_partner_known"], known.fillna(0), check_like=True, check_names=False)
    pd.testing.assert_series_equal(found["r_both_unseen"], unseen.fillna(0), check_like=True, check_names=False)
    assert unseen[:, "additive"].isna().all()
    text = (finished / "comparison.svg").read_text()
    assert all(f">{name}<" in text for name in ("solo", "direct", "additive, 7 merges", "both unseen"))
    assert "| metrics+solo |" in (finished / "findings.md").read_text()


def test_the_report_shows_fitted_predictors(finished):
    scores = read_scores(finished / "scores.csv", "tsv", "normalized_accuracy")
    table = mergekern.MetricTable.load(finished / "metrics.parquet")
    predictor = MergePredictor.load(finished / "predictors" / "tsv.json")
    pd.testing.assert_series_equal(predictor.measured, scores, check_names=False)
    expected = MergePredictor.fit(table, scores, "tsv").predict(table)
    pd.testing.assert_frame_equal(predictor.predict(table), expected)
    assert "tsv, predicted" in (finished / "report.html").read_text()


def test_candidates_see_what_they_are_to_see():
    columns = ["stable_rank", "solo_loss_mean[tsv]", "direct_loss_mean[tsv]", "solo_loss_mean[ties]"]
    table = pd.DataFrame(np.zeros((3, 4)), columns=columns)
    seen = {name: list(candidate.select(table, "tsv")) for name, candidate in CANDIDATES.items()}
    assert seen["linear"] == ["stable_rank"]
    assert seen["solo"] == ["solo_loss_mean[tsv]"]
    assert seen["direct"] == ["direct_loss_mean[tsv]"]
    assert seen["additive+metrics+solo"] == ["stable_rank", "solo_loss_mean[tsv]"]


def test_planned_merges_are_all_that_a_fold_trains_on():
    pairs = np.array(list(combinations("abcdefgh", 2)))
    plan = set(mergekern.prediction.plan_measurements("abcdefgh", 9).index)
    of_all = list(analysis.LeaveOneTaskOut().folds(pairs))
    folds = list(analysis.Measured(analysis.LeaveOneTaskOut(), 9).folds(pairs))
    for fold, whole in zip(folds, of_all, strict=True):
        assert fold.held_out == whole.held_out
        assert fold.test.tolist() == whole.test.tolist()
        assert {tuple(pairs[row]) for row in fold.train} == {tuple(pairs[r]) for r in whole.train} & plan


def test_fragility_is_how_far_solo_probes_tell_the_effects_of_models():
    draw = np.random.default_rng(0)
    effects, probed = (dict(zip("abcdef", draw.standard_normal(6), strict=True)) for _ in range(2))
    index = pd.MultiIndex.from_tuples(combinations("abcdef", 2), names=["model_a", "model_b"])
    y = pd.Series([effects[a] + effects[b] for a, b in index], index)
    table = pd.DataFrame({"solo_accuracy_mean[tsv]": [(probed[a] + probed[b]) / 2 for a, b in index]}, index)
    expected = np.corrcoef(list(effects.values()), list(probed.values()))[0, 1]
    assert analysis.fragility(table, y, "tsv") == pytest.approx(expected)
    assert np.isnan(analysis.fragility(table * 0 + 1, y, "tsv"))
    assert np.isnan(analysis.fragility(table, y, "ties"))


def test_more_calibration_samples_leave_half_for_scores():
    encoder = making.build("mlp")
    making.initialise(encoder, torch.Generator().manual_seed(0))
    recipe = {"steps": 60, "batch_size": 32, "learning_rate": 4e-3}
    tasks = {task.name: task for task in making.DIGITS.tasks}
    for name, samples, expected in (("three_or_eight", 200, 44), ("rotated", 40, 40)):
        data, _ = making.learn(tasks[name], encoder, recipe, 0, samples=samples)
        held_out = {"three_or_eight": 89, "rotated": 450}[name]
        assert (len(data["labels"]), len(data["test.labels"])) == (expected, held_out - expected)


def test_other_options_need_force(finished):
    before = contents(finished)
    result = study(finished, "--random-state", "1")
    assert result.exit_code == 1
    assert "other options" in result.output
    assert contents(finished) == before


def test_unknown_methods_are_named(tmp_path):
    result = run(main, "study", tmp_path / "new", "--methods", "tsv,tis")
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


@pytest.mark.parametrize("regularizer", ["gradient_magnitude", "subspace_distance"])
def test_regularizers_change_what_is_learned(regularizer):
    losses = {}
    for weight in (0.0, 10.0):
        encoder = making.build("vit")
        making.initialise(encoder, torch.Generator().manual_seed(0))
        recipe = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "regularizers": {regularizer: weight}}
        inputs, labels = making.DIGITS.load()
        with making.sdpa_kernel(making.SDPBackend.MATH):
            model = torch.nn.Sequential(encoder, torch.nn.Linear(64, 10))
            making.initialise(model[1], torch.Generator().manual_seed(0))
            making.fit(model, inputs[:64], labels[:64], recipe, torch.Generator().manual_seed(0))
        losses[weight] = torch.cat([parameter.detach().flatten() for parameter in encoder.parameters()])
    assert (losses[0.0] - losses[10.0]).abs().max() > 1e-5
