"""Shards as tasks on a local Ray cluster of two workers."""

import contextlib
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.distributed import cluster as cluster_module
from mergekern.distributed.cluster import measure_on_cluster
from tests.support.zoos import assert_same, write_zoo

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    # Ray is told of a GPU, even where the machine has none.
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def test_two_workers(zoo, tmp_path):
    seen = []
    found = measure_on_cluster(
        zoo, statistics=tmp_path / "s", shards=4, block_size=3, finished=lambda done, count: seen.append((done, count))
    )
    assert_same(found, mergekern.compute_all(zoo, per_layer=True))
    assert seen == [(done, 4) for done in range(1, 5)]


def test_a_worker_killed_midway(tmp_path):
    """Another worker finishes its shard."""
    zoo = write_zoo(tmp_path / "zoo", names=[f"m{index:02d}" for index in range(40)])
    killed = []

    def kill():
        for _ in range(2000):
            for owner in (tmp_path / "s").glob("shard-*/.lock-owner"):
                try:
                    process = json.loads(owner.read_text())["process"]
                    os.kill(process, signal.SIGKILL)
                except (OSError, ValueError):
                    continue
                killed.append(process)
                return
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    found = measure_on_cluster(zoo, statistics=tmp_path / "s", shards=2, block_size=4)
    killer.join()
    assert len(killed) == 1
    assert killed[0] != os.getpid()
    assert_same(found, mergekern.compute_all(zoo, per_layer=True))


def test_workers_that_all_die(zoo, tmp_path, monkeypatch):
    """The error says what to do, and the same call made again finishes the measurement."""
    monkeypatch.setattr(cluster_module, "RETRIES", 1)  # each is a new process, which imports torch before it can die
    is_over = threading.Event()

    def kill():
        while not is_over.is_set():
            for owner in (tmp_path / "s").glob("shard-*/.lock-owner"):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(json.loads(owner.read_text())["process"], signal.SIGKILL)
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    many = write_zoo(tmp_path / "zoo", names=[f"m{index:02d}" for index in range(40)], blocks=6)
    try:
        with pytest.raises(
            mergekern.OutputError, match=r"a worker failed, and so did others.*the same command continues"
        ):
            measure_on_cluster(many, statistics=tmp_path / "s", shards=1, block_size=4)
    finally:
        is_over.set()
        killer.join()
    found = measure_on_cluster(many, statistics=tmp_path / "s", shards=1, block_size=4)
    assert_same(found, mergekern.compute_all(many, per_layer=True))


def test_an_error_of_a_worker_is_the_error(zoo, tmp_path):
    tensors = load_file(zoo / "c.safetensors")
    tensors["head"][0, 0] = np.nan
    bad = write_zoo(tmp_path / "zoo")
    save_file(tensors, bad / "c.safetensors")
    with pytest.raises(mergekern.NonFiniteError, match="'head' holds NaN or infinite values: 1 in 'c'"):
        measure_on_cluster(bad, statistics=tmp_path / "s", shards=3)


def test_what_cannot_be_sent_to_workers(zoo, tmp_path):
    models = {name: load_file(zoo / f"{name}.safetensors") for name in "ab"}
    with pytest.raises(mergekern.OptionError, match="'a' is in memory; the workers of a cluster need paths"):
        measure_on_cluster(models, zoo / "base.safetensors", statistics=tmp_path / "s")
    files, base = {name: zoo / f"{name}.safetensors" for name in "ab"}, load_file(zoo / "base.safetensors")
    with pytest.raises(mergekern.OptionError, match="'base' is in memory"):
        measure_on_cluster(files, base, statistics=tmp_path / "s")


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_a_device_that_ray_does_not_have(zoo, tmp_path):
    with pytest.raises(mergekern.OptionError, match=r"Ray gave this worker the GPUs \[.*0.*\], but torch finds none"):
        measure_on_cluster(zoo, statistics=tmp_path / "s", shards=2, num_gpus=1)
