"""Tasks of lm-evaluation-harness as scores, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergekern._internal.extras import needs
from mergekern.checkpoints import Zoo
from mergekern.errors import EvaluationError
from mergekern.evaluation.evaluator import Evaluator
from mergekern.evaluation.processors import Processor, processor_of


class Harness(Evaluator):
    """Scores a causal language model by a task of lm-evaluation-harness (`pip install "mergekern[lm-eval]"`).

    The score is the first metric of the task of which larger values are better, such as acc of arc_easy.

    Args:
        tasks: names of the harness's tasks, or paths of files (*.yaml) that define one; each model runs all of them.
        metric: name of the metric, such as "acc_norm", in place of the first.
        tokenizer: like those of transformers, or its folder; by default that in the base's folder.
        batch_size: as the harness takes it.
        limit: number of samples of a task; all by default.

    Raises:
        EvaluationError: no task is named.

    >>> Harness(["arc_easy"]).tasks
    ('arc_easy',)
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        metric: str | None = None,
        tokenizer: Processor = None,
        batch_size: int = 8,
        limit: int | None = None,
    ) -> None:
        if not tasks or not all(tasks):
            raise EvaluationError("which tasks of lm-evaluation-harness? Such as lm-eval:arc_easy")
        self.tasks = tuple(tasks)
        self._metric, self._given, self._batch_size, self._limit = metric, tokenizer, batch_size, limit
        self._tokenizer: Any = None

    def prepare(self, zoo: Zoo, tasks: Sequence[str]) -> None:
        """Import the harness, and read the tokenizer; see `Evaluator`."""
        _lm_eval()
        self._tokenizer = processor_of(zoo, self._given, "AutoTokenizer", "tokenizer")
        check_end(self._tokenizer)

    def __call__(self, model: Any, task: str) -> float:
        """Return the metric of a task."""
        lm_eval = _lm_eval()
        from lm_eval.models.huggingface import HFLM

        wrapped = HFLM(pretrained=model, tokenizer=self._tokenizer, batch_size=self._batch_size)
        return self._chosen(lm_eval.simple_evaluate(model=wrapped, tasks=[task], limit=self._limit), task)

    def _chosen(self, found: dict[str, Any], task: str) -> float:
        """Return the metric of a task among the results of the harness, which names them "metric,filter"."""
        if task not in found["results"]:
            task = next(iter(found["results"]))  # of a file, which holds the name
        values = {key.partition(",")[0]: value for key, value in reversed(found["results"][task].items()) if "," in key}
        if self._metric is not None:
            if self._metric not in values:
                raise EvaluationError(f"the task {task!r} has no metric {self._metric!r}; it has {', '.join(values)}")
            return values[self._metric]
        better = found.get("higher_is_better", {}).get(task, {})
        for key in found["results"][task]:
            if better.get(name := key.partition(",")[0]):
                return values[name]
        raise EvaluationError(f"the task {task!r} has no metric of which larger values are better; name one (metric=)")


def check_end(tokenizer: Any) -> None:
    """Raise EvaluationError if a tokenizer has no token that ends a text: the harness begins and ends texts by it."""
    if getattr(tokenizer, "eos_token_id", 0) is None:
        raise EvaluationError(
            "the tokenizer has no token that ends a text (eos_token), which lm-evaluation-harness needs: set "
            "tokenizer.eos_token, save it (save_pretrained), and give its folder (--processor, tokenizer=)"
        )


def _lm_eval() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise EvaluationError(needs("lm-evaluation-harness", "lm-eval", error)) from error
    return lm_eval
