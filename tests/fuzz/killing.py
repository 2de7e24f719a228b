"""Commands that are killed while they write, and run again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mergekern.cli import main
from tests.fuzz.running import silent
from tests.fuzz.targets import BEST, CALIBRATE
from tests.support.faults import context

# Every command that writes. What is there before it is the world.
WRITING: Sequence[tuple[str, ...]] = (
    ("metrics", "zoo", "--per-layer", "--out", "out.parquet"),
    ("metrics", "zoo", "--statistics", "new", "--out", "out.csv"),
    ("metrics", "zoo", "--statistics", "new", "--shard", "1/2"),
    ("combine", "shards"),
    ("add", "adapters/x", "--to", "statistics"),
    ("remove", "b", "--from", "statistics"),
    ("table", "statistics", "--out", "out.json"),
    ("merge", "zoo", "--method", "ties", "--out", "out.safetensors"),
    ("merge", "zoo/a.safetensors", "zoo/d.safetensors", "--base", "zoo/c", "--method", "tsv", "--out", "out"),
    ("merge-adapters", "adapters", "--combination", "svd", "--svd-rank", "1", "--out", "out"),
    ("merge-adapters", "adapters", "--combination", "cat", "--out", "zoo/merged"),
    ("merge", "--config", "recipe.yaml", "--out", "out.safetensors"),
    ("merge-all", "zoo", "--methods", "weight_average,ties", "--out", "merged"),
    ("measure", "to_measure.csv", "--zoo", "zoo", "--evaluate", "evaluator.py:score"),
    ("measure", "n.csv", "--zoo", "zoo", "--evaluate", "evaluator.py:score", "--methods", "ties", "--models", "m.csv"),
    (*BEST, "--budget", "3"),
    CALIBRATE,
    ("sketch", "zoo", "--out", "new.safetensors", "--size", "64"),
    ("sketch", "adapters/x", "--base", "zoo/base.safetensors", "--out", "sketches.safetensors"),
    ("compare", "sketches.safetensors", "--out", "out.csv"),
    ("fit", "table.json", "--scores", "scores.csv", "--method", "ties", "--kind", "linear", "--out", "p.json"),
    ("predict", "table.json", "--predictor", "predictor.json", "--out", "out.csv"),
    ("recommend", "table.json", "--predictor", "predictor.json", "--out", "out.csv"),
    ("plan-measurements", "table.csv", "-k", "2", "--method", "ties", "--out", "plan.csv"),
    ("screen", "zoo", "--statistics", "new", "--out", "out.parquet"),
    ("report", "table.json", "--out", "out.html"),
)
# What a process does to files; reads are among the openings.
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.copyfile"}
# Files of locks, which stay.
_LOCKS = {".lock"}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in _LOCKS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def copy_world(world: Path, folder: Path) -> Path:
    """Copy the world to a new folder and return it; where it lies is part of what some commands write."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder)
    return folder


def finish(folder: Path, command: tuple[str, ...]) -> tuple[int, int]:
    """Run a command in a folder to its end; return its exit status, and how many events it could be killed at."""
    return _run(folder, command)


def kill(folder: Path, command: tuple[str, ...], draw: random.Random, events: int, seconds: float) -> None:
    """Kill a command at a moment that is drawn: before something that it does to a file, or after some time."""
    if draw.random() < 0.7:
        _run(folder, command, at=draw.randrange(events))
    else:
        _run(folder, command, after=draw.uniform(0, seconds))


def _run(folder: Path, command: tuple[str, ...], at: int | None = None, after: float | None = None) -> tuple[Any, int]:
    """Run a command in a process; return its exit status, None if it was killed, and the number of events."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_watched, args=(sender, folder, command, at, after))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None, 0
    finally:
        process.join()
        receiver.close()


def _watched(sender: Any, folder: Path, command: tuple[str, ...], at: int | None, after: float | None) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    seen = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _EVENTS and _is_inside(arguments[0]):
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(on_event)
    if after is not None:
        timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    with silent():
        try:
            main(list(command), prog_name="mergekern")
            status: Any = 0
        except SystemExit as end:
            status = end.code or 0
    sender.send((status, seen))


def _is_inside(path: Any) -> bool:
    """Tell whether a path lies in the current folder."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(os.getcwd() + os.sep)
