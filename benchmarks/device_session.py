"""The parts that all cases of a device run share: sizes, a clock, correctness before time, and a journal of results.

The journal is a file, so that groups of cases may run in processes of their own: a kernel that breaks the device then
breaks one group only.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import torch
from safetensors.torch import save_file

from benchmarks import rows
from benchmarks.counts import Counts
from benchmarks.vit_zoo import OWN_RANK, SHARED_RANK, vit_shapes
from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend

# For each case: long enough for a median, short enough for all of them.
SECONDS = 0.4
ROUNDS = (3, 50)
# Of `torch.cuda._sleep`; that it takes longer on a slower clock does no harm.
CYCLES_PER_SECOND = 2e9
MOST_HIDDEN = 0.1


class Sizes(NamedTuple):
    """The sizes of the cases: models, width and depth of the ViT, stacks of matrices, side of a product, bytes."""

    models: int
    width: int
    depth: int
    stacks: int
    product: int
    copy: int

    @property
    def zoo(self) -> str:
        """Name of the zoo in cases.

        >>> FULL.zoo, SMALL.zoo
        ('vit_b16x20', 'vit_w20_d1x2')
        """
        return self.zoo_of(self.models)

    def zoo_of(self, models: int) -> str:
        """Name in cases of a zoo of the same shape and another number of models."""
        shape = "b16" if (self.width, self.depth) == (768, 12) else f"w{self.width}_d{self.depth}"
        return f"vit_{shape}x{models}"


# Every input of a kernel is larger than the cache of the device, so that no round finds it there.
FULL = Sizes(20, 768, 12, stacks=12, product=8192, copy=2 << 30)
SMALL = Sizes(2, 20, 1, stacks=1, product=64, copy=1 << 16)


class Clock:
    """A clock for functions on a device, whose work may end after they return.

    Args:
        device: with CUDA events on a GPU; elsewhere once, to have a number.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def hide(self, seconds: float) -> None:
        """Keep a GPU busy for some time, so that work queued meanwhile follows without a gap."""
        if self._is_cuda:
            torch.cuda._sleep(int(min(seconds, MOST_HIDDEN) * CYCLES_PER_SECOND))

    def device(self, function: Callable[[], object]) -> tuple[list[float], float]:
        """Return seconds of the device in each round, and seconds that queueing a round takes the host."""
        if not self._is_cuda:
            return self.wall(function, 1), 0.0
        function()
        torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        host = time.perf_counter() - began
        torch.cuda.synchronize()
        rounds = int(min(ROUNDS[1], max(ROUNDS[0], SECONDS / (time.perf_counter() - began))))
        samples = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.hide(1.5 * host)
            start.record()
            function()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) / 1e3)
        return samples, host

    def wall(self, function: Callable[[], object], rounds: int) -> list[float]:
        """Return seconds from the call until all is done, in each round."""
        samples = []
        for _ in range(rounds if self._is_cuda else 1):
            began = time.perf_counter()
            function()
            if self._is_cuda:
                torch.cuda.synchronize()
            samples.append(time.perf_counter() - began)
        return samples


class Journal:
    """The results so far, a line of JSON each: of kind "versions", "rate", "row", "work", "failed" or "skipped"."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, kind: str, **content: Any) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\n")

    def read(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of one kind, the oldest first."""
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        return [line for line in map(json.loads, lines) if line["kind"] == kind]


@dataclass
class Session:
    """One run, or one group of its cases.

    Attributes:
        backend: the kernels, on the device that is measured.
        sizes: the sizes of the cases.
        journal: takes the results.
        results: folder to append rows to; None for nowhere.
        suite: name of the file there.
        provenance: time, device, commit and versions, for every row.
        deadline: time.time() at which no further case is begun.
        only: beginnings of the cases that are wanted; none for all.
        seed: seed of the inputs, which are new in every run.
    """

    backend: DeviceBackend
    sizes: Sizes
    journal: Journal
    results: Path | None
    suite: str
    provenance: dict[str, Any]
    deadline: float
    only: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        self.device = self.backend.device
        self.clock = Clock(self.device)

    def wants(self, name: str) -> bool:
        """Tell whether a case, or any case of a group, is to be measured."""
        return not self.only or any(name.startswith(each) or each.startswith(name) for each in self.only)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print and note what fails, and go on."""
        try:
            yield
        except Exception:
            click.echo(f"FAILED {name}\n{traceback.format_exc()}")
            self.journal.add("failed", case=name)

    def begins(self, case: str) -> bool:
        """Return whether to measure a case; print a line if it is left out for lack of time."""
        if not self.wants(case):
            return False
        if time.time() < self.deadline:
            return True
        click.echo(f"skipped {case}: out of time")
        self.journal.add("skipped", case=case)
        return False

    def measure(
        self,
        case: str,
        work: Counts,
        run: Callable[[], Any],
        check: Callable[[Any], None] | None = None,
        *,
        bytes_rate: str = "copy",
        flops_rate: str = "gemm_float64",
    ) -> None:
        """Check what a function gives, in memory full of NaN; then time it on the device."""
        if self.begins(case):
            with self.step(case):
                began = time.perf_counter()
                if check is not None:
                    with poisoned_memory():
                        found = run()
                    samples, host = [time.perf_counter() - began], 0.0
                    check(found)
                    del found
                if check is None or self.device.type == "cuda":  # in a dry run once is enough
                    samples, host = self.clock.device(run)
                self.add_row(case, samples, work, host, bytes_rate=bytes_rate, flops_rate=flops_rate)

    def add_row(
        self,
        case: str,
        samples: Sequence[float],
        work: Counts,
        host: float = 0.0,
        *,
        bytes_rate: str = "copy",
        flops_rate: str = "gemm_float64",
    ) -> None:
        """Write the row of a case; rates are named as in the journal, and unknown ones are no ceiling."""
        known = {line["name"]: line["rate"] for line in self.journal.read("rate")}
        rates = rows.Rates(known.get(bytes_rate, float("inf")), known.get(flops_rate, float("inf")))
        row = rows.make(case, samples, work.bytes, work.flops, rates, self.provenance)
        self.journal.add("row", row=row, host=host)
        if self.results is not None:
            rows.append(row, self.suite, self.results)
        click.echo(f"{case}: {1e3 * row['seconds']['median']:.3f} ms")

    @contextlib.contextmanager
    def as_device(self) -> Iterator[None]:
        """Let the kernels be those of the device where that is the processor, for a dry run."""
        if self.device.type == "cuda":
            yield
        else:
            with mock.patch.object(dispatch, "choose", return_value=self.backend):
                yield

    @contextlib.contextmanager
    def in_files(
        self, case: str, base: dict[str, torch.Tensor], models: Sequence[dict[str, torch.Tensor]]
    ) -> Iterator[tuple[Path, list[Path]] | None]:
        """Write checkpoints to files, which leaves them in the page cache; None if there is no room for them."""
        with tempfile.TemporaryDirectory(prefix="mergekern-gpu-check-") as name:
            needed = (len(models) + 1) * sum(tensor.nbytes for tensor in base.values())
            free = shutil.disk_usage(name).free
            if needed * 1.1 > free:
                click.echo(f"skipped {case}: {needed / 1e9:.1f} GB needed in {name}, {free / 1e9:.1f} free")
                self.journal.add("skipped", case=case)
                yield None
                return
            paths = [Path(name) / f"model_{index:02d}.safetensors" for index in range(len(models))]
            for path, tensors in zip(paths, models, strict=True):
                save_file(tensors, path)
            save_file(base, Path(name) / "base.safetensors")
            yield Path(name) / "base.safetensors", paths

    def generator(self, stream: int) -> torch.Generator:
        """Return a generator on the device, its own for each stream."""
        return torch.Generator(self.device).manual_seed(self.seed * 1000 + stream)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the tensors of the zoo; where it is small, of its blocks alone, for the rest is not."""
        shapes = vit_shapes(self.sizes.width, self.sizes.depth)
        return shapes if self.sizes is FULL else {name: s for name, s in shapes.items() if "resblocks" in name}

    def checkpoints(
        self, shapes: dict[str, tuple[int, ...]], models: int
    ) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
        """Return a base and models on the device, of the spectra that those of benchmarks/vit_zoo.py have."""
        random = self.generator(0)
        base = {name: 0.02 * self._noise(shape, random) for name, shape in shapes.items()}
        shared = {name: self._low_rank(shape, SHARED_RANK, random) for name, shape in shapes.items()}
        zoo = []
        for model in range(models):
            delta = {
                name: 0.3 * self._noise(shape, random) + 0.8 * shared[name] + self._low_rank(shape, OWN_RANK, random)
                for name, shape in shapes.items()
            }
            zoo.append({name: base[name] + 2e-4 * (1 + model / 20) * delta[name] for name in shapes})
        return base, zoo

    def _noise(self, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
        return torch.randn(shape, device=self.device, generator=random)

    def _low_rank(self, shape: tuple[int, ...], rank: int, random: torch.Generator) -> torch.Tensor | float:
        if len(shape) != 2:
            return 0.0
        left = self._noise((shape[0], rank), random) * torch.logspace(0, -1, rank, device=self.device)
        return left @ self._noise((rank, shape[1]), random) / rank**0.5


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new memory with NaN, and with the largest integers, so that what a kernel leaves unwritten is found."""
    torch.set_deterministic_debug_mode("warn")  # that this also fills memory is what counts here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_deterministic_debug_mode("default")


def expect_small(what: str, error: torch.Tensor | float, tolerance: float) -> None:
    """Raise AssertionError unless an error is small; NaN is not."""
    if not float(error) <= tolerance:
        raise AssertionError(f"{what} is off by {float(error):.2e}; {tolerance:.0e} is allowed")


def named(models: Sequence[Any]) -> dict[str, Any]:
    """Return models by their names in cases."""
    return {f"model_{index:02d}": model for index, model in enumerate(models)}
