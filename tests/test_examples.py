"""The scripts of examples/ run, and show what they promise."""

import logging
import runpy
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
README = (FOLDER / "README.md").read_text("utf-8")


@pytest.fixture
def run(one_thread, tmp_path, monkeypatch):
    """Return a function that runs an example in an empty folder, which it must leave empty, and gives its names."""
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in ("mergekern", "service")]
    before = [(logger.level, logger.propagate, [*logger.handlers]) for logger in loggers]
    yield lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers
    assert not list(tmp_path.iterdir())


def test_every_example_is_in_the_list_and_has_cells():
    scripts = sorted(FOLDER.glob("*.py"))
    assert scripts
    for path in scripts:
        assert f"[{path.name}]({path.name})" in README
        assert path.read_text("utf-8").count("\n# %%") >= 3


def test_merging_six_models(run, capsys):
    names = run("merge_six_models")
    said = capsys.readouterr().out
    # A dimmed digit is nearly an upright one: the metrics and the measurements agree on that pair.
    assert names["table"].ranked("task_vector_cosine_similarity").index[0] == ("dim", "upright")
    assert names["decisions"].index[0] == ("dim", "upright")
    assert len(names["measured"].scores) == 2 * len(names["plan"]) == 16
    assert "dim and upright, merged by" in said


def test_metric_throughput(run, capsys):
    names = run("metric_throughput")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names["COUNTS"]) * len(names["KINDS"]) + 1
    assert all("pairs/s" in line for line in lines[:-1])


def test_a_screening_job(run, capsys):
    names = run("screening_job")
    assert capsys.readouterr().out == ""
    lines = names["collected"].lines
    assert sum("6 pairs, best" in line for line in lines) == 3
    assert any(line.startswith("job_0 service: zoo_0") for line in lines)
    assert "model_0.safetensors: not a readable safetensors file" in lines[-1]
    assert torch.get_num_threads() == 1
