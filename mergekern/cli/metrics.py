"""`mergekern metrics` and `mergekern info`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mergekern
from mergekern._internal.files import check_output
from mergekern._internal.text import readable_bytes
from mergekern.cli.display import NameTable, progress_display, say, show
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import (
    ByteSize,
    Function,
    ModelPath,
    Shard,
    io_option,
    parse_methods,
    rename_option,
    with_options,
)
from mergekern.errors import OutputError
from mergekern.metrics import ADDITIONAL, CATALOGUE, MERGE_PROBES, MODEL_SCORES, RANKED_BY, Metric, metric_of
from mergekern.tables.cells import to_csv
from mergekern.tables.files import check_suffix
from mergekern.tables.metric_table import MetricTable
from mergekern.tables.notes import few_lines, notes_of_checkpoints

if TYPE_CHECKING:
    import torch

    from mergekern.checkpoints import Checkpoint
    from mergekern.checkpoints.sources import IO
    from mergekern.checkpoints.zoo import OnMismatch
    from mergekern.functional.calibration import BatchWeighting, Calibration
    from mergekern.measurement.options import Svd
    from mergekern.metrics.subspace import Frozen, SmallTensors

# What the zoo is, and how it is read.
zoo_options = with_options(
    click.argument("zoo", type=ModelPath(), nargs=-1),
    click.option(
        "--base", type=click.Path(path_type=Path), help="The checkpoint all models were fine-tuned from "
        "[default: base.* or base/ in ZOO].",
    ),
    click.option(
        "--metrics", default="all", show_default=True, help="Comma-separated names of metrics or categories."
    ),
    click.option("--top-k", default=10, show_default=True, help="Dimension of the singular subspaces."),
    click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G]."),
    click.option("--svd", type=click.Choice(["exact", "randomized"]), default="exact", show_default=True,
                 help="How matrices are factorised; randomized is faster on large ones, and estimates its errors."),
    click.option("--svd-tolerance", default=1e-3, show_default=True, help="Estimated error of a metric at which a "
                 "randomized factorisation ends, in (0, 1)."),
    io_option,
    rename_option,
)  # fmt: skip


output_option = click.option(
    "--out", type=click.Path(path_type=Path), help="Write the table here: .parquet, .csv or .json."
)


@click.command(
    help="""\
Compute the metrics of all pairs of models in the folder ZOO, or of several models given as PATH or NAME=PATH.

The activation and gradient metrics, and merge probes, run the models: --calibration names a folder with samples and
heads, which `mergekern calibrate` writes for models of transformers; for others --model-fn names the Python function
that builds the model.
"""
)
@zoo_options
@click.option("--list", "list_metrics", is_flag=True, help="List all metrics and exit.")
@output_option
@click.option("--spectrum-k", default=100, show_default=True, help="Number of singular values compared.")
@click.option("--per-layer", is_flag=True, help="Also keep each metric for every tensor.")
@click.option("--device", default="auto", show_default=True, help="cpu, or a GPU such as cuda:1.")
@click.option("--on-mismatch", type=click.Choice(["error", "skip"]), default="error", show_default=True,
              help="What to do about tensors that not all checkpoints share.")  # fmt: skip
@click.option("--frozen", type=click.Choice(["exclude", "include"]), default="exclude", show_default=True,
              help="Whether tensors equal to the base count in averages over layers.")  # fmt: skip
@click.option("--small-tensors", type=click.Choice(["include", "exclude"]), default="include", show_default=True,
              help="Whether matrices with a side of at most k count where they are constants.")  # fmt: skip
@click.option("--statistics", type=click.Path(path_type=Path), help="Keep and reuse statistics in this folder.")
@click.option("--shard", type=Shard(), help="Measure only share i of n, as i/n, into --statistics; see combine.")
@click.option("--calibration", type=click.Path(path_type=Path),
              help="A folder of samples and heads for activation and gradient metrics.")  # fmt: skip
@click.option("--model-fn", type=Function(), help="What builds the model that the checkpoints are of: "
              "package.module:function or file.py:function. Its code is run.")  # fmt: skip
@click.option("--layer", help="The module whose output is the activation [default: what the folder says].")
@click.option("--input-layer", help="The module at whose output the input gradient is taken, for integer inputs.")
@click.option("--batch-weighting", type=click.Choice(["published", "sample"]),
              help="How gradients of batches are averaged [default: what the folder says, or published].")  # fmt: skip
@click.option("--merge-probes", callback=parse_methods, help="Comma-separated merge methods, or all: also merge every "
              "model with the base and measure it on its samples; needs --calibration.")  # fmt: skip
@click.option("--direct-probes", is_flag=True, help="Also merge and measure every pair, by these methods.")
@click.option("--model-scores", is_flag=True, help="Also measure each model, and the base on each model's task: what "
              "fit and predict start from; needs --calibration.")  # fmt: skip
@click.option("--summary", is_flag=True, help="Also show the spread of every metric and its most mergeable pair.")
@click.option("--sort-by", help=f"Rank the pairs by this metric [default: {RANKED_BY}].")
@click.option("--rows", default=20, show_default=True, help="Pairs shown; 0 shows all.")
@click.pass_context
def metrics(
    ctx: click.Context, zoo: tuple[NamedPath, ...], base: Path | None, metrics: str, list_metrics: bool,
    out: Path | None, sort_by: str | None, rows: int, summary: bool, calibration: Path | None,
    model_fn: Callable | None, layer: str | None, input_layer: str | None, batch_weighting: BatchWeighting | None,
    shard: tuple[int, int] | None, merge_probes: list[str], direct_probes: bool, model_scores: bool, top_k: int,
    spectrum_k: int, per_layer: bool, device: str, max_memory: int | None, on_mismatch: OnMismatch, frozen: Frozen,
    small_tensors: SmallTensors, statistics: Path | None, io: IO, rename: Mapping[str, str] | None, svd: Svd,
    svd_tolerance: float,
) -> None:  # fmt: skip
    if list_metrics:
        show_catalogue()
        return
    if not zoo:
        raise click.UsageError("missing argument ZOO", ctx)
    models = models_of(zoo, base)
    names = [name.strip() for name in metrics.split(",")]
    measuring = mergekern.MeasureOptions(
        names, top_k, spectrum_k, device, max_memory, on_mismatch, io, rename, svd, svd_tolerance
    )
    if shard is not None:
        unused: dict[str, Any] = {"--calibration": calibration, "--model-fn": model_fn, "--out": out}
        unused |= {"--per-layer": per_layer, "--merge-probes": merge_probes, "--model-scores": model_scores}
        if given := [name for name, value in unused.items() if value]:
            raise click.UsageError(f"{given[0]} is of use once the shards are combined", ctx)
        if statistics is None:
            raise click.UsageError("--shard needs --statistics, the folder that the shards are combined in", ctx)
        measure_one_shard(models, base, shard, statistics, measuring)
        return
    how_run = {"layer": layer, "input_layer": input_layer, "batch_weighting": batch_weighting}
    _check_runs(ctx, calibration, model_fn, how_run, merge_probes, direct_probes, model_scores)
    sort_by = _ranking(
        ctx, sort_by, _columns(measuring, calibration is not None, merge_probes, direct_probes, model_scores)
    )
    _check_output(ctx, out)
    calibrated: Calibration | None = None
    if calibration is not None:
        calibrated = mergekern.Calibration.from_folder(
            calibration, model_fn, layer, input_layer=input_layer, batch_weighting=batch_weighting
        )
    with progress_display() as progress:
        table = mergekern.compute_all(
            models, base, metrics=names, calibration=calibrated, top_k=top_k, spectrum_k=spectrum_k,
            per_layer=per_layer, device=device, max_memory=max_memory, on_mismatch=on_mismatch, frozen=frozen,
            small_tensors=small_tensors, statistics=statistics, progress=progress, io=io, rename=rename, svd=svd,
            svd_tolerance=svd_tolerance,
        )  # fmt: skip
        if (merge_probes or model_scores) and calibrated is not None:
            probed = mergekern.merge_probes(
                models, base, calibration=calibrated, methods=merge_probes, direct=direct_probes,
                model_scores=model_scores, device=device, max_memory=max_memory, on_mismatch=on_mismatch,
                statistics=statistics and statistics / "merge_probes", progress=progress, io=io, rename=rename,
            )  # fmt: skip
            table = table.join(probed)
    if out is not None:
        save_or_keep(table, out)
    if summary:
        show_summary(table)
    show_table(table, sort_by, rows)
    if out is not None:
        say(f"wrote {out}")


def _check_runs(
    ctx: click.Context, calibration: Path | None, model_fn: Callable | None, how_run: Mapping[str, str | None],
    merge_probes: list[str], direct_probes: bool, model_scores: bool,
) -> None:  # fmt: skip
    """Raise UsageError where options about running models do not go together."""
    if calibration is None and model_fn is not None:
        raise click.UsageError("--calibration and --model-fn are given together", ctx)
    if calibration is None and (given := [name for name, value in how_run.items() if value is not None]):
        raise click.UsageError(f"--{given[0].replace('_', '-')} is of use with --calibration only", ctx)
    if merge_probes and calibration is None:
        raise click.UsageError("--merge-probes runs the models; give --calibration and --model-fn, if need be", ctx)
    if model_scores and calibration is None:
        raise click.UsageError("--model-scores runs the models; give --calibration and --model-fn, if need be", ctx)
    if direct_probes and not merge_probes:
        raise click.UsageError("--direct-probes is of use with --merge-probes only", ctx)


def _columns(
    measuring: mergekern.MeasureOptions, runs_models: bool, merge_probes: list[str], direct_probes: bool,
    model_scores: bool,
) -> list[str]:  # fmt: skip
    """Return the columns that the table will have."""
    leaves_out = measuring.asks_for_all and not runs_models
    chosen = [metric.name for metric in measuring.chosen if not (leaves_out and metric.runs_models)]
    probes = [name for name in MERGE_PROBES if direct_probes or name.startswith("solo")]
    known = list(MODEL_SCORES) if model_scores else []
    return chosen + known + [f"{name}[{method}]" for name in probes for method in merge_probes]


def _ranking(ctx: click.Context, sort_by: str | None, columns: list[str]) -> str:
    """Return the column that pairs are ranked by."""
    if sort_by is None:
        return RANKED_BY if RANKED_BY in columns else columns[0]
    if sort_by not in columns:
        raise click.BadParameter(f"{sort_by!r} is not among the metrics computed", ctx, param_hint="--sort-by")
    return sort_by


def _check_output(ctx: click.Context, out: Path | None) -> None:
    """Raise an error, before anything is computed, where the table cannot be written."""
    if out is not None:
        check_suffix(out)
        if not out.resolve().parent.is_dir():
            raise click.BadParameter(f"the folder of {out} does not exist", ctx, param_hint="--out")
        check_output(out)


def save_or_keep(table: MetricTable, out: Path) -> None:
    """Write a table; where that fails, keep it in the folder for temporary files, or else print all of it.

    Raises:
        OutputError: the table was not written; it says where it is instead.
    """
    try:
        table.save(out)
    except OutputError as error:
        try:
            kept = Path(tempfile.mkdtemp(prefix="mergekern-")) / f"table{out.suffix}"
            table.save(kept)
        except (OSError, OutputError):
            say(to_csv(table.to_pandas()).decode())
            raise OutputError(f"{error}; the table is printed as CSV above") from error
        raise OutputError(f"{error}; the table is kept in {kept}") from error


def measure_one_shard(
    models: Any, base: Path | None, shard: tuple[int, int], statistics: Path, measuring: mergekern.MeasureOptions
) -> None:
    """Measure a share of the work, and say where it is."""
    say_what_is_left_out(models, base)
    with progress_display() as progress:
        folder = mergekern.measure_shard(
            models, base, shard=shard, statistics=statistics, progress=progress, options=measuring
        )
    say(f"wrote {folder}; when all {shard[1]} are there: mergekern combine {statistics}")


@click.command(
    help="""\
Show what is in the folder ZOO, what a run will read and need, and what does not match.

In place of ZOO several models may be given, as PATH or NAME=PATH.
"""
)
@zoo_options
def info(
    zoo: tuple[NamedPath, ...], base: Path | None, metrics: str, top_k: int, max_memory: int | None, io: IO,
    rename: Mapping[str, str] | None, svd: Svd, svd_tolerance: float,
) -> None:  # fmt: skip
    from mergekern.checkpoints import open_zoo

    if not zoo:
        raise click.UsageError("missing argument ZOO")
    opened = open_zoo(models_of(zoo, base), base, on_mismatch="skip", io=io, needs_base=False, rename=rename)
    names = [name.strip() for name in metrics.split(",")]
    options = mergekern.MeasureOptions(
        names, top_k=top_k, max_memory=max_memory, io=io, svd=svd, svd_tolerance=svd_tolerance
    )
    cost = mergekern.estimate_cost(opened, options)
    models = NameTable("checkpoint", "parameters", "dtypes", "tensors", "buffers", "source")
    for checkpoint in opened.checkpoints:
        dtypes = sorted(_dtype_name(dtype, checkpoint) for dtype in checkpoint.dtypes)
        models.add_texts(
            checkpoint.name, f"{sum(t.count for t in checkpoint.tensors.values()):,}", ", ".join(dtypes),
            str(len(checkpoint.tensors)), str(len(checkpoint.buffers)), checkpoint.source,
        )  # fmt: skip
    show(models)
    matrices = sum(tensor.is_matrix for tensor in opened.tensors)
    pairs = len(opened.models) * (len(opened.models) - 1) // 2
    say(f"\n{len(opened.models)} models, {pairs} pairs; {len(opened.tensors)} shared tensors, {matrices} matrices")
    read, peak = readable_bytes(cost.bytes_read), readable_bytes(cost.peak_memory)
    say(f"to read: {read}; peak memory beside mapped files: about {peak}")
    for line in (*few_lines(opened.left_out, 100), *notes_of_checkpoints(opened.notes, opened.model_names)):
        say(f"note: {line}")
    if opened.skipped:
        say(f"\n{len(opened.skipped)} tensors do not match (--on-mismatch skip leaves them out):")
        for line in opened.skipped:
            say(f"  {line}")


def show_catalogue() -> None:
    """Print every metric with its formula, range, and the direction that is more mergeable."""
    table = NameTable("metric", "category", "formula", "range", "more mergeable")
    for metric in (*CATALOGUE.values(), *ADDITIONAL.values(), *MODEL_SCORES.values(), *MERGE_PROBES.values()):
        table.add_texts(metric.name, metric.category, metric.formula, _range(metric), metric.more_mergeable)
    show(table)


def show_summary(table: MetricTable) -> None:
    """Print for every metric its lowest, median and highest value, and the pair that it finds most mergeable."""
    from mergekern.report.contents import summarise

    shown = NameTable("metric", "lowest", "median", "highest", "most mergeable")
    for name, row in summarise(table.to_pandas()).to_dict("index").items():
        best = "no pair has a value" if row["best_a"] is None else f"{row['best_a']}, {row['best_b']}"
        shown.add_texts(str(name), *(f"{row[what]:.4g}" for what in ("lowest", "median", "highest")), best)
    show(shown)
    say("")


def show_table(table: MetricTable, sort_by: str, rows: int) -> None:
    """Print the pairs ranked by a metric, with a few others beside it, and the notes."""
    ranked = table.ranked(sort_by)
    beside = [
        RANKED_BY,
        "task_vector_cosine_similarity",
        "effective_rank",
        "subspace_overlap",
        "encoder_gradient_l2_distance",
        "input_gradient_l2_distance",
        "right_subspace_overlap_top_k",
        "right_subspace_overlap_bottom_k",
    ]
    columns = list(dict.fromkeys([sort_by, *(name for name in beside if name in table.metrics)]))[:6]
    shown = NameTable("#", "model_a", "model_b", *(name.replace("_", " ") for name in columns))
    for rank, (pair, values) in enumerate(ranked[columns].iterrows(), 1):
        if rows and rank > rows:
            break
        assert isinstance(pair, tuple)
        shown.add_texts(str(rank), *map(str, pair), *(f"{value:.4g}" for value in values))
    show(shown)
    if rows and len(ranked) > rows:
        say(f"... {len(ranked) - rows} more pairs (--rows 0 shows all)")
    for note in table.notes:
        say(f"note: {note if len(note) < 400 else note[:400] + ' …'}")
    if errors := [f"{name} {error:.1g}" for name, error in table.largest_errors.items()]:
        say(f"estimated errors, largest of all pairs: {', '.join(errors)}")
    say(f"{table!r}, ranked by {sort_by} ({metric_of(sort_by).more_mergeable} is more mergeable)")


def _dtype_name(dtype: torch.dtype, checkpoint: Checkpoint) -> str:
    name = str(dtype).removeprefix("torch.")
    is_scaled = any(tensor.scale for tensor in checkpoint.tensors.values() if tensor.dtype == dtype)
    return f"{name} with scales" if is_scaled else name


def _range(metric: Metric) -> str:
    low, high = (
        f"{v:g}" if math.isfinite(v) else f"{'−' if v < 0 else ''}∞" for v in metric.range
    )  # fmt: skip
    return f"[{low}, {high}]"
