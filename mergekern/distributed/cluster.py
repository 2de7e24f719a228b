"""The shards of a zoo as tasks on a Ray cluster."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mergekern._internal.extras import needs
from mergekern.checkpoints import open_zoo
from mergekern.checkpoints.adapter import ImpliedBase
from mergekern.checkpoints.sources import CheckpointLike, ZooLike
from mergekern.distributed.shards import combine, measure_shard
from mergekern.errors import MergekernError, OptionError, OutputError
from mergekern.measurement.options import MeasureOptions
from mergekern.measurement.tiles import BLOCK_SIZE
from mergekern.statistics.store import check_folder

# More shards than workers, so that one that is slow or lost holds up little; as many on every cluster, so that a run
# continues on another one.
SHARDS = 32
# Of a shard whose worker died: by what it was asked to do, it would die again.
RETRIES = 3


def measure_on_cluster(
    checkpoints: ZooLike,
    base: CheckpointLike | None = None,
    *,
    statistics: str | os.PathLike[str],
    address: str | None = None,
    shards: int = SHARDS,
    num_cpus: float = 1,
    num_gpus: float = 0,
    options: MeasureOptions | None = None,
    block_size: int = BLOCK_SIZE,
    finished: Callable[[int, int], None] = lambda done, count: None,
) -> Path:
    """Measure a zoo on a Ray cluster, to the last bit as `measure` does on a machine of its kind; return the folder.

    A shard whose worker dies is given to another, and continues from what is on disk; so does the whole, called again.

    Args:
        checkpoints, base: as for `compute_all`, but paths or ids of the Hugging Face Hub, which every worker can read.
        statistics: a folder that every worker can write to.
        address: address of the cluster; by default the one that this process is connected to, or a local one.
        shards: how many there are.
        num_cpus, num_gpus: resources of each worker. With GPUs the device is the one that Ray gives it.
        finished: called with (shards finished, shards) whenever one is.
        options, block_size: as for `measure_shard`; the device of the options is left to Ray.

    Raises:
        OptionError: Ray is not installed, checkpoints are in memory, or a worker has no GPU though some were asked for.
        CheckpointError, MismatchError, NonFiniteError, StatisticsError, OutputError: as for `compute_all`.
    """
    try:
        import ray
    except ImportError as error:
        raise OptionError(needs("a Ray cluster", "ray", error)) from error
    folder = Path(statistics).absolute()
    check_folder(folder)
    options = options or MeasureOptions()
    zoo = open_zoo(
        checkpoints, base, on_mismatch=options.on_mismatch, io=options.io, needs_base=False, rename=options.rename
    )
    sources = {checkpoint.name: checkpoint.location for checkpoint in zoo.models}
    given = [*zoo.models, *([] if base is None and isinstance(zoo.base, ImpliedBase) else [zoo.base])]
    if held := [checkpoint.name for checkpoint in given if checkpoint.location is None]:
        raise OptionError(f"{held[0]!r} is in memory; the workers of a cluster need paths, or ids on the Hub")
    if not ray.is_initialized():
        ray.init(address=address)
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=RETRIES)(_measure)
    task = {"base": zoo.base.location, "statistics": folder, "options": options, "block_size": block_size}
    waiting = [
        remote.remote(sources, task, (index, shards), max(1, int(num_cpus)), num_gpus > 0)
        for index in range(1, shards + 1)
    ]
    paths: list[str] = []
    while waiting:
        done, waiting = ray.wait(waiting)
        try:
            paths += ray.get(done)
        except ray.exceptions.RayError as error:
            for other in waiting:
                ray.cancel(other, force=True)
            cause = getattr(error, "cause", None)
            if isinstance(cause, MergekernError):
                raise cause from error
            raise OutputError(
                f"{folder}: a worker failed, and so did others in its place ({type(error).__name__}: "
                f"{str(error).strip().splitlines()[0]}); what was measured is kept, and the same command continues"
            ) from error
        finished(len(paths), shards)
    return combine(folder)


def _measure(sources: dict[str, Any], task: dict[str, Any], shard: tuple[int, int], threads: int, has_gpu: bool) -> str:
    """Measure a shard in a worker, on the device that Ray gave it."""
    torch.set_num_threads(threads)
    device = "cpu"
    if has_gpu:
        import ray

        given = ray.get_gpu_ids()
        if not (given and torch.cuda.is_available()):
            raise OptionError(f"Ray gave this worker the GPUs {given}, but torch finds none")
        device = "cuda:0"  # the first of those that are visible to the worker
    options = dataclasses.replace(task.pop("options"), device=device)
    return str(measure_shard(sources, shard=shard, options=options, **task))
