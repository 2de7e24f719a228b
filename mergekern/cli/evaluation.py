"""`mergekern measure` and `mergekern best`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mergekern
from mergekern.cli.display import ProgressLines, is_quiet, plain_console, progress_line, say, shown
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import (
    ByteSize,
    Function,
    ModelPath,
    calibration_of,
    io_option,
    parse_methods,
    parse_options,
    rename_option,
    with_options,
)
from mergekern.errors import did_you_mean
from mergekern.progress import Progress

if TYPE_CHECKING:
    from mergekern.checkpoints.sources import IO
    from mergekern.checkpoints.zoo import OnMismatch
    from mergekern.evaluation.pace import Measuring

path_type = click.Path(path_type=Path)


READY = ("accuracy", "perplexity")
HARNESS = "lm-eval:"


class Evaluate(Function):
    """A ready evaluator by its name, or a function (model, task) -> number."""

    name = "evaluator"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name of a ready evaluator as it is, else the function."""
        if isinstance(value, str) and (value in READY or value.startswith(HARNESS)):
            return value
        if isinstance(value, str) and ":" not in value:
            hint = did_you_mean(value, READY)
            self.fail(f"{value!r} is not FILE.py:FUNCTION, {', '.join(READY)} or {HARNESS}TASK{hint}", param, ctx)
        return super().convert(value, param, ctx)


def evaluator_of(evaluate: Any, data: Path | None, texts: Path | None, processor: Path | None, size: int | None) -> Any:
    """Return the evaluator that was asked for, with what it is given."""
    from mergekern import evaluation

    name = evaluate.partition(":")[0] if isinstance(evaluate, str) else ""
    takes = {"accuracy": ("--data", data), "perplexity": ("--texts", texts)}
    for ready, (option, given) in takes.items():
        if name != ready and given is not None:
            raise click.UsageError(f"{option} is of use with --evaluate {ready} only")
        if name == ready and given is None:
            raise click.UsageError(
                f"--evaluate {ready} needs {option}: a file for all models, or a folder of TASK.jsonl"
            )
    if not name:
        if processor is not None or size is not None:
            raise click.UsageError("--processor and --batch-size are of use with ready evaluators only")
        return evaluate
    options: dict[str, Any] = {} if size is None else {"batch_size": size}
    if name == "accuracy":
        assert data is not None
        return evaluation.Accuracy(data, processor=processor, **options)
    if name == "perplexity":
        assert texts is not None
        return evaluation.Perplexity(texts, tokenizer=processor, **options)
    return evaluation.Harness(evaluate.removeprefix(HARNESS).split(","), tokenizer=processor, **options)


def parse_tasks(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    """Return the tasks of models from MODEL=TASK, or tasks for all models."""
    named = [text for text in values if "=" in text]
    if not named:
        return list(values) or None
    if len(named) < len(values):
        raise click.BadParameter("give MODEL=TASK for models, or TASK for all of them, not both", ctx, param)
    tasks: dict[str, list[str]] = {}
    for text in named:
        model, _, task = text.partition("=")
        tasks.setdefault(model, []).append(task)
    return tasks


def parse_options_of_methods(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Return options by method, from METHOD.NAME=VALUE."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in parse_options(ctx, param, values).items():
        method, dot, name = key.partition(".")
        if not dot:
            raise click.BadParameter(f"{key!r}: of which method? Such as ties.density=0.2", ctx, param)
        found.setdefault(method, {})[name] = value
    return found


# How models are evaluated, and how they are read.
evaluation_options = with_options(
    click.option("--base", type=path_type, help="The checkpoint all models were fine-tuned from "
                 "[default: base.* or base/ in a folder ZOO]."),
    click.option("--evaluate", type=Evaluate(), required=True, help="FILE.py:FUNCTION or package.module:function, "
                 "called with a model and a task: it returns a number, the larger, the better. Its code is run. Or a "
                 "ready one: accuracy, perplexity (as 1/perplexity), or lm-eval:TASK of lm-evaluation-harness."),
    click.option("--data", type=path_type, help="With accuracy: a file of samples for all models, or a folder with "
                 "one for each task: TASK.jsonl, .csv or .parquet with label and text or image, or TASK.safetensors."),
    click.option("--texts", type=path_type, help="With perplexity: a file of texts for all models, or a folder with "
                 "one for each task: TASK.jsonl, .csv or .parquet with text, or TASK.txt."),
    click.option("--processor", type=path_type, help="With ready evaluators: a folder with the tokenizer or image "
                 "processor [default: the base's folder]."),
    click.option("--batch-size", type=click.IntRange(min=1), help="With ready evaluators: samples run at a time."),
    click.option("--task", "tasks", multiple=True, callback=parse_tasks, metavar="[MODEL=]TASK",
                 help="The task of a model, or of all; may be repeated [default: the name of each model]."),
    click.option("--model-fn", type=Function(), help="What builds the module that the checkpoints are of: "
                 "package.module:function or file.py:function; one that needs an argument gets the name of the model "
                 "whose head is wanted [default: the model of a transformers folder, else the "
                 "state dict]."),
    click.option("--state-dict", is_flag=True, help="Give the function state dicts, also of a transformers folder."),
    click.option("-o", "--option", "options", multiple=True, callback=parse_options_of_methods,
                 metavar="METHOD.NAME=VALUE", help="Option of a method, such as ties.density=0.2; may be repeated."),
    click.option("--device", default="auto", show_default=True, help="cpu, or a GPU such as cuda:1."),
    click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G; on a GPU "
                 "2/5 of its free memory]."),
    click.option("--on-mismatch", type=click.Choice(["error", "skip"]), default="error", show_default=True,
                 help="What to do about tensors that not all checkpoints share; skip takes the base's."),
    click.option("--heads", metavar="each|base|NAME|merged", help="With whose head a merge is evaluated on a task: "
                 "that of the task's model, of the base, or of NAME; merged takes heads for tensors as all others "
                 "[default: each where the heads of the models differ, else merged]."),
    click.option("--head-tensors", multiple=True, metavar="PATTERN", help="Names of the heads' tensors, such as "
                 "classifier.*; may be repeated [default: what is no part of the body]."),
    click.option("--calibration", type=path_type, help="A folder of samples, for regmean and fisher, which run the "
                 "models; mergekern calibrate writes one."),
    io_option,
    rename_option,
)  # fmt: skip


@click.command(
    help="""\
Merge pairs of models in memory, measure them by --evaluate, and write the scores to SCORES, a .csv.

Rows of SCORES without a score are filled in, such as those of a plan; a run that was stopped goes on. Each model and
the base are measured too, into --models.

\b
  mergekern measure scores.csv --zoo zoo --evaluate my_eval.py:accuracy --methods ties,tsv
  mergekern measure scores.csv --zoo zoo --evaluate perplexity --texts texts.jsonl --methods all
  mergekern fit table.parquet --scores scores.csv --models models.csv --method ties --out ties.json
"""
)
@click.argument("scores", type=path_type)
@click.option("--zoo", type=ModelPath(), multiple=True, required=True, help="A folder of models; or several models, "
              "each as PATH or NAME=PATH.")  # fmt: skip
@evaluation_options
@click.option("--methods", callback=parse_methods, help="Comma-separated, or all [default: those that the file or "
              "--pairs names].")  # fmt: skip
@click.option("--pairs", type=path_type, help="A CSV file with the columns model_a, model_b and perhaps method "
              "[default: the pairs in SCORES, else every pair].")  # fmt: skip
@click.option("--models", type=path_type, help="Write the accuracies of single models here [default: models.csv beside "
              "SCORES].")  # fmt: skip
@click.option("--score", help="Name of the column of scores [default: accuracy, or the evaluator's own].")
def measure(
    scores: Path, zoo: tuple[NamedPath, ...], base: Path | None, evaluate: Any, data: Path | None, texts: Path | None,
    processor: Path | None, batch_size: int | None, tasks: Any, model_fn: Callable | None, state_dict: bool,
    options: dict[str, dict[str, Any]], methods: list[str], pairs: Path | None, models: Path | None, score: str | None,
    device: str, max_memory: int | None, on_mismatch: OnMismatch, heads: str | None, head_tensors: tuple[str, ...],
    calibration: Path | None, io: IO, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    if scores.suffix != ".csv":
        raise click.BadParameter(f"{scores}: scores are written as .csv", param_hint="SCORES")
    evaluator = evaluator_of(evaluate, data, texts, processor, batch_size)
    checkpoints = models_of(zoo, base)
    say_what_is_left_out(checkpoints, base)
    with measuring_display() as progress:
        found = mergekern.measure_merges(
            checkpoints, base, evaluate=evaluator, methods=methods or None, pairs=pairs, scores=scores, models=models,
            tasks=tasks, model=model_of(model_fn, state_dict), options=options, score=score, device=device,
            max_memory=max_memory, on_mismatch=on_mismatch, progress=progress, io=io, rename=rename, heads=heads,
            head_tensors=head_tensors, calibration=calibration_of(calibration, model_fn),
        )  # fmt: skip
    say(f"wrote {scores}")
    end_with_failures(found.failures)


@click.command(
    help="""\
Find the best merge of two models in ZOO, measuring --budget of all merges by --evaluate, and write it to OUT.

OUT gets the merge, the scores and report.html, which starts with the answer. A run that was stopped goes on, and one
with a larger budget goes on from a smaller one. In place of ZOO several models may be given, as PATH or NAME=PATH.

\b
  mergekern best zoo --evaluate my_eval.py:accuracy --budget 20 --out found
  mergekern best zoo --evaluate accuracy --data samples --out found
"""
)
@click.argument("zoo", type=ModelPath(), nargs=-1, required=True)
@click.option("--out", type=path_type, required=True, help="A folder.")
@click.option("--budget", type=click.IntRange(min=1), default=20, show_default=True, help="Merges to measure; the base "
              "and each model are measured too.")  # fmt: skip
@evaluation_options
@click.option("--methods", callback=parse_methods, help="Comma-separated, or all [default: weight_average,"
              "task_arithmetic,ties,tsv].")  # fmt: skip
@click.option("--target", help="The score to make as large as possible: accuracy (or the evaluator's own), or "
              "normalized_accuracy, divided by that of the single models [default: accuracy].")  # fmt: skip
@click.option("--metrics", default="all", show_default=True, help="Comma-separated names of metrics or categories, for "
              "the report.")  # fmt: skip
@click.option("--no-page", is_flag=True, help="Write no report.html and predictor.json.")
def best(
    zoo: tuple[NamedPath, ...], out: Path, budget: int, base: Path | None, evaluate: Any, data: Path | None,
    texts: Path | None, processor: Path | None, batch_size: int | None, tasks: Any, model_fn: Callable | None,
    state_dict: bool, options: dict[str, dict[str, Any]], methods: list[str], target: str | None, metrics: str,
    no_page: bool, device: str, max_memory: int | None, on_mismatch: OnMismatch, heads: str | None,
    head_tensors: tuple[str, ...], calibration: Path | None, io: IO, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    evaluator = evaluator_of(evaluate, data, texts, processor, batch_size)
    checkpoints = models_of(zoo, base)
    say_what_is_left_out(checkpoints, base)
    chosen = {"methods": methods} if methods else {}
    with lines_display() as progress:
        found = mergekern.best_merge(
            checkpoints, base, evaluate=evaluator, out=out, budget=budget, options=options, target=target,
            metrics=[name.strip() for name in metrics.split(",")], tasks=tasks, model=model_of(model_fn, state_dict),
            page=not no_page, device=device, max_memory=max_memory, on_mismatch=on_mismatch, progress=progress, io=io,
            rename=rename, heads=heads, head_tensors=head_tensors, calibration=calibration_of(calibration, model_fn),
            **chosen,
        )  # fmt: skip
    for sentence in found.answer:
        say(sentence)
    say(f"wrote {found.path}" + ("" if no_page else f" and {out / 'report.html'}"))
    end_with_failures(found.failures)


def model_of(model_fn: Callable | None, state_dict: bool) -> Any:
    """Return what builds models; "state_dict" for none."""
    if model_fn is not None and state_dict:
        raise click.UsageError("give --model-fn or --state-dict, not both")
    return "state_dict" if state_dict else model_fn


def end_with_failures(failures: Mapping[str, str]) -> None:
    """Say what could not be measured, and end with status 1; return where nothing failed."""
    if not failures:
        return
    for what, why in list(failures.items())[:5]:
        say(f"not measured: {what}: {why}", err=True)
    more = f", of which {len(failures) - 5} are not shown" if len(failures) > 5 else ""
    say(
        f"{len(failures)} could not be measured{more}; their rows say why, and are tried again by the next run",
        err=True,
    )
    raise click.exceptions.Exit(1)


@contextmanager
def measuring_display() -> Iterator[Callable[[Measuring], None]]:
    """Give a progress callable: a bar on a terminal, else lines; both on standard error, and neither where quiet."""
    if is_quiet():
        yield lambda now: None
        return
    if not sys.stderr.isatty():
        lines = ProgressLines()
        yield lambda now: lines.show(_line(now), is_last=not now.what)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as ProgressBar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with ProgressBar(*columns, console=plain_console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda now: bar.update(
            task, description=shown(f"{now.what}{_left(now)}"), completed=now.done, total=now.total
        )


@contextmanager
def lines_display() -> Iterator[Callable[[Progress | Measuring], None]]:
    """Give a progress callable for tensors and for merges: a line that changes on a terminal, else lines."""
    if is_quiet():
        yield lambda now: None
        return

    def line(now: Progress | Measuring) -> str:
        return progress_line(now) if isinstance(now, Progress) else _line(now)

    if not sys.stderr.isatty():
        lines = ProgressLines()
        yield lambda now: lines.show(
            line(now), is_last=not (now.tensor or now.activity if isinstance(now, Progress) else now.what)
        )
        return
    with plain_console(stderr=True).status("") as status:
        yield lambda now: status.update(shown(line(now)))


def _line(now: Measuring) -> str:
    if not now.what:
        return f"measured {now.done}: {now.seconds:.0f} s"
    return f"measuring {now.done + 1}/{now.total} {now.what}: {now.seconds:.0f} s{_left(now)}"


def _left(now: Measuring) -> str:
    return "" if now.seconds_left is None else f", about {now.seconds_left:.0f} s left"
