"""`mergekern fit`, `predict`, `recommend` and `plan-measurements`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekern._internal.files import check_output, write_output
from mergekern.cli.display import NameTable, say, show
from mergekern.errors import OutputError
from mergekern.tables.cells import to_csv
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    import pandas as pd

    from mergekern.prediction.model import MergePredictor

# mergekern.prediction, whose libraries take seconds to import, is imported where it is used.

KINDS = ("dense", "sparse", "linear", "forest", "additive", "additive+metrics")
path_type = click.Path(path_type=Path)


def table_argument(command: Callable) -> Callable:
    """Add the table of metrics."""
    return click.argument("table", type=path_type)(command)


def result_options(command: Callable) -> Callable:
    """Add the options of commands that show ranked pairs."""
    command = click.option(
        "--rows", type=click.IntRange(min=0), default=20, show_default=True, help="Pairs to show; 0 for all."
    )(command)
    return click.option("--out", type=path_type, help="Also write all pairs here, as .csv.")(command)


@click.command(help="Learn to predict scores of merged pairs from the metrics in TABLE, and say how well that works.")
@table_argument
@click.option("--scores", type=path_type, required=True,
              help="What was measured: a CSV file with the columns method, model_a, model_b and accuracy.")  # fmt: skip
@click.option("--method", required=True, help="Whose rows of the scores to learn from, such as tsv.")
@click.option("--target", default="accuracy", show_default=True, help="Which column of the scores to predict.")
@click.option("--kind", type=click.Choice(KINDS), default="additive+metrics", show_default=True,
              help="Which predictor to fit.")  # fmt: skip
@click.option("--level", default=0.8, show_default=True, help="Share of pairs that conformal intervals are to cover.")
@click.option("--out", type=path_type, required=True, help="Write the predictor here, as .json.")
def fit(table: Path, scores: Path, method: str, target: str, kind: str, level: float, out: Path) -> None:
    from mergekern.prediction import MergePredictor, read_scores

    _check_output(out, ".json")
    measured = read_scores(scores, method, target)
    fitted = MergePredictor.fit(MetricTable.load(table), measured, method, kind, level=level)
    show_fit(fitted)
    fitted.save(out)
    say(f"wrote {out}")


@click.command(help="Rank the pairs in TABLE by the score that their merge is predicted to have.")
@table_argument
@click.option("--predictor", type=path_type, required=True, help="A file of `mergekern fit`.")
@result_options
def predict(table: Path, predictor: Path, out: Path | None, rows: int) -> None:
    from mergekern.prediction import MergePredictor

    _check_output(out, ".csv")
    fitted = MergePredictor.load(predictor)
    found = fitted.predict(MetricTable.load(table))
    shown = found.assign(
        measured=[f"{score:.4f}" if score == score else "" for score in found["measured"]],
        remarks=found["remarks"].where(found["measured_models"] > 0, "neither model measured"),
    )
    columns = ["prediction", "low", "high", "measured", "drivers", "remarks"]
    show_pairs(shown[columns], rows, out, found)
    unknown = found[(found["measured_models"] == 0) & found["prediction"].notna()]
    if len(unknown):
        say(f"{len(unknown)} pairs: {unknown['remarks'].iloc[0].split(';')[0]}")
    say(
        f"{fitted.target} of {fitted.method}, predicted by {fitted.kind} from {len(fitted.measured)} measured pairs; "
        f"conformal intervals are to cover {fitted.intervals.level:.0%}"
    )


@click.command(help="Say for each pair in TABLE by which method to merge it, the most promising pairs first.")
@table_argument
@click.option("--predictor", "predictors", type=path_type, required=True, multiple=True,
              help="A file of `mergekern fit`, one for each merge method.")  # fmt: skip
@result_options
def recommend(table: Path, predictors: tuple[Path, ...], out: Path | None, rows: int) -> None:
    from mergekern.prediction import MergePredictor
    from mergekern.prediction import recommend as recommend_methods

    _check_output(out, ".csv")
    found = recommend_methods([MergePredictor.load(path) for path in predictors], MetricTable.load(table))
    shown = found.assign(
        measured=found["measured"].map({True: "yes", False: ""}), clear=found["clear"].map({True: "yes", False: ""})
    )
    show_pairs(shown, rows, out, found)
    for method, count in found["method"].value_counts().items():
        say(f"{method}: best for {count} pairs, clearly for {int(found[found['method'] == method].clear.sum())}")


@click.command(
    "plan-measurements",
    help="Choose the merges to measure next so that all other pairs of the models in TABLE are predicted best.",
)
@table_argument
@click.option("-k", "count", type=int, required=True, help="How many merges to measure.")
@click.option("--scores", type=path_type, help="What was measured already; needs --method.")
@click.option("--method", "methods", multiple=True, help="Merge methods to measure; may be repeated. With --scores, "
              "pairs scored by the first one count as measured.")  # fmt: skip
@click.option("--target", default="accuracy", show_default=True, help="Which column of the scores counts.")
@click.option("--models", help="Plan merges of these only, comma-separated.")
@click.option("--out", type=path_type, help="Write the plan here, as .csv with the scores to be filled in; to the file "
              "of --scores it is added.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a plan that is there, if no score is filled in.")
def plan(
    table: Path, count: int, scores: Path | None, methods: tuple[str, ...], target: str, models: str | None,
    out: Path | None, overwrite: bool,
) -> None:  # fmt: skip
    import pandas as pd

    from mergekern.prediction import align_scores, plan_measurements, read_scores
    from mergekern.prediction.planning import check_models
    from mergekern.prediction.score_files import check_plan, to_fill_in, with_rows

    _check_output(out, ".csv")
    before = None
    if out is not None and out.exists():
        if scores is not None and out.samefile(scores):
            before = out.read_bytes()
        else:
            check_plan(out, overwrite)
    if scores is not None and not methods:
        raise click.UsageError("--scores needs --method: whose scores count as measured")
    metrics = MetricTable.load(table)
    names = list(metrics.models)
    if models is not None:
        names = check_models([name.strip() for name in models.split(",")], names)
    measured: pd.Index = pd.Index([])
    if scores is not None:
        found = align_scores(read_scores(scores, methods[0], target), metrics.to_pandas().index, metrics.models)
        measured = found.index[found.notna()]
    chosen = plan_measurements(names, count, measured)
    for first, second in chosen.index:
        say(f"{first}+{second}")
    deviation = chosen["mean_sd"].iloc[-1]
    say(
        f"{count} merges; with them, effects leave a standard deviation of {deviation:.2f} times the residual's on the "
        "mean of a pair",
        err=True,
    )
    if out is not None:
        wanted = [(method, *pair) for method in methods or ("",) for pair in chosen.index]
        _write(out, to_fill_in(wanted, target) if before is None else with_rows(before, wanted, target))


def show_fit(fitted: MergePredictor) -> None:
    """Print what a predictor was fitted to, how well it predicts, and how wide its intervals are."""
    say(f"{fitted.kind}: {fitted.target} of {fitted.method} from {len(fitted.measured)} pairs")
    for (first, second), why in fitted.dropped.items():
        say(f"left out: {first} and {second} ({why})")
    shown = NameTable("held out", "Pearson r, mean of folds", "sd", "rmse", "additive r", "additive rmse")
    for regime, figures in fitted.validation.items():
        if "why_not" in figures:
            say(f"{regime}: not validated: {figures['why_not']}")
            continue
        names = ("val_r_mean", "val_r_sd", "rmse", "additive_val_r_mean", "additive_rmse")
        shown.add_texts(regime, *(_number(figures[name]) for name in names))
    show(shown)
    say(f"{fitted.intervals.level:.0%} conformal intervals, from held-out pairs:")
    for measured, words in enumerate(("neither model", "one model", "both models")):
        width, held_out = fitted.intervals.widths[measured], fitted.intervals.held_out[measured]
        known = "too few to know" if width is None else "ready"
        say(f"  {words} measured elsewhere: {known} ({held_out} held-out predictions)")


def show_pairs(shown: pd.DataFrame, rows: int, out: Path | None, everything: pd.DataFrame) -> None:
    """Print ranked pairs, and write all of them if there is a path."""
    printed = NameTable("#", "model_a", "model_b", *map(str, shown.columns))
    for rank, (pair, values) in enumerate(shown.iterrows(), 1):
        if rows and rank > rows:
            break
        assert isinstance(pair, tuple)
        printed.add_texts(str(rank), *map(str, pair), *(_number(value) for value in values))
    show(printed)
    if rows and len(shown) > rows:
        say(f"... {len(shown) - rows} more pairs (--rows 0 shows all)")
    if out is not None:
        _write(out, to_csv(everything))


def _number(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _check_output(out: Path | None, suffix: str) -> None:
    """Raise OutputError, before anything is computed, where a file cannot be written."""
    if out is None:
        return
    if out.suffix != suffix:
        raise OutputError(f"{out}: this is written as {suffix}, not {out.suffix or 'without a suffix'!r}")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: no folder {out.parent}")
    check_output(out)


def _write(out: Path, content: bytes) -> None:
    write_output(out, content)
    say(f"wrote {out}", err=True)
