"""Full and read-only disks: one error that names the file, and what was written before stays of use."""

import re
import shutil

import pytest

import mergekern
from mergekern import ZooStatistics
from mergekern.prediction.screening import screen
from tests.support.faults import files_of, measure, on_read_only, on_small_disk, run, snapshot
from tests.support.zoos import assert_same


@pytest.mark.parametrize("kilobytes", [4, 12, 24, 40, 56])
def test_a_full_disk(zoo, expected, tmp_path, kilobytes):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    kind, message = run(on_small_disk, disk, kilobytes << 10, kept, measure, zoo, disk)
    assert kind == "OutputError"
    assert re.search(rf"^{disk}/\S+: cannot be written \(.*; [\d,]+ bytes free\); what was .* kept", message), message
    # Files that were written are whole, and the same command continues from them on a larger disk.
    before = {path: path.stat().st_mtime_ns for path in files_of(kept)}
    assert len(before) >= (kilobytes - 8) // 16
    assert not [path for path in kept.rglob(".*") if not path.name.startswith(".lock")]
    assert_same(mergekern.measure(zoo, statistics=kept), expected)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in files_of(kept)}.items()


def test_a_full_disk_where_shards_are_combined(expected, shards, tmp_path):
    before = [snapshot(shard) for shard in shards]
    disk = tmp_path / "disk"
    kind, message = run(on_small_disk, disk, 28 << 10, tmp_path / "kept", mergekern.combine, disk, shards)
    assert kind == "OutputError"
    assert str(disk) in message
    assert "bytes free" in message
    assert [snapshot(shard) for shard in shards] == before
    assert files_of(tmp_path / "kept")
    assert_same(mergekern.combine(tmp_path / "kept", shards), expected)


def test_a_full_disk_where_pairs_are_written(measured, tmp_path):
    disk = tmp_path / "disk"
    kind, message = run(on_small_disk, disk, 4 << 10, tmp_path / "kept", screen, measured, [], disk / "pairs.parquet")
    assert kind == "OutputError"
    assert re.search(rf"^{disk}/pairs.parquet: cannot be written \(.*; [\d,]+ bytes free\)", message), message
    assert not list((tmp_path / "kept").iterdir())


def test_a_full_disk_where_statistics_are_saved(measured, tmp_path):
    disk = tmp_path / "disk"
    kind, message = run(on_small_disk, disk, 4 << 10, tmp_path / "kept", save, measured, disk / "saved")
    assert kind == "OutputError"
    assert "cannot be written" in message


def save(measured, folder):
    ZooStatistics.load(measured).save(folder)


def test_a_read_only_folder(zoo, measured, tmp_path, shards):
    folder = shutil.copytree(measured, tmp_path / "s")
    for write in (
        (measure, zoo, folder), (mergekern.combine, folder, shards), (mergekern.remove_models, ["a"], folder),
        (measure, zoo, folder / "new"),
    ):  # fmt: skip
        kind, message = run(on_read_only, folder, *write)
        assert kind == "OutputError"
        assert re.match(rf"{folder}.*: cannot be written.*; (give a folder that can|what was measured)", message)
    # The folder can still be read.
    assert run(on_read_only, folder, read, folder) == [7, 0, 21]


def read(folder):
    return [len(ZooStatistics.load(folder).models), len(mergekern.verify(folder)), screen(folder).pairs]
