"""What commands show: tables, sizes and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar

from mergekern.progress import Progress


@contextmanager
def progress_display() -> Iterator[Callable[[Progress], None]]:
    """Give a progress callable: a bar on a terminal, else one line a step; both on standard error."""
    if not sys.stderr.isatty():
        yield lambda p: click.echo(_progress_line(p), err=True)
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with ProgressBar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda p: bar.update(
            task, description=p.tensor or p.activity, completed=p.bytes_done, total=p.bytes_total
        )


def _progress_line(p: Progress) -> str:
    if p.activity:
        return f"{p.activity}: {p.seconds:.0f} s"
    rate = p.bytes_done / p.seconds if p.seconds > 0 else 0.0
    left = f", {(p.bytes_total - p.bytes_done) / rate:.0f} s left" if rate and p.tensor else ""
    what = (
        f"tensor {p.tensors_done + 1}/{p.tensors_total} {p.tensor}" if p.tensor else f"{p.tensors_total} tensors done"
    )
    return f"{what}: {readable_bytes(p.bytes_done)} of {readable_bytes(p.bytes_total)}, {readable_bytes(rate)}/s{left}"


def console() -> Console:
    """Return where tables are printed, as wide as they are."""
    # Off a terminal, rich would cut tables at 80 columns.
    return Console(markup=False, width=None if sys.stdout.isatty() else 240)


def readable_bytes(count: float) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> readable_bytes(345_000_000)
    '345 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
