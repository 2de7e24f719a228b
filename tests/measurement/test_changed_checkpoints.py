"""Checkpoints that change while they are read: no result mixes two versions of a file."""

import os
import shutil
import signal

import pytest

import mergekern
from mergekern import CheckpointError
from mergekern.checkpoints import open_zoo
from tests.support.faults import context, snapshot
from tests.support.zoos import assert_same


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
    """Neither a folder nor a table mixes the old file and the new one."""
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    path, content = mine / "c.safetensors", (mine / "d.safetensors").read_bytes()
    folder = tmp_path / "s"
    mergekern.measure(mine, statistics=folder, options=mergekern.MeasureOptions(top_k=3))
    before = snapshot(folder)
    for at, options in ((1, {"statistics": folder}), (4, {"statistics": folder}), (1, {})):
        shutil.copyfile(zoo / "c.safetensors", path)
        with pytest.raises(CheckpointError, match=rf"{path}: was changed while 'c' was being read; .*run again"):
            mergekern.measure(
                mine,
                progress=changing(change, path, content, at),
                **options,
                options=mergekern.MeasureOptions(max_memory=20_000, io=io),
            )
        assert snapshot(folder) == before
    if change is not by_deleting:
        assert_same(mergekern.measure(mine, statistics=folder), mergekern.compute_all(mine, per_layer=True))


def test_a_checkpoint_replaced_by_one_that_is_known(folder, zoo, tmp_path):
    """All blocks exist already, so none is written; still the run has read tensors of both files, and fails."""
    mine = shutil.copytree(zoo, tmp_path / "zoo")
    content = (mine / "d.safetensors").read_bytes()
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match="was changed while 'c'"):
        mergekern.measure(
            mine,
            statistics=folder,
            progress=changing(in_place, mine / "c.safetensors", content),
            options=mergekern.MeasureOptions(max_memory=20_000),
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
    """A read fails with an error. With a mapped file the system ends the process. No wrong result is kept."""
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
    mergekern.measure(
        zoo, statistics=folder, progress=progress, options=mergekern.MeasureOptions(max_memory=20_000, io=io)
    )
