"""The command line: thin commands over the functions of the package, one module for each group of them."""

from __future__ import annotations

import logging
from typing import Any

import click

from mergekern.cli.merging import merge, merge_all
from mergekern.cli.metrics import info, metrics
from mergekern.cli.prediction import fit, plan, predict, recommend
from mergekern.cli.report import report
from mergekern.cli.signals import stopping_cleanly
from mergekern.cli.sketches import compare, sketch
from mergekern.cli.statistics import add, combine, remove, screen, table, verify
from mergekern.errors import MergekernError


class Commands(click.Group):
    """Shows mergekern's errors as messages, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            with stopping_cleanly():
                return super().invoke(ctx)
        except MergekernError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pairwise mergeability metrics of fine-tuned models, for all pairs at once, and merges of them.",
)
@click.version_option(package_name="mergekern")
@click.option("-v", "--verbose", is_flag=True, help="Log every step.")
def main(verbose: bool) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(message)s")
    if not verbose:
        logging.getLogger("mergekern.notes").setLevel(logging.INFO)


for command in (
    metrics, info, merge, merge_all, fit, predict, recommend, plan, screen, report, table, add, remove, combine, verify,
    sketch, compare,
):  # fmt: skip
    main.add_command(command)
