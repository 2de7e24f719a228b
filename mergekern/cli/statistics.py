"""Commands on folders of statistics: `add`, `remove`, `combine`, `verify`, `table` and `screen`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress as ProgressBar

import mergekern
from mergekern._internal.files import check_output
from mergekern.cli.display import plain_console, progress_display, say
from mergekern.cli.metrics import output_option, save_or_keep, show_table, zoo_options
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import ByteSize, ModelPath, io_option, rename_option
from mergekern.cli.prediction import show_pairs
from mergekern.errors import StatisticsError
from mergekern.metrics import RANKED_BY
from mergekern.statistics.manifest import Manifest
from mergekern.tables.files import check_suffix
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    from mergekern.checkpoints.sources import IO
    from mergekern.measurement.options import Svd
    from mergekern.metrics.subspace import Frozen, SmallTensors

path_type = click.Path(path_type=Path)


@click.command(
    help="""\
Add MODELS to the statistics of a zoo: checkpoints, each as PATH or NAME=PATH, or one folder of them.

Only they are factorised; the other models are read for their inner products with them.
"""
)
@click.argument("models", type=ModelPath(), nargs=-1, required=True)
@click.option("--to", type=path_type, required=True, help="The statistics of the models that there are.")
@click.option("--base", type=path_type, help="The base, if it is not where it was.")
@click.option("--device", default="auto", show_default=True, help="cpu, or a GPU such as cuda:1.")
@click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G].")
@io_option
@rename_option
def add(
    models: tuple[NamedPath, ...], to: Path, base: Path | None, device: str, max_memory: int | None, io: IO,
    rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    checkpoints = models_of(models, base)
    say_what_is_left_out(checkpoints, base)
    with progress_display() as progress:
        found = mergekern.add_models(
            checkpoints, to, base=base, device=device, max_memory=max_memory, progress=progress, io=io, rename=rename
        )
    say(f"{to}: {len(found.models)} models")


@click.command(help="Remove MODELS, by name, from the statistics of a zoo; nothing is computed.")
@click.argument("models", nargs=-1, required=True)
@click.option("--from", "statistics", type=path_type, required=True, help="The statistics of a zoo.")
def remove(models: tuple[str, ...], statistics: Path) -> None:
    left = mergekern.remove_models(models, statistics)
    say(f"{statistics}: {len(left)} models")


@click.command(
    help="""\
Put together in STATISTICS what `mergekern metrics --shard` measured.

SHARDS are the folders of the shards; by default those in STATISTICS.
"""
)
@click.argument("statistics", type=path_type)
@click.argument("shards", type=path_type, nargs=-1)
def combine(statistics: Path, shards: tuple[Path, ...]) -> None:
    found = Manifest.read(mergekern.combine(statistics, list(shards) or None))
    say(f"{statistics}: {len(found.models)} models, {len(found.layers)} tensors")


@click.command(help="Check every file of the folder STATISTICS against its checksum; fails if one is damaged.")
@click.argument("statistics", type=path_type)
@click.option("--delete", is_flag=True, help="Delete damaged files, so that the next run computes them again.")
def verify(statistics: Path, delete: bool) -> None:
    damaged = mergekern.verify(statistics)
    for path, what in damaged:
        say(what if str(path) in what else f"{path}: {what}")
        if delete and path.is_file():
            path.unlink()
    if damaged:
        how = "deleted" if delete else "delete them (--delete)"
        raise StatisticsError(
            f"{len(damaged)} damaged: {how}, and run on the same models and folder to compute them again"
        )
    say(f"{statistics}: whole")


@click.command(help="Compute the metrics of all pairs, or those of some models, from STATISTICS, without the weights.")
@click.argument("statistics", type=path_type)
@click.option("--models", help="Names of these only, comma-separated.")
@click.option("--metrics", default="all", show_default=True, help="Comma-separated names of metrics or categories.")
@click.option("--per-layer", is_flag=True, help="Also keep each metric for every tensor.")
@click.option("--frozen", type=click.Choice(["exclude", "include"]), default="exclude", show_default=True,
              help="Whether tensors equal to the base count in averages over layers.")  # fmt: skip
@click.option("--small-tensors", type=click.Choice(["include", "exclude"]), default="include", show_default=True,
              help="Whether matrices with a side of at most k count where they are constants.")  # fmt: skip
@click.option("--sort-by", default=RANKED_BY, show_default=True, help="Rank the pairs by this metric.")
@click.option("--rows", default=20, show_default=True, help="Pairs shown; 0 shows all.")
@output_option
def table(
    statistics: Path, models: str | None, metrics: str, per_layer: bool, frozen: Frozen, small_tensors: SmallTensors,
    sort_by: str, rows: int,
    out: Path | None,
) -> None:  # fmt: skip
    if out is not None:
        check_suffix(out)
        check_output(out)
    names = None if models is None else [name.strip() for name in models.split(",")]
    found = mergekern.ZooStatistics.load(statistics, names)
    wanted = [name.strip() for name in metrics.split(",")]
    made = MetricTable.from_statistics(
        found, "all" if wanted == ["all"] else wanted, per_layer=per_layer, frozen=frozen, small_tensors=small_tensors
    )
    if out is not None:
        save_or_keep(made, out)
    show_table(made, sort_by if sort_by in made.metrics else made.metrics[0], rows)
    if out is not None:
        say(f"wrote {out}")


@click.command(
    help="""\
Rank the pairs of the folder ZOO by the score that their merge is predicted to have.

Metrics, prediction and ranking in one; however many models there are, memory is that of a few. In place of ZOO several
models may be given, as PATH or NAME=PATH. Without ZOO the pairs are those of a finished folder of --statistics.
"""
)
@zoo_options
@click.option("--predictor", "predictor_files", type=path_type, multiple=True,
              help="A file of `mergekern fit`, one for each merge method [default: rank by a metric].")  # fmt: skip
@click.option("--statistics", type=path_type, help="Keep and reuse statistics in this folder.")
@click.option("--out", type=path_type, help="Write all pairs, metrics and predictions here, as .parquet.")
@click.option("--device", default="auto", show_default=True, help="cpu, or a GPU such as cuda:1.")
@click.option("--rows", default=20, show_default=True, help="Pairs shown.")
def screen(
    zoo: tuple[NamedPath, ...], base: Path | None, predictor_files: tuple[Path, ...], statistics: Path | None,
    out: Path | None, metrics: str, top_k: int, device: str, max_memory: int | None, io: IO, rows: int,
    rename: Mapping[str, str] | None, svd: Svd, svd_tolerance: float,
) -> None:  # fmt: skip
    from mergekern.prediction import MergePredictor
    from mergekern.prediction.screening import check_screening
    from mergekern.prediction.screening import screen as screen_pairs

    predictors = [MergePredictor.load(path) for path in predictor_files]
    names: Any = [name.strip() for name in metrics.split(",")]
    names = "all" if names == ["all"] else names
    if not zoo and statistics is None:
        raise click.UsageError("give ZOO, or the --statistics of one")
    measuring = mergekern.MeasureOptions(
        names, top_k, device=device, max_memory=max_memory, io=io, rename=rename, svd=svd, svd_tolerance=svd_tolerance
    )
    if zoo:
        check_screening(predictors, out, [metric.name for metric in measuring.chosen])
    with _folder(statistics) as folder:
        if zoo:
            with progress_display() as progress:
                mergekern.measure_into(folder, models_of(zoo, base), base, measuring, progress=progress)
        with _tiles_display() as tiles_progress:
            found = screen_pairs(folder, predictors, out, metrics=names, progress=tiles_progress)
    show_pairs(found.ranked.head(rows) if rows else found.ranked, 0, None, found.ranked)
    for note in found.notes[:20]:
        say(f"note: {note if len(note) < 400 else note[:400] + ' …'}")
    say(f"{found.models} models, {found.pairs:,} pairs")
    if out is not None:
        say(f"wrote {out}")


@contextmanager
def _folder(statistics: Path | None) -> Iterator[Path]:
    if statistics is not None:
        yield statistics
        return
    with tempfile.TemporaryDirectory(prefix="mergekern-") as folder:
        yield Path(folder) / "statistics"


@contextmanager
def _tiles_display() -> Iterator[Callable[[int, int], None]]:
    with ProgressBar(console=plain_console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("computing pairs", total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)
