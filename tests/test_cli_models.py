"""Models on the command line: PATH or NAME=PATH, names that are told apart, and what is said to be left out."""

import json

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.cli import main
from tests.support.checkpoint_files import draw

METRIC = ["--metrics", "task_vector_cosine_similarity"]


def weights(seed=0):
    return {"w": draw(6, 5, seed=seed), "b": draw(5, seed=seed + 60)}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The working folder: base.safetensors, and checkpoint-500/ of two runs."""
    monkeypatch.chdir(tmp_path)
    save_file(weights(), "base.safetensors")
    for seed, run in enumerate(("run1", "run2"), 1):
        folder = tmp_path / run / "checkpoint-500"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        save_file(weights(seed), folder / "model.safetensors")
    return tmp_path


@pytest.fixture
def zoo(runs):
    """A folder of a base, two models, a run with one checkpoint and folders without a model."""
    for seed, name in enumerate(("base", "one", "two")):
        (runs / "zoo").mkdir(exist_ok=True)
        save_file(weights(seed), runs / "zoo" / f"{name}.safetensors")
    (runs / "run1").rename(runs / "zoo" / "run1")
    (runs / "zoo" / "nothing").mkdir()
    return "zoo"


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ran(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


TWO = ["first=run1/checkpoint-500", "second=run2/checkpoint-500", "--base", "base.safetensors"]


def test_named_models_of_every_command(runs):
    ran("metrics", *TWO, *METRIC, "--out", "t.json", "--statistics", "kept")
    assert mergekern.MetricTable.load("t.json").models == ("first", "second")
    assert "first" in ran("info", *TWO).stdout
    ran("merge", *TWO, "--method", "weight_average", "--out", "m.safetensors")
    record = json.loads((runs / "m.mergekern.json").read_text())
    assert [model["name"] for model in record["models"]] == ["first", "second"]
    ran("merge-all", *TWO, "--methods", "ties", "--out", "all")
    assert (runs / "all" / "ties" / "first+second.safetensors").is_file()
    ran("sketch", *TWO, "--out", "sketches")
    assert mergekern.Sketches.load("sketches").models == ("first", "second")
    save_file(weights(3), "third.safetensors")
    ran("add", "more=third.safetensors", "--to", "kept")
    assert mergekern.ZooStatistics.load("kept").models == ("first", "second", "more")
    assert "2 models, 1 pairs" in ran("screen", *TWO).stdout
    ran("metrics", *TWO, *METRIC, "--statistics", "shared", "--shard", "1/1")


def test_weights_follow_the_order_of_named_models(runs):
    given = ["z=run2/checkpoint-500", "a=run1/checkpoint-500", "--base", "base.safetensors", "--method"]
    ran("merge", *given, "weight_average", "--weights", "3,1", "--out", "m.safetensors")
    expected = mergekern.merge([weights(2), weights(1)], weights(), "weight_average", weights=[3, 1])
    assert all((load_file("m.safetensors")[name] == values).all() for name, values in expected.items())


def test_equal_names_are_told_apart_by_their_folders(runs):
    # https://github.com/huggingface/transformers/issues/29184
    models = ["run1/checkpoint-500", "run2/checkpoint-500"]
    ran("metrics", *models, "--base", "base.safetensors", *METRIC, "--out", "t.json")
    assert mergekern.MetricTable.load("t.json").models == ("run1-checkpoint-500", "run2-checkpoint-500")
    ran("merge-all", *models, "--base", "base.safetensors", "--methods", "ties", "--out", "all")
    assert (runs / "all" / "ties" / "run1-checkpoint-500+run2-checkpoint-500.safetensors").is_file()
    ran("metrics", "checkpoint-500=run2", models[0], "--base", "base.safetensors", *METRIC, "--out", "t.json")
    assert mergekern.MetricTable.load("t.json").models == ("checkpoint-500", "run1-checkpoint-500")


def test_folders_further_up_tell_models_apart(runs):
    for seed, name in enumerate(("x", "y")):
        (runs / name / "last").mkdir(parents=True)
        save_file(weights(seed + 1), runs / name / "last" / "m.safetensors")
    shown = ran("info", "x/last/m.safetensors", "y/last/m.safetensors", "--base", "base.safetensors").stdout
    assert "x-last-m" in shown
    assert "y-last-m" in shown


def test_a_path_with_an_equals_sign_is_a_path(runs):
    save_file(weights(1), "lr=0.1.safetensors")
    save_file(weights(2), "0.1.safetensors")
    models = ["lr=0.1.safetensors", "low=lr=0.1.safetensors", "run2"]
    ran("metrics", *models, "--base", "base.safetensors", *METRIC, "--out", "t.json")
    assert mergekern.MetricTable.load("t.json").models == ("lr=0.1", "low", "run2")


def test_the_base_among_the_models_is_none(runs):
    models = ["base.safetensors", "a=run1", "b=run2", "--base", "base.safetensors"]
    assert "2 models, 1 pairs" in ran("info", *models).stdout


WRONG = {
    "no such path": (["a=gone.safetensors", "run1"], "'a=gone.safetensors': no such file or folder, and none at"),
    "no path": (["a=", "run1"], "'a=': no such file or folder"),
    "one name twice": (["a=run1", "a=run2"], "several models are called 'a'; name them yourself, as NAME=PATH"),
    "one path twice": (["run1", "run1"], "several models are called 'run1'"),
    "NUL": (["a\0b", "run1"], r"'a\x00b': no path or name holds a NUL character"),
    "not UTF-8": (["\udce9", "run1"], r"\xe9: the path is not valid UTF-8"),
}


@pytest.mark.parametrize("command", ["info", "metrics"])
@pytest.mark.parametrize(("models", "says"), WRONG.values(), ids=WRONG)
def test_wrong_models_are_one_error(runs, command, models, says):
    result = run(command, *models, "--base", "base.safetensors")
    assert result.exit_code in (1, 2)
    assert says in result.output


NAMED = [
    "note: nothing/ is left out: an empty folder",
    "read from checkpoint-500/, the only model in the folder",
]


@pytest.mark.parametrize(
    "arguments",
    [
        ["info"], ["metrics", *METRIC], ["screen"], ["merge", "--method", "ties", "--out", "m.safetensors"],
        ["merge-all", "--methods", "ties", "--out", "all"], ["sketch", "--out", "s"],
        ["metrics", *METRIC, "--statistics", "kept", "--shard", "1/1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_commands_say_what_of_a_folder_is_left_out(zoo, arguments):
    said = ran(arguments[0], zoo, *arguments[1:]).stdout
    for text in NAMED:
        assert said.count(text) == 1


def test_add_says_what_of_a_folder_is_left_out(zoo, runs):
    (runs / "zoo" / "one.safetensors").rename(runs / "one.safetensors")
    ran("metrics", "run2", "one.safetensors", "--base", "base.safetensors", *METRIC, "--statistics", "kept")
    said = ran("add", "zoo", "--to", "kept").stdout
    assert all(text in said for text in NAMED)
    assert mergekern.ZooStatistics.load("kept").models == ("run2", "one", "run1", "two")


def test_many_are_counted(zoo, runs):
    for number in range(15):
        (runs / "zoo" / f"empty_{number}").mkdir()
    for command in (["metrics", *METRIC], ["sketch", "--out", "s"]):
        said = ran(command[0], zoo, *command[1:]).stdout
        assert said.count(" is left out: ") == 10
        assert "note: and 6 more files and folders are left out" in said
    assert ran("info", zoo).stdout.count(" is left out: ") == 16
