"""Inputs, numbered and seeded, each run in a process that is watched for its time and its memory."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mergekern.cli import main
from tests.fuzz.mutations import HOSTILE, mutate_bytes, mutator_of
from tests.fuzz.targets import KINDS, SLOW, TARGETS
from tests.support.faults import context

SECONDS = 20
MEGABYTES = 2000
# What ends a command well or with an error in words.
GOOD_EXITS = (0, 1, 2)


@dataclass(frozen=True)
class Outcome:
    """How one input ended.

    Attributes:
        number: of the input.
        what: the file that was changed, how, and the command.
        exit: its exit status; None where it did not end by itself.
        fault: what is wrong; empty where nothing is.
    """

    number: int
    what: str
    exit: int | None
    fault: str


def run_inputs(world: Path, seed: int, numbers: Sequence[int], processes: int = 1) -> Iterator[Outcome]:
    """Run inputs in so many processes; one that crashes or hangs is an outcome, and the others go on."""
    shares = [list(numbers[start::processes]) for start in range(processes)]
    workers = [_Worker(world, seed, share) for share in shares if share]
    while workers:
        ready = wait([worker.connection for worker in workers], timeout=1)
        for worker in workers:
            if worker.connection in ready or worker.is_late():
                yield from worker.outcomes(worker.connection in ready)
        workers = [worker for worker in workers if worker.left]


class _Worker:
    """A process that runs inputs one after the other, and is replaced when it crashes or hangs."""

    def __init__(self, world: Path, seed: int, numbers: list[int]) -> None:
        self._world, self._seed, self.left = world, seed, numbers
        self._start()

    def _start(self) -> None:
        self.connection, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_run_all, args=(sender, self._world, self._seed, tuple(self.left)))
        self._process.start()
        sender.close()
        self._since = time.monotonic()

    def is_late(self) -> bool:
        return time.monotonic() - self._since > SECONDS + 10  # and the seconds that a process takes to begin

    def outcomes(self, is_ready: bool) -> Iterator[Outcome]:
        try:
            if not is_ready:
                raise TimeoutError
            outcome = self.connection.recv()
            self._since = time.monotonic()
            self.left.remove(outcome.number)
            yield outcome
        except (EOFError, TimeoutError) as error:
            self._process.kill()
            self._process.join()
            how = "no end" if isinstance(error, TimeoutError) else f"died, exit {self._process.exitcode}"
            number = self.left.pop(0)
            yield Outcome(number, str(draw_input(self._world, self._seed, number)), None, how)
            if self.left:
                self._start()


def _run_all(sender: Connection, world: Path, seed: int, numbers: Sequence[int]) -> None:
    torch.set_num_threads(1)
    for number in numbers:
        sender.send(run_input(world, seed, number))


class Input(NamedTuple):
    """A command and the file that is changed before it.

    Attributes:
        path: of the file, within the world.
        how: it is changed.
        content: its new content; None where it is renamed only.
        name: its new name.
        command: what reads it.
    """

    path: Path
    how: str
    content: bytes | None
    name: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        renamed = "" if self.name == self.path.name else f" to {self.name!r}"
        return f"{self.path} {self.how}{renamed}: mergekern {' '.join(self.command)}"

    def change(self, folder: Path) -> None:
        """Change the file in a copy of the world."""
        target = folder / self.path
        if self.content is None:
            target.rename(target.with_name(self.name))
        else:
            target.unlink()  # It is a link to the world's own.
            target.write_bytes(self.content)


def draw_input(world: Path, seed: int, number: int) -> Input:
    """Return the input of a number."""
    draw = random.Random(f"{seed}:{number}")
    kind = draw.choice(KINDS)
    files = sorted(path for path in world.glob(kind) if path.is_file() and not path.name.startswith("."))
    path = draw.choice(files)
    commands = TARGETS[kind]
    if draw.random() < 0.9:
        commands = [command for command in commands if command[0] not in SLOW] or commands
    command = draw.choice(commands)
    relative = path.relative_to(world)
    if draw.random() < 0.03:
        name = draw.choice([value for value in HOSTILE if isinstance(value, str)]).translate(dict.fromkeys(b"/\0"))
        short = name.encode("utf-8", "replace")[:200].decode("utf-8", "ignore")
        return Input(relative, "renamed", None, (short or "x") + path.suffix, command)
    inner = mutator_of(path)
    change = draw.choice([mutate_bytes, *inner, *inner, *inner])
    return Input(relative, change.__name__, change(path.read_bytes(), draw), path.name, command)


def run_input(world: Path, seed: int, number: int) -> Outcome:
    """Run one input in this process."""
    given = draw_input(world, seed, number)
    status, fault = run_command(world, given.command, given.change)
    return Outcome(number, str(given), status, fault)


def run_command(
    world: Path, command: tuple[str, ...], change: Callable[[Path], None] = lambda folder: None
) -> tuple[int | None, str]:
    """Run a command in a copy of the world that is changed before; return its exit status, and what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(world, folder, dirs_exist_ok=True, copy_function=os.link)
        change(Path(folder))
        before = Path.cwd()
        os.chdir(folder)
        try:
            return _watched(command)
        finally:
            os.chdir(before)


def run_commands(world: Path, commands: Sequence[tuple[str, ...]]) -> list[tuple[int | None, str]]:
    """Run commands, each in a copy of the world."""
    torch.set_num_threads(1)
    return [run_command(world, command) for command in commands]


def _watched(command: tuple[str, ...]) -> tuple[int | None, str]:
    held, start = _resident(reset=True), time.monotonic()
    status, fault = _run(command)
    seconds, grown = time.monotonic() - start, _resident() - held
    if seconds > SECONDS:
        fault = fault or f"took {seconds:.0f} s"
    if grown > MEGABYTES:
        fault = fault or f"took {grown:.0f} MB"
    return status, fault


def _run(command: tuple[str, ...]) -> tuple[int | None, str]:
    """Run a command; return its exit status, and what is wrong with how it ended."""
    try:
        with silent() as (out, error):
            main(list(command), prog_name="mergekern", standalone_mode=True)
        status: Any = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    except BaseException:
        return None, traceback.format_exc()
    text = out.getvalue() + error.getvalue()
    if status not in GOOD_EXITS:
        return None, f"exit {status}"
    if status and not error.getvalue().strip():
        return status, "an error without a word"
    if raw := [c for c in text if (ord(c) < 32 and c not in "\n\t\r") or ord(c) == 127]:
        return status, f"the control character {raw[0]!r} is printed"
    if status and len(error.getvalue()) > 20_000:
        return status, f"an error of {len(error.getvalue())} characters"
    return status, ""


@contextlib.contextmanager
def silent() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Keep what is printed from the terminal, and give it."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        yield out, error


def _resident(reset: bool = False) -> float:
    """Return the most memory that the process has held since the last reset, in MB."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
