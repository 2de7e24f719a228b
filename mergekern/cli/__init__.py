"""The command line: thin commands over the functions of the package, one module for each group of them."""

from __future__ import annotations

import logging
import os

import click

from mergekern.cli.adapters import merge_adapters
from mergekern.cli.calibration import calibrate
from mergekern.cli.display import Lines, say
from mergekern.cli.evaluation import best, measure
from mergekern.cli.group import EPILOG, Commands
from mergekern.cli.merging import merge, merge_all
from mergekern.cli.metrics import info, metrics
from mergekern.cli.prediction import fit, plan, predict, recommend
from mergekern.cli.report import report
from mergekern.cli.sketches import compare, sketch
from mergekern.cli.statistics import add, combine, remove, screen, table, verify
from mergekern.cli.study import study
from mergekern.cli.versions import version_lines


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        say("\n".join(version_lines()))
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pairwise mergeability metrics of fine-tuned models, for all pairs at once, and merges of them.",
    epilog=EPILOG,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions, and by what this machine computes.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show only results, warnings and errors: no progress, no notes.")
@click.option("-v", "--verbose", is_flag=True, help="Log every step.")
def main(quiet: bool, verbose: bool) -> None:
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    # Read when torch is loaded. Waiting threads would spin, on cores that others use: 28 metrics of 20 small models
    # took 197 s beside eight busy processes on two cores, and take 23 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    if not verbose:
        logging.getLogger("mergekern.notes").setLevel(logging.WARNING if quiet else logging.INFO)


for command in (
    metrics, info, calibrate, merge, merge_all, merge_adapters, measure, best, fit, predict, recommend, plan, screen,
    report, table, add, remove, combine, verify, sketch, compare, study,
):  # fmt: skip
    main.add_command(command)
