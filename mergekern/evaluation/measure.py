"""measure_merges: merges made in memory and measured, and their scores written as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mergekern._internal.files import check_output
from mergekern._internal.locks import locked_file
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.evaluation.evaluator import Evaluator, Tasks, as_evaluator, tasks_of
from mergekern.evaluation.files import Files
from mergekern.evaluation.heads import open_with_heads
from mergekern.evaluation.measurement import Measurement
from mergekern.evaluation.models import ModelLike
from mergekern.evaluation.pace import Measuring
from mergekern.merging.gathered import check_samples
from mergekern.merging.in_memory import MERGED_BYTES
from mergekern.merging.registry import find_method


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
    heads: str | None = None,
    head_tensors: str | Sequence[str] | None = None,
    calibration: Any = None,
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
        pairs: names of the two models of each merge, perhaps after its method; or a CSV file with the columns model_a,
            model_b and perhaps method: a plan, a file of scores, or what `mergekern recommend` writes. By default the
            pairs in the file of scores, else every pair. Without methods and pairs, all rows of the file are measured
            that have no score, else only these.
        scores: a CSV file with the columns method, model_a, model_b and scores, as `read_scores` and `mergekern fit`
            read it; its empty scores are filled in, and merges that it lacks are added. None writes no file.
        models: a CSV file of the single models, as `model_scores` reads it; by default models.csv beside `scores`.
        tasks: on which tasks models are evaluated: model -> task or tasks, or tasks for all of them; by default each
            model is evaluated on the task of its own name, or on what the evaluator says.
        model: an `nn.Module` whose state dict has the names and shapes of the base, or a function that returns one; or
            "state_dict". A function that needs an argument gets the name of the model whose head the state dict has. By
            default a base that is a folder of transformers is built from its configuration, with a head of a model
            from the configuration of that, and others are given as state dicts.
        options: options of each method, such as `{"ties": {"density": 0.5}}`.
        score: name of the column of scores; by default "accuracy", or the evaluator's own.
        device: where models are merged and run: "cpu", "cuda:1", or "auto".
        max_memory, merged_memory: as for `merge_all`.
        progress: called with a `Measuring` before each model or merge, and at the end.
        heads: with whose head a merge, a model alone and the base are evaluated on a task: "each" for that of the model
            whose task it is; the name of a model, or "base", for that one's on all tasks; "merged" for heads that are
            merged as all other tensors. By default "each" where the heads of the models do not match, or have labels
            that differ, which a note says; elsewhere "merged".
        head_tensors: as for `merge`.
        calibration: samples of the task of each model, a `mergekern.Calibration`, for merges by regmean and fisher.

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
    zoo, heads = open_with_heads(
        checkpoints, base, heads=heads, head_tensors=head_tensors, on_mismatch=on_mismatch, io=io, rename=rename
    )
    of_model = tasks_of(zoo.model_names, tasks, evaluator)
    path = None if scores is None else Path(scores)
    models_path = Path(models) if models is not None else path.with_name("models.csv") if path else None
    for each in filter(None, (path, models_path)):
        check_output(each)
    with locked_file(path, seconds=1) if path else nullcontext():
        files = Files(path, models_path, score or evaluator.score, zoo.model_names)
        rows = files.want(methods, pairs, options or {})
        check_samples([find_method(name)[0] for name in sorted({row["method"] for row in rows})], calibration)
        measurement = Measurement(
            zoo, files, evaluator, of_model, model, heads=heads, device=device, max_memory=max_memory,
            merged_memory=merged_memory, progress=progress, calibration=calibration,
        )  # fmt: skip
        measurement.expect(len(rows))
        measurement.measure_models()
        measurement.measure_merges(rows)
    return MeasuredMerges(*files.frames(), files.failures)
