"""One table, to the last bit, however its statistics came about."""

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mergekern
from mergekern import MetricTable, ZooStatistics
from mergekern._internal.locks import locked
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.statistics.layer_block import LayerBlock
from mergekern.statistics.manifest import Manifest
from tests.statistics.zoos import NAMES, paths, write_zoo


def assert_same(found, expected):
    """Tables are equal to the last bit, in every layer, with their notes and provenance."""
    if isinstance(found, Path):
        found = ZooStatistics.load(found)
    if not isinstance(found, MetricTable):
        found = MetricTable.from_statistics(found, per_layer=True)
    assert found.models == expected.models
    assert found.metrics == expected.metrics
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), check_exact=True)
    for metric in expected.metrics:
        pd.testing.assert_frame_equal(found.per_layer(metric), expected.per_layer(metric), check_exact=True)
        np.testing.assert_array_equal(found.matrix(metric), expected.matrix(metric))
    assert found.notes == expected.notes
    assert found.provenance == expected.provenance


def test_a_folder_of_one_run(zoo, expected, tmp_path):
    assert_same(mergekern.measure(zoo, statistics=tmp_path / "s"), expected)
    assert_same(ZooStatistics.load(tmp_path / "s"), expected)


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], "dagcfbe"], ids="".join)
def test_models_added_one_at_a_time(zoo, expected, tmp_path, order):
    folder = tmp_path / "s"
    mergekern.measure(paths(zoo, order[:2]), zoo / "base.safetensors", statistics=folder)
    for name in order[2:]:
        mergekern.add_models(zoo / f"{name}.safetensors", folder)
    assert ZooStatistics.load(folder).models == tuple(order)
    assert_same(ZooStatistics.load(folder, list(NAMES)), expected)


def test_models_removed_and_added_again(zoo, expected, tmp_path):
    folder = tmp_path / "s"
    mergekern.measure(zoo, statistics=folder)
    mergekern.remove_models(["b", "f"], folder)
    left = [name for name in NAMES if name not in "bf"]
    assert_same(
        ZooStatistics.load(folder), mergekern.compute_all(paths(zoo, left), zoo / "base.safetensors", per_layer=True)
    )
    mergekern.add_models([zoo / "f.safetensors", zoo / "b.safetensors"], folder)
    assert_same(ZooStatistics.load(folder, list(NAMES)), expected)


@pytest.mark.parametrize("names", ["ab", "gca", "fedcba"])
def test_any_subset_in_any_order(zoo, tmp_path, names):
    folder = tmp_path / "s"
    whole = mergekern.measure(zoo, statistics=folder)
    alone = mergekern.compute_all(paths(zoo, names), zoo / "base.safetensors", per_layer=True)
    assert_same(ZooStatistics.load(folder, list(names)), alone)
    assert_same(whole.select(list(names)), alone)


@pytest.mark.parametrize("block_size", [512, 3, 1])
def test_shards_combined_in_any_order(zoo, expected, tmp_path, block_size):
    folder = tmp_path / "s"
    shards = [
        mergekern.measure_shard(zoo, shard=(index, 5), statistics=folder, block_size=block_size)
        for index in (3, 1, 5, 2, 4)
    ]
    for number, order in enumerate(itertools.islice(itertools.permutations(shards), 0, 120, 50)):
        assert_same(mergekern.combine(tmp_path / f"combined {number}", order), expected)
    assert_same(mergekern.combine(folder), expected)
    assert not list(folder.glob("shard-*"))


def test_more_shards_than_items(zoo, expected, tmp_path):
    for index in range(1, 10):
        mergekern.measure_shard(zoo, shard=(index, 9), statistics=tmp_path / "s")
    assert_same(mergekern.combine(tmp_path / "s"), expected)


def test_models_added_to_combined_shards(zoo, expected, tmp_path):
    models = paths(zoo, NAMES[:5])
    for index in (1, 2):
        mergekern.measure_shard(
            models, zoo / "base.safetensors", shard=(index, 2), statistics=tmp_path / "s", block_size=2
        )
    mergekern.combine(tmp_path / "s")
    assert_same(
        mergekern.add_models({name: zoo / f"{name}.safetensors" for name in NAMES[5:]}, tmp_path / "s"), expected
    )


def measure(zoo, folder, begun):
    """Run in a process that may be killed."""
    begun.set()
    mergekern.measure(zoo, statistics=folder)


def test_killed_at_twenty_moments_and_resumed(tmp_path):
    """Runs on a folder are killed until one gets to its end, then the next is begun; each ends as if none had been."""
    zoo = write_zoo(tmp_path / "zoo", [f"m{index:02d}" for index in range(30)], blocks=6)
    expected = mergekern.compute_all(zoo, per_layer=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.statistics.test_one_table"])

    def start(folder):
        begun = context.Event()
        process = context.Process(target=measure, args=(zoo, folder, begun))
        process.start()
        assert begun.wait(60)
        return process

    start(tmp_path / "first").join()
    began = time.perf_counter()
    start(tmp_path / "timed").join()
    seconds = time.perf_counter() - began
    killed = folders = 0
    for attempt in range(200):
        process = start(tmp_path / f"s{folders}")
        time.sleep(seconds * (attempt * 0.618 % 1))  # an irrational step meets every stage
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        folders += process.exitcode == 0
        if killed == 20:
            break
    assert killed == 20
    for folder in tmp_path.glob("s?"):
        assert_same(mergekern.measure(zoo, statistics=folder), expected)
        assert not mergekern.verify(folder)
        # Nothing of the killed ones is left.
        names = Manifest.read(folder).file_names
        left = {path for path in folder.rglob("*") if path.is_file()} - {folder / "manifest.json", folder / ".lock"}
        assert {path.stem for path in left} == names
        assert {path.suffix for path in left} == {".safetensors"}


def test_blocks_are_those_of_every_way(zoo, tmp_path):
    """The files of a run are byte for byte those of its shards."""
    mergekern.measure(zoo, statistics=tmp_path / "run")
    for index in (1, 2, 3):
        mergekern.measure_shard(zoo, shard=(index, 3), statistics=tmp_path / "shards")
    mergekern.combine(tmp_path / "shards")
    files = {
        name: {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*.*")
            if path.is_file()
        }
        for name in ("run", "shards")
    }
    assert files["run"].keys() == files["shards"].keys()
    assert files["run"] == files["shards"]


def test_only_what_is_new_is_measured(zoo, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    mergekern.measure(paths(zoo, NAMES[:6]), zoo / "base.safetensors", statistics=folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")}
    mergekern.add_models(zoo / "g.safetensors", folder)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    new = [LayerBlock.read(folder, path.stem) for path in (folder / "blocks").iterdir() if path not in before]
    assert sorted((len(block.key.rows), len(block.key.columns)) for block in new) == [(1, 0)] * 5 + [(6, 1)] * 5


def test_nobody_else_writes_while_models_are_added(zoo, tmp_path):
    folder = tmp_path / "s"
    mergekern.measure(paths(zoo, NAMES[:3]), zoo / "base.safetensors", statistics=folder)
    with locked(folder), pytest.raises(mergekern.OutputError, match=f"in use by process {os.getpid()} on"):
        mergekern.add_models(zoo / "g.safetensors", folder)
    mergekern.add_models(zoo / "g.safetensors", folder)


def test_shards_that_were_combined_are_not_measured_again(zoo, expected, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    for _ in range(2):
        for index in (1, 2):
            mergekern.measure_shard(zoo, shard=(index, 2), statistics=folder, block_size=3)
        assert_same(mergekern.combine(folder), expected)
        monkeypatch.setattr(CpuMeasurement, "begin", None)
