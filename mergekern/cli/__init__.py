"""The command line: thin commands over the functions of the package, one module for each group of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mergekern.cli.display import Lines, say, shown
from mergekern.cli.evaluation import measure
from mergekern.cli.merging import merge, merge_all
from mergekern.cli.metrics import info, metrics
from mergekern.cli.prediction import fit, plan, predict, recommend
from mergekern.cli.report import report
from mergekern.cli.signals import stopping_cleanly
from mergekern.cli.sketches import compare, sketch
from mergekern.cli.statistics import add, combine, remove, screen, table, verify
from mergekern.errors import MergekernError

# Where memory ends, libraries do not load, threads do not start, and torch has an error of its own.
_NO_MEMORY = re.compile(
    "failed to map segment|can't start new thread|[Nn]ot enough memory|out of memory|annot allocate"
)
INTERRUPTED = 130  # what shells call the end by Ctrl-C


class Commands(click.Group):
    """Shows as one line, without a traceback, what is no fault of the program: bad input, a full disk, Ctrl-C."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the command line."""
        with _in_words():
            return super().make_context(*arguments, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments of the command line, which a shell gives without NUL characters, and a program may not."""
        if found := next((text for text in args if "\0" in text), None):
            raise click.UsageError(f"{found!r}: no path or name holds a NUL character", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _in_words(), stopping_cleanly():
            return super().invoke(ctx)


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn what is no fault of the program into a message; what remains is a bug, and keeps its traceback."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = shown(error.message)
        raise
    except MergekernError as error:
        raise click.ClickException(shown(str(error))) from error
    except BrokenPipeError:
        say("Error: nobody reads the output any more; it was not written to its end", err=True)
        raise  # click ends with 1, and keeps Python from writing what is left
    except OSError as error:
        raise click.ClickException(shown(str(error) or type(error).__name__)) from error
    except MemoryError as error:
        what = f" ({error})" if str(error) else ""
        raise click.ClickException(
            f"not enough memory{shown(what)}; --max-memory, where there is one, lowers it"
        ) from error
    except RecursionError as error:
        raise click.ClickException("the input is nested too deeply") from error
    except (ImportError, RuntimeError) as error:
        if not _NO_MEMORY.search(str(error)):
            raise
        raise click.ClickException(f"not enough memory ({shown(str(error))})") from error
    except KeyboardInterrupt:
        say("\nstopped", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pairwise mergeability metrics of fine-tuned models, for all pairs at once, and merges of them.",
)
@click.version_option(package_name="mergekern")
@click.option("-v", "--verbose", is_flag=True, help="Log every step.")
def main(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    if not verbose:
        logging.getLogger("mergekern.notes").setLevel(logging.INFO)


for command in (
    metrics, info, merge, merge_all, fit, predict, recommend, plan, screen, report, table, add, remove, combine, verify,
    sketch, compare, measure,
):  # fmt: skip
    main.add_command(command)
