"""What commands show: tables, sizes and progress."""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from mergekern._internal.text import readable_bytes
from mergekern.progress import Progress

# Characters that a terminal obeys, or that turn or hide the text around them: control characters but for line breaks,
# lone surrogates (bytes of a file's name that are no text), marks of direction, invisible and separating characters.
_OBEYED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
SECONDS = 5.0  # between lines of progress off a terminal
WIDEST = 100_000  # characters of a line off a terminal: tables are not cut


def shown(text: str) -> str:
    r"""Return a text as it may be printed: a name decides nothing but how it reads itself.

    >>> print(shown("\x1b[31mred \u202egnp.exe"))
    \x1b[31mred \u202egnp.exe
    """
    return _OBEYED.sub(_escaped, text)


def _escaped(found: re.Match) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(text: str, err: bool = False) -> None:
    """Print a line, in which names are as `shown` has them; on standard error if `err`."""
    click.echo(shown(text), err=err)


class Lines(logging.Formatter):
    """The format of log lines, in which names are as `shown` has them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return shown(super().format(record))


class NameTable(Table):
    """A table without lines, whose cells are printed as they are: nothing in a name is a command, nothing is cut."""

    def __init__(self, *headers: str) -> None:
        super().__init__(box=None)
        for header in headers:
            self.add_column(_cell(header), overflow="fold")

    def add_texts(self, *cells: str) -> None:
        """Add a row of texts."""
        self.add_row(*map(_cell, cells))


def _cell(text: str) -> str:
    return shown(text).replace("\n", "\\x0a")


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: no markup, no pictures for words between colons, no colours."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=None if stream.isatty() else WIDEST)


def is_quiet() -> bool:
    """Tell whether the command line says that no progress is to be shown."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("quiet"))


class ProgressLines:
    """Prints lines of progress on standard error, off a terminal: the first, the last, and one in five seconds."""

    def __init__(self) -> None:
        self._last = -math.inf

    def show(self, line: str, is_last: bool) -> None:
        """Print a line, unless one was printed just now."""
        now = time.monotonic()
        if is_last or now - self._last >= SECONDS:
            self._last = now
            say(line, err=True)


@contextmanager
def progress_display() -> Iterator[Callable[[Progress], None]]:
    """Give a progress callable: a bar on a terminal, else lines; both on standard error, and neither where quiet."""
    if is_quiet():
        yield lambda p: None
        return
    if not sys.stderr.isatty():
        lines = ProgressLines()
        yield lambda p: lines.show(progress_line(p), is_last=not p.tensor and not p.activity)
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with ProgressBar(*columns, console=plain_console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda p: bar.update(
            task, description=shown(p.tensor or p.activity), completed=p.bytes_done, total=p.bytes_total
        )


def progress_line(p: Progress) -> str:
    """Return how far a run is, in a line."""
    if p.activity:
        return f"{p.activity}: {p.seconds:.0f} s"
    rate = p.bytes_done / p.seconds if p.seconds > 0 else 0.0
    left = f", {(p.bytes_total - p.bytes_done) / rate:.0f} s left" if rate and p.tensor else ""
    what = (
        f"tensor {p.tensors_done + 1}/{p.tensors_total} {p.tensor}" if p.tensor else f"{p.tensors_total} tensors done"
    )
    return f"{what}: {readable_bytes(p.bytes_done)} of {readable_bytes(p.bytes_total)}, {readable_bytes(rate)}/s{left}"


def show(table: NameTable) -> None:
    """Print a table, as wide as it is."""
    plain_console().print(table)
