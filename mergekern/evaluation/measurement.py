"""The measurement of single models and merges of one zoo: made, evaluated, and written row by row."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mergekern._internal.text import shortened
from mergekern.checkpoints import Zoo
from mergekern.errors import EvaluationError
from mergekern.evaluation.evaluator import Evaluator, as_number
from mergekern.evaluation.files import BASE, OWN, Files
from mergekern.evaluation.models import ModelLike, makers_of
from mergekern.evaluation.pace import Measuring, Pace
from mergekern.evaluation.rows import Row
from mergekern.functional.isolation import undisturbed
from mergekern.kernels import dispatch
from mergekern.merging.gathered import Gathered, gather
from mergekern.merging.in_memory import (
    MERGED_BYTES,
    as_it_is,
    base_in_memory,
    merges_in_memory,
    route_on,
    select_models,
)
from mergekern.merging.output import StateDict
from mergekern.merging.plans import Plans
from mergekern.merging.request import Request

logger = logging.getLogger(__name__)
# The position of an owner, what was made with its head, and the models on whose tasks that is evaluated.
Result = tuple[int, StateDict, list[str]]


class Evaluation:
    """Evaluates models on the tasks of models of a zoo, each task once for a result that is evaluated.

    Args:
        evaluator: what is asked.
        tasks: the tasks of each model of the zoo.
        place: where models lie.
    """

    def __init__(self, evaluator: Evaluator, tasks: Mapping[str, Sequence[str]], place: torch.device) -> None:
        self._evaluator, self._tasks, self._place = evaluator, tasks, place

    def scores(self, made: Any, models: Iterable[str]) -> dict[str, float | str]:
        """Return a score of what an evaluator takes for the tasks of each model, or why there is none."""
        needed = dict.fromkeys(task for name in models for task in self._tasks[name])
        found = {task: self._on(made, task) for task in needed}
        return {name: _mean([found[task] for task in self._tasks[name]]) for name in models}

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


class Measurement:
    """Measures the base, the models and merges of one zoo, as often as it is asked, and writes what it finds.

    Args:
        zoo: the models.
        files: take the scores, and know which are there.
        evaluator: what is asked.
        tasks: the tasks of each model.
        heads: whose heads results have, as `Plans` takes it.
        model, device, max_memory, merged_memory, calibration, progress: as for `measure_merges`.

    Raises:
        EvaluationError: a task is not known, or a model cannot be built.
        OptionError: the device is not there.
    """

    def __init__(
        self, zoo: Zoo, files: Files, evaluator: Evaluator, tasks: Mapping[str, Sequence[str]], model: ModelLike, *,
        heads: str | None, device: str | torch.device, max_memory: int | None, merged_memory: int = MERGED_BYTES,
        progress: Callable[[Measuring], None] | None, calibration: Any = None,
    ) -> None:  # fmt: skip
        self._calibration, self._place = calibration, device
        self._gathered: dict[str, Gathered | None] = {}
        self._zoo, self._files, self._merged_memory, self._progress = zoo, files, merged_memory, progress
        self._plans, self._route = Plans(zoo, heads, None), route_on(device, max_memory)
        place = dispatch.choose(device).device
        self._make = makers_of(zoo, self._plans, model, evaluator.needs_module, place)
        self._evaluations = {owner: Evaluation(own, tasks, place) for owner, own in self._prepared(evaluator, tasks)}
        self._base_lacks, self._lack = files.models_without(BASE), files.models_without(OWN)
        self._pace = Pace(len(self._lack), len(self._lack) + len(list(self._parts(self._base_lacks))))

    def _prepared(self, evaluator: Evaluator, tasks: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, Evaluator]]:
        """Yield each owner of results, with the evaluator that is prepared for the tasks these are evaluated on."""
        for owner, names in self._parts(self._zoo.model_names):
            seen, own = self._zoo, evaluator
            if self._plans.are_of_each:
                seen, own = select_models(self._zoo, [owner - 1]), copy.copy(evaluator)
            own.prepare(seen, sorted({task for name in names for task in tasks[name]}))
            yield owner, own

    def expect(self, merges: int) -> None:
        """Count merges that will be measured, or by a negative number that will not, for the estimate of the time."""
        self._pace.expect(merges)

    def measure_models(self) -> None:
        """Measure the base and every model that lacks a score, on the tasks of the models.

        Raises:
            EvaluationError: the evaluator fails on all of them.
        """
        reasons: list[str] = []
        for owner, names in self._parts(self._base_lacks):
            head = f" with the head of {names[0]}" if self._plans.are_of_each else ""
            state = base_in_memory(self._zoo, self._plans[owner])
            reasons += self._files.set_models(BASE, self._evaluate(f"the base{head}", [(owner, state, names)]))
        wanted = [as_it_is(self._zoo.model_names.index(name)) for name in self._lack]
        for name, (_, result) in zip(self._lack, self._made(wanted), strict=True):
            reasons += self._files.set_models(OWN, self._evaluate(name, self._results(result, [name])))
        if reasons and not self._files.has_scores():
            raise EvaluationError(f"the evaluator fails on the base and on every model: {reasons[-1]}")

    def measure_merges(self, rows: Sequence[Row]) -> None:
        """Measure merges, given by their rows, in this order."""
        requests = [self._with_samples(self._files.request(row, self._zoo)) for row in rows]
        self._files.scores.save()
        for row, (request, result) in zip(rows, self._made(requests), strict=True):
            names = (row["model_a"], row["model_b"])
            found = self._evaluate(f"{request.method.name} of {'+'.join(names)}", self._results(result, names))
            self._files.set_merge(row, [found[name] for name in names])
        self._report("")

    def _with_samples(self, request: Request) -> Request:
        """Return a request with what its method needs of runs of the models, which are made once for all merges."""
        method = request.method
        if method.needs is None:
            return request
        if method.needs not in self._gathered:
            self._report(f"what {method.name} needs of the models")
            self._gathered[method.needs] = gather([method], self._zoo, self._calibration, self._place)
        return replace(request, gathered=self._gathered[method.needs])

    def _parts(self, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the owner of each result of one merge, with the models on whose tasks it is evaluated, of some."""
        positions = [self._zoo.model_names.index(name) for name in names]
        if self._plans.are_of_each:
            yield from ((1 + position, [name]) for position, name in zip(positions, names, strict=True))
        elif names:
            yield self._plans.owners(positions)[0], list(names)

    def _results(self, result: Any, names: Sequence[str]) -> Iterator[Result]:
        """Yield the results of one merge, as `merges_in_memory` gives them."""
        for owner, of_names in self._parts(names):
            yield owner, result[of_names[0]] if self._plans.are_of_each else result, of_names

    def _evaluate(self, what: str, results: Iterable[Result]) -> dict[str, float | str]:
        self._report(what)
        found: dict[str, float | str] = {}
        with self._pace.evaluating():
            for owner, state, names in results:
                found |= self._evaluations[owner].scores(self._make[owner](state), names)
        return found

    def _made(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Any]]:
        made = merges_in_memory(self._zoo, requests, self._plans, self._route, merged_memory=self._merged_memory)
        in_a_pass = max(1, self._merged_memory // max(self._plans.nbytes, 1))
        for number in range(len(requests)):
            with self._pace.making(min(in_a_pass, len(requests) - number) if number % in_a_pass == 0 else 0):
                found = next(made)
            yield found

    def _report(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._pace.now(what))
