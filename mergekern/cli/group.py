"""The group of all commands: how it lists them, and how it turns what is no fault of the program into a message."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from mergekern.cli.display import say, shown
from mergekern.cli.signals import stopping_cleanly
from mergekern.errors import MergekernError

# What somebody wants to do -> the commands for it, in the order in which they are used.
SECTIONS: Mapping[str, Sequence[str]] = {
    "Look at models, and measure how well pairs of them will merge": ("info", "calibrate", "metrics", "report"),
    "Merge": ("merge", "merge-all", "merge-adapters"),
    "Measure merges, learn from them, and decide": (
        "best",
        "measure",
        "plan-measurements",
        "fit",
        "predict",
        "recommend",
    ),
    "See on models made here what the metrics tell": ("study",),
    "Large zoos": ("screen", "add", "remove", "table", "combine", "verify", "sketch", "compare"),
}
EPILOG = """\
\b
From a folder of fine-tuned models to a merged one:
  mergekern metrics zoo --out table.parquet --summary
  mergekern report table.parquet --out page.html
  mergekern merge zoo --method ties --out merged
Or all in one, by a number of yours:
  mergekern best zoo --evaluate my_eval.py:accuracy --out found

Exit codes: 0 done, 1 an error that is named, 2 a command line that is wrong, 130 stopped by Ctrl-C.
"""
# Where memory ends, libraries do not load, threads do not start, and torch has an error of its own.
_NO_MEMORY = re.compile(
    "failed to map segment|can't start new thread|[Nn]ot enough memory|out of memory|annot allocate"
)
INTERRUPTED = 130  # what shells call the end by Ctrl-C


class Commands(click.Group):
    """The commands by what they are for. Bad input, a full disk or Ctrl-C is one line, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the sections."""
        known = [name for names in SECTIONS.values() for name in names if name in self.commands]
        return known + sorted(self.commands.keys() - {*known})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, a section for each thing that somebody wants to do."""
        widest = max(map(len, self.commands), default=0)
        for title, names in SECTIONS.items():
            rows = [(name.ljust(widest), self.commands[name].get_short_help_str(90)) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)

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


class Program(click.Command):
    """A command by itself, such as the programs of python/. It ends as those of the group do."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the program."""
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
