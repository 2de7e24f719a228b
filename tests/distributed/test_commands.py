"""`add`, `remove`, `combine`, `verify`, `table`, `metrics --shard`: their output, and errors of one sentence."""

import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import mergekern
from mergekern import MetricTable, ZooStatistics
from mergekern.cli import main
from tests.support.faults import flip
from tests.support.zoos import NAMES, assert_same, paths, write_zoo


@pytest.fixture(scope="module")
def measured(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "s"
    mergekern.measure(paths(zoo, NAMES[:5]), zoo / "base.safetensors", statistics=folder)
    return folder


@pytest.fixture
def folder(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "s")


def run(*arguments):
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


def fails(*arguments):
    """Run a command that must fail, and return its error message, which is one sentence."""
    code, _, errors = run(*arguments)
    assert code != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in errors
    return line.removeprefix("Error: ")


def test_add_and_remove(zoo, folder):
    code, output, _ = run("add", zoo / "f.safetensors", zoo / "g.safetensors", "--to", folder)
    assert (code, output) == (0, f"{folder}: 7 models\n")
    assert_same(ZooStatistics.load(folder), mergekern.compute_all(zoo, per_layer=True))
    code, output, _ = run("remove", "f", "g", "--from", folder)
    assert (code, output) == (0, f"{folder}: 5 models\n")
    assert ZooStatistics.load(folder).models == NAMES[:5]


def test_what_cannot_be_added(zoo, folder, tmp_path):
    assert re.search("has a model 'a' already; remove it first", fails("add", zoo / "a.safetensors", "--to", folder))
    assert "no such file" in fails("add", zoo / "none.safetensors", "--to", folder)
    assert re.search(
        "not a folder of finished statistics .*; run compute_all",
        fails("add", zoo / "a.safetensors", "--to", tmp_path / "none"),
    )
    mergekern.measure(
        {"x": {"w": np.ones(2)}, "y": {"w": np.ones(2)}}, {"w": np.zeros(2)}, statistics=tmp_path / "memory"
    )
    message = fails("add", zoo / "a.safetensors", "--to", tmp_path / "memory")
    assert re.search("'x' was in memory when it was measured.*: call compute_all", message)


def test_what_cannot_be_removed(folder, tmp_path):
    assert "no model 'z' in these statistics" in fails("remove", "z", "--from", folder)
    assert "a model is given twice: a" in fails("remove", "a", "a", "--from", folder)
    assert "1 of 5 models would be left; two are the least" in fails("remove", "a", "b", "c", "d", "--from", folder)
    assert "not a folder of finished statistics" in fails("remove", "a", "--from", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert ZooStatistics.load(folder).models == NAMES[:5]


def test_verify(zoo, folder):
    assert run("verify", folder) == (0, f"{folder}: whole\n", "")
    path = next((folder / "blocks").iterdir())
    flip(path, 8 * path.stat().st_size - 1)
    code, output, errors = run("verify", folder)
    assert code == 1
    assert output.count(str(path)) == 1
    assert errors == (
        "Error: 1 damaged: delete them (--delete), and run on the same models and folder to compute them again\n"
    )
    assert path.exists()
    assert fails("verify", folder, "--delete").startswith("1 damaged: deleted, and run on the same models")
    assert not path.exists()
    mergekern.measure(paths(zoo, NAMES[:5]), zoo / "base.safetensors", statistics=folder)
    assert run("verify", folder)[0] == 0
    flip(folder / "manifest.json", 4000)
    assert re.search(r"manifest\.json: damaged .*; run compute_all", fails("verify", folder))


def test_table(folder, measured, tmp_path):
    code, output, _ = run("table", folder, "--models", "a, c", "--out", tmp_path / "t.parquet")
    assert code == 0
    assert "2 models, 1 pairs" in output
    assert f"wrote {tmp_path / 't.parquet'}" in output
    assert MetricTable.load(tmp_path / "t.parquet").models == ("a", "c")
    assert "no model 'z'" in fails("table", folder, "--models", "a,z")
    assert "did you mean 'stable_rank'" in fails("table", folder, "--metrics", "stable_rnk")
    assert ".parquet" in fails("table", folder, "--out", tmp_path / "t.txt")
    assert "not a folder of finished statistics" in fails("table", tmp_path / "none")


def test_shards(zoo, tmp_path):
    folder = tmp_path / "s"
    for index in (2, 1):
        code, output, _ = run("metrics", zoo, "--statistics", folder, "--shard", f"{index}/2")
        assert code == 0
        assert output == f"wrote {folder}/shard-{index}-of-2; when all 2 are there: mergekern combine {folder}\n"
    assert "`mergekern combine" in fails("table", folder)
    assert run("combine", folder) == (0, f"{folder}: 7 models, 5 tensors\n", "")
    assert_same(ZooStatistics.load(folder), mergekern.compute_all(zoo, per_layer=True))
    assert "no shards in it; `mergekern metrics ZOO" in fails("combine", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "1/2"], "--shard needs --statistics"),
        (["--shard", "0/2", "--statistics", "s"], "'0/2' is not a share such as 2/5, from 1/5 to 5/5"),
        (["--shard", "3/2", "--statistics", "s"], "'3/2' is not a share"),
        (["--shard", "half", "--statistics", "s"], "'half' is not a share"),
        (["--shard", "1/2", "--statistics", "s", "--out", "t.csv"], "--out is of use once the shards are combined"),
        (["--shard", "1/2", "--statistics", "s", "--metrics", "activation"], "shards measure weights; ask for these"),
    ],
)
def test_shards_that_cannot_be_measured(zoo, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails("metrics", zoo, *options)
    assert not list(tmp_path.iterdir())


def test_shards_that_do_not_fit(zoo, tmp_path):
    def shard(index, count, *options, of=zoo, to="s"):
        assert run("metrics", of, "--statistics", tmp_path / to, "--shard", f"{index}/{count}", *options)[0] == 0
        return tmp_path / to / f"shard-{index}-of-{count}"

    first, second = shard(1, 2), shard(2, 2)
    few = write_zoo(tmp_path / "few", NAMES[:3])
    assert "these are missing: 2; run them" in fails("combine", tmp_path / "c", first)
    assert "given twice; give each of" in fails("combine", tmp_path / "c", first, second, second)
    for other, message in (
        (shard(2, 2, "--top-k", 3, to="t"), "measured with other top k than .*; run all shards alike"),
        (shard(2, 3, to="t"), "one of 3 shards, but .* is one of 2; delete"),
        (shard(2, 2, of=few, to="f"), "measured with other models than .*; run all shards alike"),
        (shard(2, 2, "--metrics", "task-vector geometry", to="g"), "need no singular values.*; run all shards with"),
    ):
        assert re.search(message, fails("combine", tmp_path / "c", first, other))
        assert not (tmp_path / "c").exists()
    assert run("combine", tmp_path / "c", second, first)[0] == 0


@pytest.mark.parametrize("command", ["add", "remove", "combine", "verify", "table"])
def test_help(command):
    code, output, _ = run(command, "--help")
    assert code == 0
    assert "statistics" in output.lower()
