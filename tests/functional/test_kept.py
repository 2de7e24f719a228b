"""What running the models gave is kept, and used again while the inputs are the same."""

import json
import logging

import pandas as pd
import pytest
import torch
from torch import nn

import mergekern
from mergekern import OptionError, ZooStatistics
from mergekern.functional.model_runs import ModelRuns
from tests.functional.tables import KINDS, assert_close, run
from tests.support.encoders import make_case
from tests.support.names import OF_RUNS, OF_WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def counted(monkeypatch):
    """A list that fills with the kinds of statistics that are measured."""
    measured = []
    original = ModelRuns.measure

    def measure(self):
        measured.extend(sorted(self.kinds))
        return original(self)

    monkeypatch.setattr(ModelRuns, "measure", measure)
    return measured


def test_statistics_are_kept_and_used_again(tmp_path, counted):
    case = make_case("convolutions")
    folder = tmp_path / "s"
    first = run(case, metrics="all", statistics=folder, per_layer=True)
    assert counted == ["activations", "encoder_gradients", "input_gradients"]
    again = run(case, metrics="all", statistics=folder, per_layer=True)
    assert len(counted) == 3
    assert again.provenance == first.provenance
    loaded = ZooStatistics.load(folder)
    assert loaded.functional.activations.mean.shape == (3, 8 * 4 * 4)
    loaded.save(tmp_path / "copy")
    for statistics in (loaded, ZooStatistics.load(tmp_path / "copy")):
        table = mergekern.MetricTable.from_statistics(statistics, per_layer=True)
        for found in (again, table):
            pd.testing.assert_frame_equal(found.to_pandas(), first.to_pandas(), check_exact=True)
            name = "encoder_gradient_l2_distance"
            pd.testing.assert_frame_equal(found.per_layer(name), first.per_layer(name), check_exact=True)
    with pytest.raises(OptionError, match=r"measured without activations.*calibration="):
        mergekern.MetricTable.from_statistics(mergekern.measure(case.models, case.base), "activation")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"batch_weighting": "sample"}, {"batch_size": 3}], ids=str)
def test_a_value_does_not_depend_on_what_else_is_asked_for(kind, options):
    case = make_case(kind)
    together = run(case, **options).to_pandas()
    for name in ("activation_l2_distance", "encoder_gradient_l2_distance", "input_gradient_l2_distance"):
        assert run(case, metrics=name, **options).to_pandas()[name].equals(together[name]), name


@pytest.mark.parametrize("metric", ["encoder_gradient_l2_distance", "input_gradient_l2_distance"])
def test_gradients_come_from_one_graph_whichever_is_asked_for(monkeypatch, metric):
    """Torch chooses kernels by what requires a gradient: on some processors values would differ in their last bits."""
    case, graphs = make_case("transformer"), []
    backward = torch.Tensor.backward

    def recorded(self, inputs):
        graphs.append([tuple(tensor.shape) for tensor in inputs])
        return backward(self, inputs=inputs)

    monkeypatch.setattr(torch.Tensor, "backward", recorded)
    run(case)
    together = list(graphs)
    graphs.clear()
    run(case, metrics=metric)
    assert graphs == together
    assert len(graphs[0]) == len(case.base) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_lacking_is_run(tmp_path, counted, kind):
    case = make_case(kind)
    run(case, metrics="activation", statistics=tmp_path / "s")
    run(case, metrics="input_gradient_l2_distance", statistics=tmp_path / "s")
    table = run(case, statistics=tmp_path / "s")
    assert counted == ["activations", "input_gradients", "encoder_gradients"]
    assert_close(table, run(case), rel=0, abs=0)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 4}, {"batch_weighting": "sample"}, {"layer": "blocks.1"}, {"dtype": torch.float64},
        {"loss": nn.functional.multi_margin_loss}, "weights", "labels", "inputs", "head", "structure",
    ],
    ids=lambda change: change if isinstance(change, str) else "-".join(change),
)  # fmt: skip
def test_other_inputs_are_run_again(tmp_path, counted, change):
    case = make_case("transformer")
    run(case, statistics=tmp_path / "s")
    counted.clear()
    options = change if isinstance(change, dict) else {}
    if change == "weights":
        case.models["m1"]["first_token"] = case.models["m1"]["first_token"] + 1e-3
    inputs, labels, (weight, bias) = case.tasks["m2"]
    if change == "labels":
        case.tasks["m2"] = inputs, (labels + 1) % 5, (weight, bias)
    if change == "inputs":
        case.tasks["m2"] = inputs + 1e-3, labels, (weight, bias)
    if change == "head":
        case.tasks["m2"] = inputs, labels, (weight, None)
    if change == "structure":
        options = {"model": case.make()}
        options["model"].blocks[0].norm_first = True
        options["model"].blocks[0].extra_repr = lambda: "norm_first"
    table = run(case, statistics=tmp_path / "s", **options)
    assert len(counted) == 3
    assert_close(table, run(case, **options), rel=0, abs=0)
    # Changed weights add two blocks of their tensor: the changed model by itself, and with the others.
    assert len(list((tmp_path / "s" / "blocks").iterdir())) == len(case.base) + 3 + 2 * (change == "weights")


def test_a_damaged_block_is_measured_again(tmp_path, counted, caplog):
    case = make_case("transformer")
    first = run(case, statistics=tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    block = tmp_path / "s" / "blocks" / f"{manifest['functional']['encoder_gradients']}.safetensors"
    content = bytearray(block.read_bytes())
    content[-9] ^= 1
    block.write_bytes(content)
    with pytest.raises(mergekern.StatisticsError, match="damaged"):
        ZooStatistics.load(tmp_path / "s")
    counted.clear()
    with caplog.at_level(logging.WARNING):
        again = run(case, statistics=tmp_path / "s")
    assert "computing it again" in caplog.text
    assert counted == ["encoder_gradients"]
    pd.testing.assert_frame_equal(again.to_pandas(), first.to_pandas(), check_exact=True)


def scaled_loss(factor):
    return lambda logits, labels: factor * nn.functional.cross_entropy(logits, labels)


def test_code_that_cannot_be_told_from_other_code_is_always_run(tmp_path, counted):
    case = make_case("transformer")
    for factor in (1.0, 2.0, 2.0):
        table = run(case, loss=scaled_loss(factor), statistics=tmp_path / "s")
        assert_close(table, run(case, loss=scaled_loss(factor)), rel=0, abs=0)
    assert len(counted) == 18
    found = mergekern.MetricTable.from_statistics(ZooStatistics.load(tmp_path / "s"), OF_RUNS)
    assert_close(found, table, rel=0, abs=0)


def test_without_calibration_the_weights_alone():
    case = make_case("transformer")
    table = mergekern.compute_all(case.models, case.base)
    assert list(table.metrics) == OF_WEIGHTS
    for metrics in ("activation", "encoder_gradient_l2_distance", ["stable_rank", "gradient"]):
        with pytest.raises(OptionError, match="models must be run for these; give calibration="):
            mergekern.compute_all(case.models, case.base, metrics=metrics)
    assert list(mergekern.compute_all(case.models, case.base, metrics=["all", "gradient"]).metrics) == OF_WEIGHTS


def test_provenance_says_what_the_models_ran_on():
    case = make_case("transformer")
    found = run(case).provenance["calibration"]
    assert found["model"] == "tests.support.encoders.Transformer"
    assert found["layer"] == "blocks.0"
    assert found["samples"] == {"m0": 10, "m1": 10, "m2": 10}
    assert found["content_hash"] == run(case).provenance["calibration"]["content_hash"]
    assert found["content_hash"] != run(case, batch_size=3).provenance["calibration"]["content_hash"]
