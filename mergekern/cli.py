"""The command line: thin commands over the functions of the package."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

import mergekern
from mergekern.checkpoints import open_zoo
from mergekern.checkpoints.float8 import DTYPES as FLOAT8
from mergekern.errors import MergekernError
from mergekern.files import write_atomically
from mergekern.merging import mergekit
from mergekern.metrics import CATALOGUE, Metric, select
from mergekern.progress import Progress
from mergekern.table import MetricTable, check_suffix

SORT_BY = "task_vector_cosine_similarity"
BYTE_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class ByteSize(click.ParamType):
    """A number of bytes, such as 500M or 2G."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        text = str(value).lower().removesuffix("b").removesuffix("i")
        try:
            size = float(text[:-1]) * BYTE_UNITS[text[-1]] if text[-1:] in BYTE_UNITS else float(text)
            return int(size)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a number of bytes, such as 500M or 2G", param, ctx)


class Function(click.ParamType):
    """A Python function without arguments, as package.module:function or path/to/file.py:function."""

    name = "function"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Callable[[], Any]:
        """Import the module, which runs its code, and return the function."""
        if callable(value):
            return value
        module_name, separator, function_name = str(value).rpartition(":")
        if not separator:
            self.fail(f"{value!r} is not package.module:function or path/to/file.py:function", param, ctx)
        try:
            module = _import_file(Path(module_name)) if module_name.endswith(".py") else import_module(module_name)
        except (ImportError, OSError) as error:
            self.fail(f"{module_name} cannot be imported: {error}", param, ctx)
        function = getattr(module, function_name, None)
        if not callable(function):
            self.fail(f"{module_name} has no function {function_name!r}", param, ctx)
        return function


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


class Commands(click.Group):
    """Shows mergekern's errors as messages, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except MergekernError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mergekern")
@click.option("-v", "--verbose", is_flag=True, help="Log every step.")
def main(verbose: bool) -> None:
    """Pairwise mergeability metrics of fine-tuned models, for all pairs at once, and merges of them."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(message)s")


def zoo_options(command: Callable) -> Callable:
    """Add the options that say what the zoo is and how it is read."""
    options = [
        click.argument("zoo", type=click.Path(path_type=Path), required=False),
        click.option(
            "--base", type=click.Path(path_type=Path), help="The checkpoint all models were fine-tuned from "
            "[default: base.* in ZOO].",
        ),
        click.option(
            "--metrics", default="all", show_default=True, help="Comma-separated names of metrics or categories."
        ),
        click.option("--top-k", default=10, show_default=True, help="Dimension of the singular subspaces."),
        click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G]."),
        click.option("--io", type=click.Choice(["mmap", "pread"]), default="mmap", show_default=True,
                     help="How files are read; pread suits network disks."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@zoo_options
@click.option("--list", "list_metrics", is_flag=True, help="List all metrics and exit.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table here: .parquet, .csv or .json.")
@click.option("--spectrum-k", default=100, show_default=True, help="Number of singular values compared.")
@click.option("--per-layer", is_flag=True, help="Also keep each metric for every tensor.")
@click.option("--device", default="auto", show_default=True)
@click.option("--on-mismatch", type=click.Choice(["error", "skip"]), default="error", show_default=True,
              help="What to do about tensors that not all checkpoints share.")  # fmt: skip
@click.option("--frozen", type=click.Choice(["exclude", "include"]), default="exclude", show_default=True,
              help="Whether tensors equal to the base count in averages over layers.")  # fmt: skip
@click.option("--statistics", type=click.Path(path_type=Path), help="Keep and reuse statistics in this folder.")
@click.option("--calibration", type=click.Path(path_type=Path),
              help="A folder of samples and heads for activation and gradient metrics; needs --model.")  # fmt: skip
@click.option("--model", type=Function(), help="What builds the model that the checkpoints are of: "
              "package.module:function or file.py:function. Its code is run.")  # fmt: skip
@click.option("--layer", help="The module whose output is the activation [default: what the folder says].")
@click.option("--input-layer", help="The module at whose output the input gradient is taken, for integer inputs.")
@click.option("--batch-weighting", type=click.Choice(["published", "sample"]),
              help="How gradients of batches are averaged [default: what the folder says, or published].")  # fmt: skip
@click.option("--summary", is_flag=True, help="Also show the spread of every metric and its most mergeable pair.")
@click.option("--sort-by", help=f"Rank the pairs by this metric [default: {SORT_BY}].")
@click.option("--rows", default=20, show_default=True, help="Pairs shown; 0 shows all.")
@click.pass_context
def metrics(
    ctx: click.Context, zoo: Path | None, base: Path | None, metrics: str, list_metrics: bool, out: Path | None,
    sort_by: str | None, rows: int, summary: bool, calibration: Path | None, model: Callable | None,
    layer: str | None, input_layer: str | None, batch_weighting: str | None, **options: Any,
) -> None:  # fmt: skip
    """Compute the metrics of all pairs of models in the folder ZOO.

    The activation and gradient metrics run the models: --calibration names a folder with samples and heads, --model
    the Python function that builds the model.
    """
    if list_metrics:
        show_catalogue()
        return
    if zoo is None:
        raise click.UsageError("missing argument ZOO", ctx)
    names = [name.strip() for name in metrics.split(",")]
    if (calibration is None) != (model is None):
        raise click.UsageError("--calibration and --model are given together", ctx)
    run_options = {"layer": layer, "input_layer": input_layer, "batch_weighting": batch_weighting}
    run_options = {name: value for name, value in run_options.items() if value is not None}
    if run_options and calibration is None:
        raise click.UsageError(f"--{next(iter(run_options)).replace('_', '-')} is of use with --calibration only", ctx)
    every = select(names)
    if calibration is None and "all" in names:
        every = [metric for metric in every if not metric.runs_models]
    chosen = [metric.name for metric in every]
    sort_by = sort_by or (SORT_BY if SORT_BY in chosen else chosen[0])
    if sort_by not in chosen:
        raise click.BadParameter(f"{sort_by!r} is not among the metrics computed", ctx, param_hint="--sort-by")
    if out is not None:
        check_suffix(out)
        if not out.resolve().parent.is_dir():
            raise click.BadParameter(f"the folder of {out} does not exist", ctx, param_hint="--out")
    options["calibration"] = None
    if calibration is not None and model is not None:
        options["calibration"] = mergekern.Calibration.from_folder(calibration, model, **run_options)
    with progress_display() as progress:
        table = mergekern.compute_all(
            zoo, base, metrics="all" if names == ["all"] else names, progress=progress, **options
        )
    if out is not None:
        table.save(out)
    if summary:
        show_summary(table)
    show_table(table, sort_by, rows)
    if out is not None:
        click.echo(f"wrote {out}")


@main.command()
@zoo_options
def info(zoo: Path | None, base: Path | None, metrics: str, top_k: int, max_memory: int | None, io: Any) -> None:
    """Show what is in the folder ZOO, what a run will read and need, and what does not match."""
    if zoo is None:
        raise click.UsageError("missing argument ZOO")
    opened = open_zoo(zoo, base, on_mismatch="skip", io=io)
    names = [name.strip() for name in metrics.split(",")]
    plan = mergekern.plan(opened, names, top_k=top_k, max_memory=max_memory, io=io)
    models = Table("checkpoint", "parameters", "dtypes", "tensors", "buffers", "source", box=None)
    for checkpoint in opened.checkpoints:
        dtypes = sorted({_dtype_name(t) for t in checkpoint.tensors.values()})
        models.add_row(
            checkpoint.name, f"{sum(t.count for t in checkpoint.tensors.values()):,}", ", ".join(dtypes),
            str(len(checkpoint.tensors)), str(len(checkpoint.buffers)), checkpoint.source,
        )  # fmt: skip
    console = _console()
    console.print(models)
    matrices = sum(tensor.is_matrix for tensor in opened.tensors)
    pairs = len(opened.models) * (len(opened.models) - 1) // 2
    click.echo(
        f"\n{len(opened.models)} models, {pairs} pairs; {len(opened.tensors)} shared tensors, {matrices} matrices"
    )
    click.echo(f"to read: {_bytes(plan.bytes_read)}; peak memory beside mapped files: about {_bytes(plan.peak_memory)}")
    if opened.skipped:
        click.echo(f"\n{len(opened.skipped)} tensors do not match (--on-mismatch skip leaves them out):")
        for line in opened.skipped:
            click.echo(f"  {line}")


def parse_options(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Return options of a method from NAME=VALUE, the values as JSON where they are."""
    options: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, such as density=0.2", ctx, param)
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = None if value == "none" else value
    return options


def merge_options(command: Callable) -> Callable:
    """Add the options that all merges have."""
    options = [
        click.option("--base", type=click.Path(path_type=Path), help="The checkpoint all models were fine-tuned from "
                     "[default: base.* in a folder ZOO]."),
        click.option("--out", type=click.Path(path_type=Path), required=True, help="Write here."),
        click.option("--overwrite", is_flag=True, help="Replace what mergekern wrote there before."),
        click.option("--dtype", help="Of the result: float32, bfloat16, float16 or float64 [default: the base's]."),
        click.option("--device", default="auto", show_default=True),
        click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G]."),
        click.option("--on-mismatch", type=click.Choice(["error", "skip"]), default="error", show_default=True,
                     help="What to do about tensors that not all checkpoints share; skip takes the base's."),
        click.option("--io", type=click.Choice(["mmap", "pread"]), default="mmap", show_default=True,
                     help="How files are read; pread suits network disks."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True)
@merge_options
@click.option("--method", required=True, help=f"One of {', '.join(mergekern.METHODS)}.")
@click.option("-o", "--option", "options", multiple=True, callback=parse_options, metavar="NAME=VALUE",
              help="Of the method, such as density=0.2; may be repeated.")  # fmt: skip
@click.option("--weights", help="Comma-separated, in the order of MODELS.")
@click.option("--mergekit-config", is_flag=True, help="Write a mergekit configuration to --out, and merge nothing.")
def merge(
    models: tuple[Path, ...], base: Path | None, out: Path, method: str, options: dict[str, Any], weights: str | None,
    mergekit_config: bool, **how: Any,
) -> None:  # fmt: skip
    """Merge MODELS: checkpoints, or one folder of them, fine-tuned from one base."""
    by_model = _numbers(weights)
    checkpoints: Any = models[0] if len(models) == 1 else list(models)
    if mergekit_config:
        opened = open_zoo(checkpoints, base)
        sources = [str(_mergekit_path(checkpoint.source)) for checkpoint in opened.checkpoints]
        text = mergekit.mergekit_config(
            sources[1:], sources[0], method, weights=by_model, dtype=how["dtype"] or "float32", **options
        )
        if out.exists() and not how["overwrite"]:
            raise click.BadParameter(f"{out} is there already; --overwrite replaces it", param_hint="--out")
        write_atomically(out, text.encode())
    else:
        with progress_display() as progress:
            mergekern.merge(
                checkpoints, base, method, output=out, weights=by_model, progress=progress, **how, **options
            )
    click.echo(f"wrote {out}")


@main.command("merge-all")
@click.argument("zoo", type=click.Path(path_type=Path))
@merge_options
@click.option("--methods", required=True, help=f"Comma-separated, of {', '.join(mergekern.METHODS)}.")
@click.option("--group", "groups", multiple=True, help="Models of one merge, as a+b+c; may be repeated "
              "[default: every pair].")  # fmt: skip
def merge_all(zoo: Path, base: Path | None, out: Path, methods: str, groups: tuple[str, ...], **how: Any) -> None:
    """Merge every pair of the models in the folder ZOO, or given groups, by several methods."""
    names = [name.strip() for name in methods.split(",")]
    chosen = [group.split("+") for group in groups] or None
    with progress_display() as progress:
        paths = mergekern.merge_all(zoo, base, names, groups=chosen, output=out, progress=progress, **how)
    click.echo(f"wrote {len(paths)} merged checkpoints to {out}")


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(value) for value in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,0.5", param_hint="--weights") from None


def _mergekit_path(source: str) -> Path:
    path = Path(source).resolve()
    return path.parent if (path.parent / "config.json").is_file() else path


def show_catalogue() -> None:
    """Print every metric with its formula, range, and the direction that is more mergeable."""
    table = Table("metric", "category", "formula", "range", "more mergeable", box=None)
    for metric in CATALOGUE.values():
        table.add_row(metric.name, metric.category, metric.formula, _range(metric), metric.more_mergeable)
    _console().print(table)


def show_summary(table: MetricTable) -> None:
    """Print for every metric its lowest, median and highest value, and the pair that it finds most mergeable."""
    shown = Table("metric", "lowest", "median", "highest", "most mergeable", box=None)
    for name, values in table.to_pandas().items():
        best = "no pair has a value"
        if values.notna().any():
            pair: Any = values.idxmax() if CATALOGUE[str(name)].more_mergeable == "higher" else values.idxmin()
            best = f"{pair[0]}, {pair[1]}"
        spread = (f"{value:.4g}" for value in (values.min(), values.median(), values.max()))
        shown.add_row(str(name), *spread, best)
    _console().print(shown)
    click.echo()


def show_table(table: MetricTable, sort_by: str, rows: int) -> None:
    """Print the pairs ranked by a metric, with a few others beside it, and the notes."""
    ranked = table.ranked(sort_by)
    beside = [
        SORT_BY,
        "task_vector_l2_distance",
        "effective_rank",
        "subspace_overlap",
        "encoder_gradient_l2_distance",
        "input_gradient_l2_distance",
        "right_subspace_overlap_top_k",
        "right_subspace_overlap_bottom_k",
    ]
    columns = list(dict.fromkeys([sort_by, *(name for name in beside if name in table.metrics)]))[:6]
    shown = Table("#", "model_a", "model_b", *(name.replace("_", " ") for name in columns), box=None)
    for rank, (pair, values) in enumerate(ranked[columns].iterrows(), 1):
        if rows and rank > rows:
            break
        assert isinstance(pair, tuple)
        shown.add_row(str(rank), *map(str, pair), *(f"{value:.4g}" for value in values))
    _console().print(shown)
    if rows and len(ranked) > rows:
        click.echo(f"... {len(ranked) - rows} more pairs (--rows 0 shows all)")
    for note in table.notes:
        click.echo(f"note: {note if len(note) < 400 else note[:400] + ' …'}")
    click.echo(f"{table!r}, ranked by {sort_by} ({CATALOGUE[sort_by].more_mergeable} is more mergeable)")


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
        yield lambda p: bar.update(task, description=p.tensor or p.probe, completed=p.bytes_done, total=p.bytes_total)


def _progress_line(p: Progress) -> str:
    if p.probe:
        return f"{p.probe}: {p.seconds:.0f} s"
    rate = p.bytes_done / p.seconds if p.seconds > 0 else 0.0
    left = f", {(p.bytes_total - p.bytes_done) / rate:.0f} s left" if rate and p.tensor else ""
    what = (
        f"tensor {p.tensors_done + 1}/{p.tensors_total} {p.tensor}" if p.tensor else f"{p.tensors_total} tensors done"
    )
    return f"{what}: {_bytes(p.bytes_done)} of {_bytes(p.bytes_total)}, {_bytes(rate)}/s{left}"


def _console() -> Console:
    # Off a terminal, rich would cut tables at 80 columns.
    return Console(markup=False, width=None if sys.stdout.isatty() else 240)


def _dtype_name(tensor: Any) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return f"{name} with scales" if tensor.dtype in FLOAT8 and tensor.scale else name


def _range(metric: Metric) -> str:
    low, high = (
        f"{v:g}" if math.isfinite(v) else f"{'−' if v < 0 else ''}∞" for v in metric.range
    )  # fmt: skip
    return f"[{low}, {high}]"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
