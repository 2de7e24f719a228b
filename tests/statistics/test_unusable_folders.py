"""Folders that hold something else, an unfinished measurement, or an earlier format."""

import json
import signal

import pytest

import mergekern
from mergekern import StatisticsError, ZooStatistics
from tests.support.faults import context, snapshot, stopped
from tests.support.zoos import assert_same


def test_something_else_in_place_of_the_folder(zoo, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    for path, match in (("file", "is a file; statistics are kept in a folder"), ("folder", "other things in it; give")):
        with pytest.raises(StatisticsError, match=match):
            mergekern.measure(zoo, statistics=tmp_path / path)
        with pytest.raises(StatisticsError, match=match):
            mergekern.measure_shard(zoo, shard=(1, 2), statistics=tmp_path / path)
        with pytest.raises(StatisticsError, match="not a folder of finished statistics"):
            ZooStatistics.load(tmp_path / path)
        with pytest.raises(StatisticsError, match="not a folder of finished statistics"):
            mergekern.add_models(zoo / "a.safetensors", tmp_path / path)
    assert snapshot(tmp_path) == before


def test_folders_that_are_not_finished(zoo, expected, tmp_path):
    process = context.Process(target=stopped, args=(zoo, tmp_path / "s", signal.SIGKILL))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(StatisticsError, match=r"not a folder of finished statistics .*; run compute_all"):
        ZooStatistics.load(tmp_path / "s")
    shard = mergekern.measure_shard(zoo, shard=(1, 2), statistics=tmp_path / "shards")
    with pytest.raises(StatisticsError, match=r"part 1 of 2 .*`mergekern combine` puts the parts together"):
        ZooStatistics.load(shard)
    with pytest.raises(StatisticsError, match=r"shards in it are not combined; `mergekern combine"):
        ZooStatistics.load(tmp_path / "shards")
    (shard / "manifest.json").unlink()
    with pytest.raises(StatisticsError, match=r"not a finished shard.*; run it again"):
        mergekern.combine(tmp_path / "shards")


def test_a_folder_of_an_earlier_format(zoo, expected, tmp_path):
    folder = tmp_path / "s"
    (folder / "blocks").mkdir(parents=True)
    (folder / "blocks" / "0123.safetensors").write_bytes(b"an earlier one")
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "models": ["a", "b"], "blocks": ["0123"]}))
    for read in (ZooStatistics.load, mergekern.verify, lambda path: mergekern.add_models(zoo / "a.safetensors", path)):
        with pytest.raises(StatisticsError, match="format 1, but this version reads 2; run compute_all"):
            read(folder)
    assert_same(mergekern.measure(zoo, statistics=folder), expected)
    assert not (folder / "blocks" / "0123.safetensors").exists()
