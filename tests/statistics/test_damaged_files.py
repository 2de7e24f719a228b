"""Files that are damaged, cut off or deleted: each is found, and measured again."""

import logging
import os

import numpy as np
import pytest

import mergekern
from mergekern import StatisticsError, ZooStatistics
from mergekern.statistics.manifest import Manifest
from tests.support.faults import files_of, flip, snapshot
from tests.support.zoos import NAMES, assert_same, paths


def test_a_flipped_bit_is_found_wherever_it_is(folder):
    draw = np.random.default_rng(0)
    damageable = files_of(folder)
    for path in damageable:
        whole = path.read_bytes()
        # Bytes of the header's length, of the header, and of the arrays.
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
        if path.parent.name == "bases":  # bases are read only when models are added
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
