"""Faults of disks, files, clocks and processes: nothing is lost, and no wrong number is given."""

import json
import logging
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import (
    CheckpointError,
    MetricTable,
    NonFiniteError,
    OutputError,
    StatisticsError,
    ZooStatistics,
)
from mergekern.checkpoints import open_zoo
from mergekern.prediction.screening import screen
from mergekern.statistics.manifest import Manifest
from tests.support.faults import context, flip, on_read_only, on_small_disk, owner, run, snapshot
from tests.support.zoos import NAMES, assert_same, paths

GEOMETRY = ["task-vector geometry"]


@pytest.fixture(scope="module")
def measured(zoo, tmp_path_factory):
    """A finished folder, not to be written to."""
    folder = tmp_path_factory.mktemp("measured") / "s"
    mergekern.measure(zoo, statistics=folder)
    return folder


@pytest.fixture(scope="module")
def shards(zoo, tmp_path_factory):
    """Two of two, not to be written to."""
    folder = tmp_path_factory.mktemp("shards")
    return [mergekern.measure_shard(zoo, shard=(index, 2), statistics=folder) for index in (1, 2)]


@pytest.fixture
def folder(measured, tmp_path):
    """A finished folder."""
    return shutil.copytree(measured, tmp_path / "s")


def files_of(folder):
    return sorted(path for path in folder.glob("*/*.safetensors"))


# --- full disks


@pytest.mark.parametrize("kilobytes", [4, 12, 24, 40, 56])
def test_a_full_disk(zoo, expected, tmp_path, kilobytes):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    kind, message = run(on_small_disk, disk, kilobytes << 10, kept, measure, zoo, disk)
    assert kind == "OutputError"
    assert re.search(rf"^{disk}/\S+: cannot be written \(.*; [\d,]+ bytes free\); what was .* kept", message), message
    # What was written is there, whole, and is used: on a larger disk the same command continues.
    before = {path: path.stat().st_mtime_ns for path in files_of(kept)}
    assert len(before) >= (kilobytes - 8) // 16
    assert not [path for path in kept.rglob(".*") if not path.name.startswith(".lock")]
    assert_same(mergekern.measure(zoo, statistics=kept), expected)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in files_of(kept)}.items()


def measure(zoo, folder, **options):
    mergekern.measure(zoo, statistics=folder, **options)


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


# --- damaged files


def test_a_flipped_bit_is_found_wherever_it_is(folder):
    draw = np.random.default_rng(0)
    damageable = files_of(folder)
    for path in damageable:
        whole = path.read_bytes()
        # Of the header's length, the header, and the arrays.
        header = 8 + int.from_bytes(whole[:8], "little")
        ranges = [(0, 8), (8, header), (header, len(whole))]
        for start, stop in (each for each in ranges for _ in range(12)):
            bit = int(draw.integers(8 * start, 8 * stop))
            flip(path, bit)
            damaged = mergekern.verify(folder)
            assert [each.path for each in damaged] == [path], bit
            assert str(path) in damaged[0].what
            if path.parent.name == "blocks":
                with pytest.raises(StatisticsError, match=str(path)):
                    ZooStatistics.load(folder)
            path.write_bytes(whole)
    assert not mergekern.verify(folder)


def test_a_flipped_bit_of_the_manifest(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 400):
        flip(path, int(bit))
        with pytest.raises(StatisticsError, match=f"^{folder}"):
            Manifest.read(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("how", ["flipped", "truncated", "emptied", "deleted"])
def test_damaged_files_are_measured_again(zoo, expected, folder, caplog, how):
    draw = np.random.default_rng(1)
    whole = snapshot(folder)
    for path in [*files_of(folder), folder / "manifest.json"]:
        size = path.stat().st_size
        if how == "flipped":
            flip(path, int(draw.integers(8 * size)))
        elif how == "deleted":
            path.unlink()
        else:
            os.truncate(path, int(draw.integers(size)) if how == "truncated" else 0)
        if path.parent.name == "bases":  # of use for added models only, so that a run on these does not read them
            assert [each.path for each in mergekern.verify(folder)] == [path]
            path.unlink(missing_ok=True)
        with caplog.at_level(logging.WARNING):
            assert_same(mergekern.measure(zoo, statistics=folder), expected)
        if how != "deleted" and path.parent.name != "bases":
            assert str(path) in caplog.text
            assert "computing it again" in caplog.text
        caplog.clear()
        assert not mergekern.verify(folder)
        assert snapshot(folder) == whole


@pytest.mark.parametrize("kind", ["blocks", "bases"])
def test_a_model_is_added_to_damaged_files(zoo, expected, tmp_path, caplog, kind):
    folder = tmp_path / "s"
    mergekern.measure(paths(zoo, NAMES[:6]), zoo / "base.safetensors", statistics=folder)
    for path in (folder / kind).iterdir():
        flip(path, 8 * path.stat().st_size - 1)
    found = mergekern.add_models(zoo / "g.safetensors", folder)
    assert_same(found, expected)
    assert caplog.text.count("computing it again") == (5 if kind == "blocks" else 3)
    assert not mergekern.verify(folder)


@pytest.mark.parametrize("kind", ["blocks", "bases"])
def test_a_damaged_shard(zoo, expected, tmp_path, kind):
    shards = [
        mergekern.measure_shard(zoo, shard=(index, 2), statistics=tmp_path / "s", block_size=4) for index in (1, 2)
    ]
    path = next((shards[1] / kind).iterdir())
    flip(path, 8 * path.stat().st_size - 1)
    with pytest.raises(StatisticsError, match=rf"{path}: .*; run shard 2/2 again"):
        mergekern.combine(tmp_path / "s")
    assert not (tmp_path / "s" / "blocks").exists()
    mergekern.measure_shard(zoo, shard=(2, 2), statistics=tmp_path / "s", block_size=4)
    assert_same(mergekern.combine(tmp_path / "s"), expected)


# --- checkpoints that change


def in_place(path, content):
    with path.open("r+b") as file:
        file.write(content)


def in_place_with_the_time_set_back(path, content):
    before = path.stat()
    in_place(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_renaming(path, content):
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


def by_renaming_with_the_time_set_back(path, content):
    before = path.stat()
    path.with_suffix(".new").write_bytes(content)
    os.utime(path.with_suffix(".new"), ns=(before.st_atime_ns, before.st_mtime_ns))
    path.with_suffix(".new").replace(path)


def by_deleting(path, content):
    path.unlink()


WAYS = [
    in_place, in_place_with_the_time_set_back, by_renaming, by_renaming_with_the_time_set_back, by_deleting,
]  # fmt: skip


def changing(change, path, content, at=1):
    """Return a progress callable that changes a checkpoint while a tensor is being measured."""

    def progress(step):
        if step.tensors_done == at and step.tensor:
            change(path, content)

    return progress


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("change", WAYS)
def test_a_checkpoint_replaced_while_it_is_read(zoo, tmp_path, change, io):
    """Neither a folder nor a table is of both files."""
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    path, content = mine / "c.safetensors", (mine / "d.safetensors").read_bytes()
    folder = tmp_path / "s"
    mergekern.measure(mine, statistics=folder, top_k=3)
    before = snapshot(folder)
    for at, options in ((1, {"statistics": folder}), (4, {"statistics": folder}), (1, {})):
        shutil.copyfile(zoo / "c.safetensors", path)
        with pytest.raises(CheckpointError, match=rf"{path}: was changed while 'c' was being read; .*run again"):
            mergekern.measure(mine, progress=changing(change, path, content, at), max_memory=20_000, io=io, **options)
        assert snapshot(folder) == before
    if change is not by_deleting:
        assert_same(mergekern.measure(mine, statistics=folder), mergekern.compute_all(mine, per_layer=True))


def test_a_checkpoint_replaced_by_one_that_is_known(folder, zoo, tmp_path):
    """No block is written, all being there, and yet the tensors are of both files."""
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    content = (mine / "d.safetensors").read_bytes()
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match="was changed while 'c'"):
        mergekern.measure(
            mine, statistics=folder, progress=changing(in_place, mine / "c.safetensors", content), max_memory=20_000
        )
    assert snapshot(folder) == before


@pytest.mark.parametrize("change", WAYS)
def test_a_checkpoint_replaced_between_opening_and_reading(zoo, tmp_path, change):
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    opened = open_zoo(mine)
    change(mine / "base.safetensors", (mine / "d.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"base\.safetensors: was changed while 'base' was being read"):
        mergekern.measure(opened, statistics=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("block_size", [512, 3])
def test_a_checkpoint_replaced_between_shards(zoo, tmp_path, block_size):
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    options = {"statistics": tmp_path / "s", "block_size": block_size}
    mergekern.measure_shard(mine, shard=(1, 2), **options)
    in_place_with_the_time_set_back(mine / "base.safetensors", (mine / "d.safetensors").read_bytes())
    mergekern.measure_shard(mine, shard=(2, 2), **options)
    if block_size == 3:  # the shards share tensors
        with pytest.raises(CheckpointError, match=r"base: tensor '\w+.*replaced between the shards; run them again"):
            mergekern.combine(tmp_path / "s")
        for index in (1, 2):
            mergekern.measure_shard(mine, shard=(index, 2), **options)
    else:
        mergekern.measure_shard(mine, shard=(1, 2), **options)
    assert_same(mergekern.combine(tmp_path / "s"), mergekern.compute_all(mine, per_layer=True))


def test_a_checkpoint_cut_off_while_it_is_read(zoo, expected, tmp_path):
    """Reads say so; of a mapped file, the system ends the process. Either way nothing wrong is kept."""
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    whole = (mine / "c.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"c\.safetensors: "):
        cut_off(mine, tmp_path / "s", "pread")
    assert not (tmp_path / "s").exists()
    (mine / "c.safetensors").write_bytes(whole)
    process = context.Process(target=cut_off, args=(mine, tmp_path / "s", "mmap"))
    process.start()
    process.join()
    assert process.exitcode in (1, -signal.SIGBUS)
    (mine / "c.safetensors").write_bytes(whole)
    assert_same(mergekern.measure(mine, statistics=tmp_path / "s"), expected)


def cut_off(zoo, folder, io):
    progress = changing(lambda path, _: os.truncate(path, 0), zoo / "c.safetensors", b"")
    mergekern.measure(zoo, statistics=folder, progress=progress, max_memory=20_000, io=io)


# --- folders that cannot be used


def test_a_read_only_folder(zoo, measured, tmp_path, shards):
    folder = shutil.copytree(measured, tmp_path / "s")
    for write in (
        (measure, zoo, folder), (mergekern.combine, folder, shards), (mergekern.remove_models, ["a"], folder),
        (measure, zoo, folder / "new"),
    ):  # fmt: skip
        kind, message = run(on_read_only, folder, *write)
        assert kind == "OutputError"
        assert re.match(rf"{folder}.*: cannot be written.*; (give a folder that can|what was measured)", message)
    # And yet it can be read.
    assert run(on_read_only, folder, read, folder) == [7, 0, 21]


def read(folder):
    return [len(ZooStatistics.load(folder).models), len(mergekern.verify(folder)), screen(folder).pairs]


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


# --- clocks


@pytest.mark.parametrize("year", [1970, 2100])
def test_clocks_that_jump(zoo, expected, folder, tmp_path, year):
    """Nothing is measured again, and no lock is taken for another's, whatever the times of files say."""
    (folder / ".lock-owner").write_text(json.dumps({"process": 1, "host": "elsewhere", "since": f"{year}-01-01"}))
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    stamp = (year - 1970) * 365 * 86400
    for path in [*folder.rglob("*"), *folder.rglob(".*"), *mine.iterdir()]:
        os.utime(path, (stamp, stamp))
    assert_same(mergekern.measure(mine, statistics=folder), expected)
    assert {path.stat().st_mtime for path in files_of(folder)} == {stamp}
    assert not mergekern.verify(folder)


# --- processes


def stopped(zoo, folder, how):
    """Run until the second tensor, and be stopped there."""

    def progress(step):
        if step.tensors_done == 2:
            os.kill(os.getpid(), how)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    mergekern.measure(zoo, statistics=folder, progress=progress, max_memory=20_000)


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
    """Run until the third tensor, and stay there."""

    def progress(step):
        if step.tensors_done == 2:
            event.set()
            time.sleep(600)

    mergekern.measure(zoo, statistics=folder, progress=progress, max_memory=20_000)


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
    assert owner(folder)["process"] == process.pid  # it could not tidy up
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


# --- bad input


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
    options = {"base": zoo / "base.safetensors", "max_memory": 20_000, "block_size": 2, "metrics": GEOMETRY}
    mergekern.measure_shard(paths(zoo, "abc"), shard=(1, 1), statistics=tmp_path / "s", **options)
    before = snapshot(tmp_path / "s")
    with pytest.raises(NonFiniteError, match="1 in 'bad'"):
        mergekern.measure_shard(models, shard=(1, 1), statistics=tmp_path / "s", **options)
    assert snapshot(tmp_path / "s") == before
    with pytest.raises(NonFiniteError, match="1 in 'bad'"):
        mergekern.measure_shard(models, shard=(1, 2), statistics=tmp_path / "s", **options)
    assert snapshot(tmp_path / "s") == before


def test_bad_input_leaves_what_an_earlier_run_was_killed_with(zoo, expected, tmp_path):
    """Blocks of good models are not undone with those of bad ones."""
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
