"""calibration_sensitivity.py on a small zoo: what it draws, what it reports, and what it writes."""

import doctest
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from tests.support.encoders import make_case
from tests.support.names import OF_RUNS

SCRIPT = Path(__file__).parents[2] / "python" / "calibration_sensitivity.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("calibration_sensitivity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Four models; 12 samples a task, of which 8 are test samples; task m3 has one less."""
    folder = tmp_path_factory.mktemp("zoo")
    case = make_case("transformer", models=4, samples=[12, 12, 12, 11])
    for name, state in {"base": case.base, **case.models}.items():
        save_file(state, folder / f"{name}.safetensors")
    case.calibration().save(folder / "calibration")
    for name in case.models:
        path = folder / "calibration" / f"{name}.safetensors"
        given = load_file(path)
        parts = {key: given[key][:4].clone() for key in ("inputs", "labels")}
        parts |= {f"test.{key}": given[key][4:].clone() for key in ("inputs", "labels")}
        save_file({**given, **parts}, path)
    return folder


def run(script, *arguments):
    model = ["--model-fn", "tests.support.encoders:Transformer"]
    return CliRunner().invoke(script.main, [*map(str, arguments), *model])


def test_examples_in_docstrings(script):
    assert doctest.testmod(script).failed == 0


def test_reports_every_metric_size_and_draw(script, zoo, tmp_path):
    result = run(script, zoo, "--sizes", "2,5,50", "--n-repeats", "2", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "m3 has 11 samples: 11 instead of 50" in result.stderr
    found = pd.read_csv(tmp_path / "out" / "sensitivity.csv")
    assert len(found) == 10 * 3 * 2
    assert set(found["metric"]) == set(OF_RUNS)
    assert sorted(set(found["samples"])) == [2, 5, 11]
    assert (found["pairs"] == 6).all()
    assert found["rank_correlation"].between(-1, 1).all()
    assert all(name in result.stdout for name in OF_RUNS)
    picture = (tmp_path / "out" / "sensitivity.svg").read_text()
    assert picture.startswith("<?xml")
    run(script, zoo, "--sizes", "2,5,50", "--n-repeats", "2", "--out", tmp_path / "again")
    for name in ("sensitivity.csv", "sensitivity.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_correlations_are_those_of_tables_computed_one_by_one(script, zoo):
    calibration = mergekern.Calibration.from_folder(zoo / "calibration", make_case("transformer").make)
    tasks = script.with_test_samples(calibration.tasks, zoo / "calibration")
    assert [task.size for task in tasks.values()] == [12, 12, 12, 11]

    def make(drawn):
        return mergekern.Calibration(calibration.model, drawn, calibration.layer)

    results = script.repeat(mergekern.checkpoints.open_zoo(zoo), tasks, [3, 11], 2, make)
    small = mergekern.compute_all(zoo, metrics=OF_RUNS, calibration=make(script.draw(tasks, 3, 1)))
    large = mergekern.compute_all(zoo, metrics=OF_RUNS, calibration=make(script.draw(tasks, 11, 0)))
    for name in OF_RUNS:
        expected = small.to_pandas()[name].rank().corr(large.to_pandas()[name].rank())
        row = results.query("metric == @name and samples == 3 and random_state == 1")
        assert row["rank_correlation"].item() == pytest.approx(expected)


def test_draws_are_without_replacement_and_repeat(script, zoo):
    task = script.Task(torch.arange(50.0), torch.arange(50), (torch.ones(50, 1), None))
    drawn = [script.draw({"a": task, "b": task}, 20, random_state) for random_state in (0, 0, 1)]
    labels = [[part.labels.tolist() for part in tasks.values()] for tasks in drawn]
    assert labels[0] == labels[1] != labels[2]
    assert labels[0][0] != labels[0][1]
    assert len(set(labels[0][0])) == 20
    assert torch.equal(drawn[0]["a"].inputs, drawn[0]["a"].labels.float())


def test_missing_values_are_left_out(script):
    one, other = np.array([1.0, np.nan, 2, 3, 4]), np.array([4.0, 1, 3, 2, np.nan])
    assert script.rank_correlation(one, other) == (pytest.approx(-1.0), 3)
    assert np.isnan(script.rank_correlation(one, np.full(5, np.nan))[0])
    assert np.isnan(script.rank_correlation(one, np.ones(5))[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sizes", "2,many"], "is not a list of numbers"),
        (["--sizes", "0,2"], "at least 1"),
        (["--calibration", "gone"], "no calibration.json names the layer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(script, zoo, tmp_path, arguments, says):
    result = run(script, zoo, *arguments, "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert says in result.output
    assert not (tmp_path / "out").exists()
