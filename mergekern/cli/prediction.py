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

KINDS = (
    "dense", "sparse", "linear", "forest", "additive", "additive+metrics", "prior", "prior+additive", "probes",
    "probes+metrics", "auto",
)  # fmt: skip
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


def models_option(command: Callable) -> Callable:
    """Add the list of models."""
    return click.option(
        "--models", type=path_type,
        help="What is known without a merge: a CSV file with the columns model, own_accuracy, base_accuracy.",
    )(command)  # fmt: skip


def load_table(table: Path, models: Path | None) -> MetricTable:
    """Load a table, with model scores joined if there is a list of models."""
    from mergekern.prediction import model_scores

    loaded = MetricTable.load(table)
    return loaded if models is None else loaded.join(model_scores(loaded.models, models))


def no_scores(target: str) -> pd.Series:
    """Return the scores of no pair."""
    import pandas as pd

    return pd.Series([], pd.MultiIndex.from_arrays([[], []], names=["model_a", "model_b"]), float, target)


@click.command(help="Learn to predict scores of merged pairs from the metrics in TABLE, and say how well that works.")
@table_argument
@click.option("--scores", type=path_type,
              help="What was measured: a CSV file with the columns method, model_a, model_b and accuracy.")  # fmt: skip
@models_option
@click.option("--method", required=True, help="Whose rows of the scores to learn from, such as tsv.")
@click.option("--target", default="accuracy", show_default=True, help="Which column of the scores to predict.")
@click.option("--kind", type=click.Choice(KINDS), default="auto", show_default=True,
              help="Which predictor to fit; auto takes the one that suits what is given.")  # fmt: skip
@click.option("--level", default=0.8, show_default=True, help="Share of pairs that conformal intervals are to cover.")
@click.option("--out", type=path_type, required=True, help="Write the predictor here, as .json.")
def fit(
    table: Path, scores: Path | None, models: Path | None, method: str, target: str, kind: str, level: float, out: Path
) -> None:
    from mergekern.prediction import MergePredictor, read_scores

    _check_output(out, ".json")
    if scores is None and models is None:
        raise click.UsageError("nothing to predict from: give --scores or --models, or both")
    measured = no_scores(target) if scores is None else read_scores(scores, method, target)
    fitted = MergePredictor.fit(load_table(table, models), measured, method, kind, level=level)
    show_fit(fitted)
    fitted.save(out)
    say(f"wrote {out}")


@click.command(help="Rank the pairs in TABLE by the score that their merge is predicted to have.")
@table_argument
@click.option(
    "--predictor", type=path_type, help="A file of `mergekern fit`; without, the prior predicts from --models."
)
@models_option
@click.option("--target", default="accuracy", show_default=True, help="What the prior predicts, without --predictor.")
@result_options
def predict(table: Path, predictor: Path | None, models: Path | None, target: str, out: Path | None, rows: int) -> None:
    from mergekern.prediction import MergePredictor

    _check_output(out, ".csv")
    if predictor is None and models is None:
        raise click.UsageError("nothing to predict from: give --predictor or --models")
    metrics = load_table(table, models)
    if predictor is None:
        fitted = MergePredictor.fit(metrics, no_scores(target), "any method")
    else:
        fitted = MergePredictor.load(predictor)
    found = fitted.predict(metrics)
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
@models_option
@click.option("--partner-of", "model", help="Show the pairs of this model only.")
@click.option("--group", type=int, help="Also say which so many models to merge together, judged by their pairs.")
@click.option(
    "--next", "measurements", type=click.IntRange(min=1), help="Also say which so many merges to measure next."
)
@result_options
def recommend(
    table: Path, predictors: tuple[Path, ...], models: Path | None, model: str | None, group: int | None,
    measurements: int | None, out: Path | None, rows: int,
) -> None:  # fmt: skip
    from mergekern.prediction import MergePredictor, best_group, best_partners, next_measurements
    from mergekern.prediction import recommend as recommend_methods

    _check_output(out, ".csv")
    fitted = [MergePredictor.load(path) for path in predictors]
    every = recommend_methods(fitted, load_table(table, models))
    found = every if model is None else best_partners(every, model)
    shown = found.assign(
        measured=found["measured"].map({True: "yes", False: ""}), clear=found["clear"].map({True: "yes", False: ""})
    )
    show_pairs(shown, rows, out, found)
    for method, count in found["method"].value_counts().items():
        say(f"{method}: best for {count} pairs, clearly for {int(found[found['method'] == method].clear.sum())}")
    if not found["measured"].all():
        say("predicted scores are drawn to their mean, as far as promising ones promised too much on held-out pairs; "
            "`predict` gives them as they are")  # fmt: skip
    show_method_regrets(fitted)
    if group is not None:
        say(f"best {group} models together: {', '.join(best_group(every, group))}")
    if measurements is not None:
        following = next_measurements(every).head(measurements)
        for pair, row in following.iterrows():
            assert isinstance(pair, tuple)
            say(f"measure next: {pair[0]}+{pair[1]} by {row['method']}, {_gain(row['expected_improvement'])}")
        if not following["worth_measuring"].any():
            say("stop measuring: no merge is expected to beat the best measured one by a tenth of a point")


def _gain(expected: float) -> str:
    known = expected == expected
    return (
        f"expected gain {100 * expected:.2f} points" if known else "expected gain not known: no interval, or no merge"
    )


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
        f"after these {count} merges, what two models add to a merge is uncertain by {deviation:.2f} times the scatter "
        "of merges around it; more merges make it less",
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
    shown = NameTable("held out", "pooled r", "r within folds", "mean r of folds", "rmse", "rmse / mean's")
    for regime, figures in fitted.validation.items():
        if "why_not" in figures:
            say(f"{regime}: not validated: {figures['why_not']}")
            continue
        for name, prefix in ((regime, ""), ("  effects alone", "additive_")):
            names = ("pooled_r", "r_within_folds", "val_r_mean", "rmse")
            ratio = figures[f"{prefix}rmse"] / figures["rmse_of_mean"] if figures["rmse_of_mean"] else None
            shown.add_texts(name, *(_number(figures[prefix + figure]) for figure in names), _number(ratio))
    show(shown)
    show_regrets(fitted)
    say(f"{fitted.intervals.level:.0%} conformal intervals, from held-out pairs:")
    for measured, words in enumerate(("neither model", "one model", "both models")):
        width, held_out = fitted.intervals.widths[measured], fitted.intervals.held_out[measured]
        known = "too few to know" if width is None else "ready"
        say(f"  {words} measured elsewhere: {known} ({held_out} held-out predictions)")


def show_regrets(fitted: MergePredictor) -> None:
    """Print what choosing by the predictor costs on held-out pairs, beside other ways to choose."""
    shown = NameTable("regret in points", "of best pair", "of best partner")
    for regime, figures in fitted.validation.items():
        for number, (name, regrets) in enumerate(figures.get("regrets", {}).items()):
            cells = (None if value is None else 100 * value for value in regrets.values())
            shown.add_texts(f"{regime}: {name}" if number == 0 else f"  {name}", *(_number(cell) for cell in cells))
    show(shown)


def show_method_regrets(predictors: list[MergePredictor]) -> None:
    """Print what ways to choose a method cost on held-out pairs, where enough pairs were measured by all methods."""
    from mergekern.prediction.method_choice import method_regrets

    regrets = method_regrets(predictors)
    if regrets:
        shown = NameTable("choice of the method", "regret in points")
        for name, regret in regrets.items():
            shown.add_texts(name, _number(100 * regret))
        show(shown)


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
