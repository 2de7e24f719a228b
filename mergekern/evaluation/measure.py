"""measure_merges: merges made in memory and measured, and their scores written as they come."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mergekern._internal.files import check_output
from mergekern._internal.locks import locked_file
from mergekern._internal.text import shortened
from mergekern.checkpoints import Zoo, open_zoo
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import EvaluationError
from mergekern.evaluation.evaluator import Evaluator, Tasks, as_evaluator, as_number, tasks_of
from mergekern.evaluation.files import BASE, OWN, Files
from mergekern.evaluation.models import Make, ModelLike, maker_of
from mergekern.evaluation.pace import Measuring, Pace
from mergekern.functional.isolation import undisturbed
from mergekern.kernels import dispatch
from mergekern.merging.in_memory import MERGED_BYTES, as_it_is, base_in_memory, merges_in_memory, route_on
from mergekern.merging.output import OutputPlan, StateDict
from mergekern.merging.request import Request
from mergekern.merging.route import Route

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredMerges:
    """What was measured.

    Attributes:
        scores: a row for each merge, as in the file: method, model_a, model_b, the score (mean of both models' tasks),
            normalized_… (mean of the ratios to the single models), …_a and …_b (on the tasks of either model).
        models: model, own_accuracy and base_accuracy: the score of each model, and of the base, on the model's tasks.
        failures: why something has no score, by its name.
    """

    scores: pd.DataFrame
    models: pd.DataFrame
    failures: dict[str, str]


def measure_merges(
    checkpoints: Any,
    base: Any = None,
    *,
    evaluate: Evaluator | Callable[[Any, str], Any],
    methods: str | Iterable[str] | None = None,
    pairs: str | os.PathLike[str] | Iterable[Sequence[str]] | None = None,
    scores: str | os.PathLike[str] | None = None,
    models: str | os.PathLike[str] | None = None,
    tasks: Tasks = None,
    model: ModelLike = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    score: str | None = None,
    device: str | torch.device = "auto",
    max_memory: int | None = None,
    merged_memory: int = MERGED_BYTES,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Measuring], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
) -> MeasuredMerges:
    """Merge pairs of models in memory, and measure each merge, each model and the base by a function.

    The score of a merge is the mean over its two models of its score on the tasks of each. What is measured is written
    before the next is begun. A run that is stopped goes on where it was, and ends with the same bytes: a row with a
    score is not measured again; empty it to have it measured.

    Args:
        checkpoints, base, on_mismatch, io, rename: as for `merge`; `checkpoints` may also be a `Zoo`.
        evaluate: (model, task) -> number, the larger, the better; a loss is to be negated. A share from 0 to 1 is what
            `model_scores` and the prior need. The model is a module in evaluation mode or a state dict, see `model`;
            the random numbers of torch begin anew for each. Where it raises an error, or returns no finite number, the
            row has no score, and its remark says why; the others go on.
        methods: one name or several of `METHODS`; by default those that `pairs` or the file of scores name.
        pairs: names of the two models of each merge, or a CSV file with the columns model_a, model_b and perhaps
            method: a plan, a file of scores, or what `mergekern recommend` writes; by default the pairs in the file of
            scores, else every pair.
        scores: a CSV file with the columns method, model_a, model_b and scores, as `read_scores` and `mergekern fit`
            read it; its empty scores are filled in, and merges that it lacks are added. None writes no file.
        models: a CSV file of the single models, as `model_scores` reads it; by default models.csv beside `scores`.
        tasks: on which tasks models are evaluated: model -> task or tasks, or tasks for all of them; by default each
            model is evaluated on the task of its own name, or on what the evaluator says.
        model: an `nn.Module` whose state dict has the names and shapes of the base, or a function that returns one; or
            "state_dict". By default a base that is a folder of transformers is built from its configuration, and
            others are given as state dicts.
        options: options of each method, such as `{"ties": {"density": 0.5}}`.
        score: name of the column of scores; by default "accuracy", or the evaluator's own.
        device: where models are merged and run: "cpu", "cuda:1", or "auto".
        max_memory, merged_memory: as for `merge_all`.
        progress: called with a `Measuring` before each model or merge, and at the end.

    Raises:
        EvaluationError: no evaluator, an unknown task, files that cannot be read, a model that cannot be built; or the
            evaluator fails on the base and on every model.
        OptionError, CheckpointError, MismatchError, NonFiniteError: as for `merge_all`.
        OutputError: a file cannot be written.

    >>> zoo = {name: {"w": torch.full((2,), float(value))} for value, name in enumerate("abc")}
    >>> aims = {"a": 0.0, "b": 1.0, "c": 2.0}
    >>> near = lambda state, task: 1 - (state["w"] - aims[task]).abs().mean() / 4
    >>> found = measure_merges(zoo, {"w": torch.zeros(2)}, evaluate=near, methods="weight_average")
    >>> found.scores[["model_a", "model_b", "accuracy"]].values.tolist()
    [['a', 'b', 0.875], ['a', 'c', 0.75], ['b', 'c', 0.875]]
    """
    evaluator = as_evaluator(evaluate)
    zoo = (
        checkpoints
        if isinstance(checkpoints, Zoo)
        else open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, rename=rename)
    )
    of_model = tasks_of(zoo.model_names, tasks, evaluator)
    path = None if scores is None else Path(scores)
    models_path = Path(models) if models is not None else path.with_name("models.csv") if path else None
    for each in filter(None, (path, models_path)):
        check_output(each)
    with locked_file(path, seconds=1) if path else nullcontext():
        files = Files(path, models_path, score or evaluator.score, zoo.model_names)
        files.want(methods, pairs, options or {})
        plan, route, place = (
            OutputPlan.like_base(zoo, None),
            route_on(device, max_memory),
            dispatch.choose(device).device,
        )
        make = maker_of(zoo, plan, model, evaluator.needs_module, place)
        evaluator.prepare(zoo, sorted({task for given in of_model.values() for task in given}))
        run = _Run(zoo, plan, route, Evaluation(evaluator, make, of_model, place), files, merged_memory, progress)
        run.measure_models()
        run.measure_merges()
    return MeasuredMerges(*files.frames(), files.failures)


class Evaluation:
    """Evaluates models on the tasks of models of a zoo, each task once for a model that is evaluated.

    Args:
        evaluator: what is asked.
        make: makes of a state dict what the evaluator takes.
        tasks: the tasks of each model of the zoo.
        place: where models lie.
    """

    def __init__(
        self, evaluator: Evaluator, make: Make, tasks: Mapping[str, Sequence[str]], place: torch.device
    ) -> None:
        self._evaluator, self._make, self._tasks, self._place = evaluator, make, tasks, place

    def scores(self, state: StateDict, models: Sequence[str]) -> list[float | str]:
        """Return a score for the tasks of each model, or why there is none."""
        made = self._make(state)
        needed = dict.fromkeys(task for name in models for task in self._tasks[name])
        found = {task: self._on(made, task) for task in needed}
        return [_mean([found[task] for task in self._tasks[name]]) for name in models]

    def _on(self, made: Any, task: str) -> float | str:
        try:
            with undisturbed([], self._place):
                return as_number(self._evaluator(made, task))
        except Exception as error:
            logger.debug("evaluating on %s failed", task, exc_info=True)
            kind = "" if isinstance(error, EvaluationError) else f"{type(error).__name__}: "
            return shortened(" ".join(f"on {task}: {kind}{error}".split()))


def _mean(scores: Sequence[float | str]) -> float | str:
    """Return the mean, or the first reason why there is none."""
    numbers = [score for score in scores if not isinstance(score, str)]
    return sum(numbers) / len(numbers) if len(numbers) == len(scores) else next(s for s in scores if isinstance(s, str))


class _Run:
    """One run of `measure_merges`."""

    def __init__(
        self, zoo: Zoo, plan: OutputPlan, route: Route, evaluation: Evaluation, files: Files, merged_memory: int,
        progress: Callable[[Measuring], None] | None,
    ) -> None:  # fmt: skip
        self._zoo, self._plan, self._route, self._evaluation, self._files = zoo, plan, route, evaluation, files
        self._merged_memory, self._progress = merged_memory, progress
        self._base_lacks = files.models_without(BASE)
        self._lack = files.models_without(OWN)
        self._merges = files.empty()
        self._pace = Pace(
            len(self._lack) + len(self._merges), len(self._lack) + len(self._merges) + bool(self._base_lacks)
        )

    def measure_models(self) -> None:
        """Measure the base and every model on the tasks of the models.

        Raises:
            EvaluationError: the evaluator fails on all of them.
        """
        reasons: list[str] = []
        if self._base_lacks:
            found = self._evaluate("the base", base_in_memory(self._zoo, self._plan), self._base_lacks)
            reasons += self._files.set_models(BASE, dict(zip(self._base_lacks, found, strict=True)))
        wanted = [as_it_is(self._zoo.model_names.index(name)) for name in self._lack]
        for name, (_, state) in zip(self._lack, self._made(wanted), strict=True):
            found = self._evaluate(name, state, [name])
            reasons += self._files.set_models(OWN, {name: found[0]})
        if reasons and not self._files.has_scores():
            raise EvaluationError(f"the evaluator fails on the base and on every model: {reasons[-1]}")

    def measure_merges(self) -> None:
        """Measure the merges without a score, in the order of the file."""
        requests = [self._files.request(row, self._zoo) for row in self._merges]
        self._files.scores.save()
        for row, (request, state) in zip(self._merges, self._made(requests), strict=True):
            names = (row["model_a"], row["model_b"])
            self._files.set_merge(row, self._evaluate(f"{request.method.name} of {'+'.join(names)}", state, names))
        self._report("")

    def _evaluate(self, what: str, state: StateDict, models: Sequence[str]) -> list[float | str]:
        self._report(what)
        with self._pace.evaluating():
            return self._evaluation.scores(state, models)

    def _made(self, requests: Sequence[Request]) -> Iterator[tuple[Request, StateDict]]:
        made = merges_in_memory(self._zoo, requests, self._plan, self._route, merged_memory=self._merged_memory)
        in_a_pass = max(1, self._merged_memory // max(self._plan.nbytes, 1))
        for number in range(len(requests)):
            with self._pace.making(min(in_a_pass, len(requests) - number) if number % in_a_pass == 0 else 0):
                found = next(made)
            yield found

    def _report(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._pace.now(what))
