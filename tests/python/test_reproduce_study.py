"""reproduce_study.py: the study's published numbers where its files are, and a whole run on a made-up study."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mergekern.metrics import CATALOGUE
from mergekern.prediction import fingerprints, fit_exact, fit_published, make_predictor, variance_components
from tests.support.pairs import all_pairs

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(os.environ.get("MERGEKERN_PUBLISHED", ROOT.parent / "shared" / "published"))
needs_published = pytest.mark.skipif(
    not (PUBLISHED / "loto_results.csv").exists(), reason="the study's files are not there (MERGEKERN_PUBLISHED)"
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reproduce_study", ROOT / "python" / "reproduce_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study(script):
    return script.Study.read(PUBLISHED)


@needs_published
def test_published_fits_come_out_in_the_spread_of_starts(script, study):
    n_repeats = 5
    found = script.reproduce(study, pd.read_csv(PUBLISHED / "loto_results.csv"), n_repeats)
    assert len(found) == 10 * 4 * 4 + 4 * 4
    # Few starts say little of one row's spread, but all rows of a figure together do.
    spread = found.groupby("figure")["sd"].transform(lambda sd: np.sqrt((sd**2).mean())) * np.sqrt(1 + 1 / n_repeats)
    z = (found["published"] - found["mean"]) / spread
    assert np.abs(z).max() < 4.5
    assert np.sqrt((z**2).groupby(found["figure"]).mean()).max() < 1.6
    assert np.abs(z.groupby(found["figure"]).mean()).max() < 0.7


@needs_published
def test_exact_objective_is_at_least_that_of_adam_on_every_fold(script, study):
    X, accuracy = study.as_fitted()
    X, Y, masks = X.to_numpy(), accuracy.to_numpy().T, script.training_masks(accuracy.index)
    for alpha in (None, 0.3, 1.0):
        both = fit_exact(X, Y, masks, alpha)[:, :, None], fit_published(X, Y, masks, [0, 1], alpha)
        objective = []
        for coefficients in both:
            predicted = [(c @ script.scale(X, mask)[mask].T) for c, mask in zip(coefficients, masks, strict=True)]
            spread = np.array([p.std(-1) for p in predicted])
            r = np.array(
                [
                    script._correlate(p, Y[:, None, mask], np.ones(mask.sum(), dtype=bool))
                    for p, mask in zip(predicted, masks, strict=True)
                ]
            )
            objective.append(r - (alpha or 0) * np.abs(coefficients).sum(-1) * 0.01 / spread)
        assert (objective[0] >= objective[1]).all()


@needs_published
def test_published_fingerprints():
    coefficients = pd.read_csv(PUBLISHED / "coefficients_l1_vit_b16_adamw.csv", index_col="metric")
    found = fingerprints(coefficients, k=5)
    assert found.topk_overlap == pytest.approx(0.64, abs=1e-12)
    assert found.sign_agreement == pytest.approx(222 / 280, abs=1e-12)


@needs_published
def test_task_effects_of_the_study(study):
    shares = {method: variance_components(study.accuracy[method]).tasks for method in study.accuracy}
    expected = {"weight_avg": 0.957, "tsv": 0.945, "arithmetic": 0.991, "isotropic": 0.992}
    assert shares == pytest.approx(expected, abs=6e-4)


@pytest.fixture
def made_up(tmp_path):
    """Files as the study's: 8 tasks, 28 metrics, a method, one pair without gradients and one without an accuracy."""
    random, names = np.random.default_rng(0), list(CATALOGUE)[:28]
    index = all_pairs(8)
    metrics = pd.DataFrame(random.standard_normal((28, 28)), index=index, columns=names)
    accuracy = {"tsv": metrics["stable_rank"] * 0.01 + 0.8}
    table = pd.concat(
        {name: pd.DataFrame({"accuracy": a}, index=index) for name, a in accuracy.items()}, names=["method"]
    )
    metrics.iloc[0, -1] = np.nan
    metrics.to_csv(tmp_path / "metrics_vit_b16.csv")
    table.drop(("tsv", "task01", "task02")).to_csv(tmp_path / "accuracy_vit_b16.csv")
    models = sorted({name for pair in index for name in pair})
    known = pd.DataFrame({"model": models, "own_accuracy": 0.9, "base_accuracy": np.linspace(0.3, 0.6, 8)})
    known.to_csv(tmp_path / "models_vit_b16.csv", index=False)
    coefficients = pd.DataFrame(random.standard_normal((28, 3)), names, list("abc"))
    coefficients.to_csv(tmp_path / "coefficients_l1_vit_b16_adamw.csv", index_label="metric")
    return tmp_path


def test_a_whole_run(script, made_up, monkeypatch):
    rows = [[script.STUDY, fit, "tsv", 0.5, 0.4, 0.1, 0.2, 9.0] for fit in (*script.ALPHAS, *script.ABLATED)]
    columns = ["study", "fit", "method", *script.COLUMNS]
    pd.DataFrame(rows, columns=columns).to_csv(made_up / "loto_results.csv", index=False)
    monkeypatch.setattr(script, "MEASURED", 12)
    small = {"forest": {"n_estimators": 20}}  # forests of 200 trees took half of the run
    monkeypatch.setattr(script, "make_predictor", lambda kind: make_predictor(kind, small.get(kind)))
    result = CliRunner().invoke(script.main, [str(made_up), "--n-repeats", "2", "--out", str(made_up / "out")])
    assert result.exit_code == 0, result.output
    assert "tsv: 2 incomplete: task00 and task01, task01 and task02" in result.output
    assert "complete in every file: 26 of 28" in result.output
    reproduced = pd.read_csv(made_up / "out" / "published.csv")
    assert len(reproduced) == len(rows) * 5
    exact = pd.read_csv(made_up / "out" / "exact.csv")
    assert (exact.loc[exact["fit"] != "dense", "val_r_mean (exact)"] > 0.95).all()
    budget = pd.read_csv(made_up / "out" / "budget.csv", index_col=["method", "predictor", "merges"])
    assert budget.loc[("tsv", "prior+additive")].index.tolist() == [0, 5, 10, 20]
    assert list(pd.read_csv(made_up / "out" / "prior.csv")) == ["Unnamed: 0", "tsv", "mean"]
