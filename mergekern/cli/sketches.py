"""`mergekern sketch` and `mergekern compare`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import click

import mergekern
from mergekern._internal.files import check_output
from mergekern.cli.display import progress_display, say
from mergekern.cli.metrics import save_or_keep, show_table
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import ByteSize, ModelPath, io_option, rename_option
from mergekern.metrics import RANKED_BY
from mergekern.tables.files import check_suffix

if TYPE_CHECKING:
    from mergekern.checkpoints.sources import IO
    from mergekern.checkpoints.zoo import OnMismatch


@click.command(
    help="""\
Keep sketches of MODELS, by which they can be compared without weights.

MODELS are checkpoints, each as PATH or NAME=PATH, or one folder of them.
"""
)
@click.argument("models", type=ModelPath(), nargs=-1, required=True)
@click.option("--base", type=click.Path(path_type=Path), help="The checkpoint all models were fine-tuned from "
              "[default: base.* or base/ in a folder of models].")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="Write the sketches here, beside those that are there already.")  # fmt: skip
@click.option("--size", type=int, help="Numbers of one sketch [default: those of OUT, or 4096].")
@click.option("--random-state", type=int, help="Seed of the random map [default: that of OUT, or 0].")
@click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G].")
@click.option("--on-mismatch", type=click.Choice(["error", "skip"]), default="error", show_default=True,
              help="What to do about tensors that not all checkpoints share.")  # fmt: skip
@io_option
@rename_option
def sketch(
    models: tuple[NamedPath, ...], base: Path | None, out: Path, size: int | None, random_state: int | None,
    max_memory: int | None, on_mismatch: OnMismatch, io: IO, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    from mergekern.checkpoints.zoo_sources import is_zoo_folder

    check_output(out)
    before = mergekern.Sketches.load(out) if out.exists() else None
    size = size if size is not None else before.values.shape[1] if before else 4096
    random_state = random_state if random_state is not None else before.random_state if before else 0
    checkpoints = models_of(models, base)
    if isinstance(checkpoints, Path) and not is_zoo_folder(checkpoints):
        checkpoints = [checkpoints]
    say_what_is_left_out(checkpoints, base)
    with progress_display() as progress:
        found = mergekern.sketch(
            checkpoints, base, size=size, random_state=random_state, max_memory=max_memory, on_mismatch=on_mismatch,
            progress=progress, io=io, rename=rename,
        )  # fmt: skip
    found = found.add_to(out)
    say(f"wrote {out}: {found!r}")


@click.command(help="Estimate the metrics of whole task vectors, for all pairs of models whose sketches are in FILES.")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--sort-by", default=RANKED_BY, show_default=True, metavar="METRIC", help="Rank the pairs by this metric."
)
@click.option("--rows", default=20, show_default=True, help="Pairs shown; 0 shows all.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table here (.parquet, .csv or .json).")
def compare(files: tuple[Path, ...], sort_by: str, rows: int, out: Path | None) -> None:
    from mergekern.sketches.sketches import ESTIMATED, Sketches

    if out is not None:
        check_suffix(out)
        check_output(out)
    if sort_by not in ESTIMATED:
        raise click.BadParameter(f"{sort_by!r} is not one of {', '.join(ESTIMATED)}", param_hint="--sort-by")
    found = reduce(Sketches.joined, map(Sketches.load, files))
    table = found.table()
    if out is not None:
        save_or_keep(table, out)
    show_table(table, sort_by, rows)
    error = found.standard_errors()[sort_by]
    say(f"standard error of {sort_by}: {error.median():.2g} in the median, {error.max():.2g} at most")
    if out is not None:
        say(f"wrote {out}")
