"""Model scores that are measured: own and base losses and accuracies, once for all methods."""

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import mergekern
from mergekern.cli import main
from mergekern.functional.merge_probes import _ProbeRun
from mergekern.metrics import MODEL_SCORES
from mergekern.prediction import MergePredictor, make_predictor, model_scores
from tests.functional.merge_probes import linear_calibration, run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("m0", "m1", "m2")


@pytest.fixture(scope="module")
def zoo():
    draw = torch.Generator().manual_seed(1)
    base = {"weight": torch.randn(10, 20, generator=draw), "bias": torch.zeros(10)}
    tuned = {name: {key: v + torch.randn(v.shape, generator=draw) for key, v in base.items()} for name in NAMES}
    return tuned, base


def by_hand(zoo, calibration):
    """Return loss and accuracy of each model, and of the base, on each model's task."""
    tuned, base = zoo
    rows = []
    for name in NAMES:
        task = calibration.tasks[name]
        for state in (tuned[name], base):
            logits = task.inputs.double() @ state["weight"].double().T + state["bias"].double()
            loss = nn.functional.cross_entropy(logits, task.labels).item()
            rows.append([loss, (logits.argmax(1) == task.labels).double().mean().item()])
    return np.array(rows).reshape(3, 2, 2)


def test_scores_by_hand_once_for_all_methods(zoo, monkeypatch):
    calibration, runs = linear_calibration(NAMES), []
    real = _ProbeRun._outcome
    monkeypatch.setattr(_ProbeRun, "_outcome", lambda *given: runs.append(given[1].name) or real(*given))
    table = mergekern.merge_probes(*zoo, calibration=calibration, methods=["weight_average", "ties"], model_scores=True)
    assert len(runs) == 3 + 3 + 2 * 3
    losses, accuracies = np.moveaxis(by_hand(zoo, calibration), 2, 0)
    found = table.to_pandas()
    pair = found.loc[("m0", "m2")]
    for column, (values, combine) in {
        "own_accuracy_mean": (accuracies[:, 0], np.mean), "own_accuracy_min": (accuracies[:, 0], np.min),
        "base_accuracy_mean": (accuracies[:, 1], np.mean), "base_accuracy_min": (accuracies[:, 1], np.min),
        "own_loss_mean": (losses[:, 0], np.mean), "own_loss_max": (losses[:, 0], np.max),
        "base_loss_mean": (losses[:, 1], np.mean), "base_loss_max": (losses[:, 1], np.max),
    }.items():  # fmt: skip
        assert pair[column] == pytest.approx(combine(values[[0, 2]]), rel=1e-12)
    assert "model scores are of 12 samples a task" in table.notes
    without = mergekern.merge_probes(*zoo, calibration=calibration, methods=["weight_average", "ties"]).to_pandas()
    pd.testing.assert_frame_equal(found[without.columns], without, check_exact=True)
    # The same from a list of these accuracies.
    known = pd.DataFrame(accuracies, list(NAMES), ["own_accuracy", "base_accuracy"])
    listed = model_scores(NAMES, known)
    pd.testing.assert_frame_equal(found[listed.columns], listed, check_names=False)


def test_without_a_method_models_are_run_and_nothing_is_merged(zoo):
    table = mergekern.merge_probes(*zoo, calibration=linear_calibration(NAMES), methods=(), model_scores=True)
    assert table.metrics == tuple(MODEL_SCORES)
    X = table.to_pandas()
    prior = make_predictor("prior").fit(X).predict(X)
    np.testing.assert_allclose(prior, 0.9 * X["own_accuracy_mean"] + 0.1 * X["base_accuracy_mean"], rtol=1e-12)
    assert MergePredictor.fit(table, None, "tsv").kind == "prior"
    with pytest.raises(mergekern.OptionError, match="one at least"):
        mergekern.merge_probes(*zoo, calibration=linear_calibration(NAMES), methods=())


def test_labels_that_are_no_classes_have_losses_only(zoo):
    calibration = linear_calibration(NAMES, loss=nn.functional.mse_loss)
    table = mergekern.merge_probes(*zoo, calibration=calibration, methods=(), model_scores=True)
    assert table.metrics == tuple(name for name in MODEL_SCORES if "loss" in name)
    assert np.isfinite(table.to_pandas().to_numpy()).all()


def test_a_killed_run_continues_and_other_inputs_are_measured_again(tmp_path, monkeypatch):
    case, folder = make_case("transformer", models=4), tmp_path / "kept"
    whole = run(case, "ties", model_scores=True).to_pandas()
    runs, real = [], _ProbeRun._outcome

    def killed(self, checkpoint, model):
        runs.append(model)
        if len(runs) == 6:
            raise KeyboardInterrupt
        return real(self, checkpoint, model)

    monkeypatch.setattr(_ProbeRun, "_outcome", killed)
    with pytest.raises(KeyboardInterrupt):
        run(case, "ties", model_scores=True, statistics=folder)
    assert [path.name for path in folder.iterdir()] == ["models.safetensors"]
    found = run(case, "ties", model_scores=True, statistics=folder).to_pandas()
    pd.testing.assert_frame_equal(found, whole, check_exact=True)
    assert len(runs) == 6 + 3 + 4
    run(case, "ties", model_scores=True, statistics=folder)
    assert len(runs) == 13
    case.base["patches.bias"] = case.base["patches.bias"] + 1
    run(case, (), model_scores=True, statistics=folder)
    assert len(runs) == 13 + 8


def test_on_the_command_line(tmp_path):
    case = make_case("transformer")
    for name, state in {**case.models, "base": case.base}.items():
        (tmp_path / "zoo").mkdir(exist_ok=True)
        save_file(state, tmp_path / "zoo" / f"{name}.safetensors")
    case.calibration().save(tmp_path / "samples")
    source = "tests.support.encoders:Transformer"
    out = tmp_path / "known.parquet"
    arguments = ["metrics", tmp_path / "zoo", "--metrics", "effective_rank", "--calibration", tmp_path / "samples",
                 "--model-fn", source, "--model-scores", "--out", out]  # fmt: skip
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert set(MODEL_SCORES) < set(mergekern.MetricTable.load(out).metrics)
    result = CliRunner().invoke(main, ["metrics", str(tmp_path / "zoo"), "--model-scores"])
    assert result.exit_code == 2
    assert "--model-scores runs the models" in result.output
