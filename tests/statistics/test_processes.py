"""Clocks that jump, processes that are killed or share a folder, and bad input: no finished work is lost."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import MetricTable, NonFiniteError, OutputError, StatisticsError, ZooStatistics
from tests.support.faults import context, files_of, owner, snapshot, stopped
from tests.support.zoos import assert_same, paths

GEOMETRY = ["task-vector geometry"]


@pytest.mark.parametrize("year", [1970, 2100])
def test_clocks_that_jump(zoo, expected, folder, tmp_path, year):
    """The times of files cause no new measurement, and no lock is mistaken for another process's."""
    (folder / ".lock-owner").write_text(json.dumps({"process": 1, "host": "elsewhere", "since": f"{year}-01-01"}))
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    stamp = (year - 1970) * 365 * 86400
    for path in [*folder.rglob("*"), *folder.rglob(".*"), *mine.iterdir()]:
        os.utime(path, (stamp, stamp))
    assert_same(mergekern.measure(mine, statistics=folder), expected)
    assert {path.stat().st_mtime for path in files_of(folder)} == {stamp}
    assert not mergekern.verify(folder)


def test_an_interrupted_run(zoo, expected, tmp_path):
    folder = tmp_path / "s"
    process = context.Process(target=stopped, args=(zoo, folder, signal.SIGINT))
    process.start()
    process.join()
    assert process.exitcode == 1
    before = {path: path.stat().st_mtime_ns for path in files_of(folder)}
    assert len(before) >= 3
    assert not (folder / ".lock-owner").exists()
    assert_same(mergekern.measure(zoo, statistics=folder), expected)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in files_of(folder)}.items()


def waiting(zoo, folder, event):
    """Measure up to the third tensor, then wait."""

    def progress(step):
        if step.tensors_done == 2:
            event.set()
            time.sleep(600)

    mergekern.measure(zoo, statistics=folder, progress=progress, options=mergekern.MeasureOptions(max_memory=20_000))


def test_two_processes_on_one_folder(zoo, expected, tmp_path):
    event, folder = context.Event(), tmp_path / "s"
    process = context.Process(target=waiting, args=(zoo, folder, event))
    process.start()
    assert event.wait(60)
    assert owner(folder)["process"] == process.pid
    before = snapshot(folder)
    who = rf"{folder}: in use by process {process.pid} on {os.uname().nodename} since \d{{4}}-.*; wait until"
    for write in (
        lambda: mergekern.measure(zoo, statistics=folder),
        lambda: mergekern.remove_models(["a"], folder),
    ):
        with pytest.raises(OutputError, match=who):
            write()
    assert snapshot(folder) == before
    process.kill()
    process.join()
    assert owner(folder)["process"] == process.pid  # a killed process does not remove its name
    assert_same(mergekern.measure(zoo, statistics=folder), expected)
    assert not (folder / ".lock-owner").exists()


def test_shards_at_the_same_time_in_one_folder(zoo, expected, tmp_path):
    processes = [context.Process(target=shard, args=(zoo, tmp_path / "s", index)) for index in (1, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_same(mergekern.combine(tmp_path / "s"), expected)


def shard(zoo, folder, index):
    torch.set_num_threads(1)
    mergekern.measure_shard(zoo, shard=(index, 3), statistics=folder)


def test_what_killed_runs_left_is_removed(zoo, expected, folder):
    for path in (*files_of(folder)[:2], folder / "manifest.json"):
        path.with_name(f".{path.name}.0123456789abcdef").write_bytes(b"half of")
    assert_same(mergekern.measure(zoo, statistics=folder), expected)
    assert not [path for path in folder.rglob(".*") if not path.name.startswith(".lock")]


def test_combining_that_was_killed_while_it_tidied_up(zoo, expected, tmp_path):
    for index in (1, 2):
        first = mergekern.measure_shard(zoo, shard=(index, 2), statistics=tmp_path / "s")
    shutil.copytree(first, tmp_path / "kept")
    mergekern.combine(tmp_path / "s")
    shutil.copytree(tmp_path / "kept", first)
    with pytest.raises(StatisticsError, match=r"these are missing: 1; run them, or delete the others, if .* combined"):
        mergekern.combine(tmp_path / "s")
    assert_same(ZooStatistics.load(tmp_path / "s"), expected)


def with_nan(zoo, folder):
    """Write a model with a NaN in its last tensor."""
    tensors = load_file(zoo / "c.safetensors")
    tensors["head"][0, 0] = np.nan
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "bad.safetensors")
    return folder / "bad.safetensors"


def test_a_bad_model_is_added(zoo, expected, folder, tmp_path):
    before = snapshot(folder)
    with pytest.raises(NonFiniteError, match="'head' holds NaN or infinite values: 1 in 'bad'"):
        mergekern.add_models(with_nan(zoo, tmp_path), folder, max_memory=20_000)
    assert snapshot(folder) == before
    assert_same(mergekern.measure(zoo, statistics=folder), expected)


def test_a_bad_model_in_a_shard(zoo, tmp_path):
    models = {**paths(zoo, "ab"), "bad": with_nan(zoo, tmp_path)}
    measured = mergekern.MeasureOptions(GEOMETRY, max_memory=20_000)
    options = {"base": zoo / "base.safetensors", "block_size": 2, "options": measured}
    mergekern.measure_shard(paths(zoo, "abc"), shard=(1, 1), statistics=tmp_path / "s", **options)
    before = snapshot(tmp_path / "s")
    with pytest.raises(NonFiniteError, match="1 in 'bad'"):
        mergekern.measure_shard(models, shard=(1, 1), statistics=tmp_path / "s", **options)
    assert snapshot(tmp_path / "s") == before
    with pytest.raises(NonFiniteError, match="1 in 'bad'"):
        mergekern.measure_shard(models, shard=(1, 2), statistics=tmp_path / "s", **options)
    assert snapshot(tmp_path / "s") == before


def test_bad_input_leaves_what_an_earlier_run_was_killed_with(zoo, expected, tmp_path):
    """A refused run does not remove the blocks that an earlier run of good models wrote."""
    folder = tmp_path / "s"
    process = context.Process(target=stopped, args=(zoo, folder, signal.SIGKILL))
    process.start()
    process.join()
    before = snapshot(folder)
    models = {**paths(zoo), "bad": with_nan(zoo, tmp_path)}
    with pytest.raises(NonFiniteError):
        mergekern.measure(models, zoo / "base.safetensors", statistics=folder)
    assert snapshot(folder) == before
    assert_same(MetricTable.from_statistics(mergekern.measure(zoo, statistics=folder), per_layer=True), expected)
