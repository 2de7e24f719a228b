"""One table, to the last bit, whether models are measured together, in shards, or added and removed."""

import itertools
import os

import pytest

import mergekern
from mergekern import ZooStatistics
from mergekern._internal.locks import locked
from mergekern.measurement.on_cpu import CpuMeasurement
from mergekern.statistics.layer_block import LayerBlock
from tests.support.zoos import NAMES, assert_same, paths


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


def test_blocks_are_those_of_every_way(zoo, tmp_path):
    """A run and its shards write the same files, byte for byte."""
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
