"""Accuracy of single and merged models of a zoo on the held-out data of their tasks."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn

from mergekern._internal.files import write_atomically
from mergekern.merging.merge import merge_all
from mergekern.study.zoos.encoders import build

# What a run that is killed may lose: merges made in one pass over the zoo, and scores not yet written.
MERGED_BYTES = 128 << 20
SAVED_EVERY = 20


class TestSet(NamedTuple):
    """Held-out examples of a task, and the head on the encoder that tells its classes."""

    inputs: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor


class Evaluator:
    """Measures encoders of a zoo, several at a time; every thread has a module of its own.

    Args:
        zoo: a folder as `make_zoo` makes it.
    """

    def __init__(self, zoo: Path) -> None:
        self.config: dict[str, Any] = json.loads((zoo / "model.json").read_text())
        self.tasks: dict[str, TestSet] = {}
        for name in self.config["tasks"]:
            data = load_file(zoo / "calibration" / f"{name}.safetensors")
            keys = ("test.inputs", "test.labels", "head.weight", "head.bias")
            self.tasks[name] = TestSet(*(data[key] for key in keys))
        self._own = threading.local()

    def accuracies(self, state: dict[str, Tensor], tasks: Sequence[str]) -> list[float]:
        """Return the share of held-out examples that an encoder tells right, for each task."""
        if not hasattr(self._own, "encoder"):
            self._own.encoder = build(self.config["encoder"], self.config["architecture"]).eval()
        encoder: nn.Module = self._own.encoder
        encoder.load_state_dict(state)
        found = []
        with torch.inference_mode():
            for name in tasks:
                data = self.tasks[name]
                logits = nn.functional.linear(encoder(data.inputs), data.weight, data.bias)
                found.append((logits.argmax(dim=1) == data.labels).double().mean().item())
        return found

    @staticmethod
    def pool() -> ThreadPoolExecutor:
        """Return threads to measure in, one model each: the number of cores must not change the results."""
        return ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))


def score_alone(zoo: Path, path: Path) -> pd.DataFrame:
    """Return, and write as CSV, the accuracy on each task of its own model, of the base, and of always one answer."""
    evaluator = Evaluator(zoo)
    base = load_file(zoo / "base.safetensors")

    def measure(name: str) -> list[float]:
        model = load_file(zoo / f"{name}.safetensors")
        return [evaluator.accuracies(state, [name])[0] for state in (model, base)]

    names = list(evaluator.tasks)
    with evaluator.pool() as pool:
        rows = list(pool.map(measure, names))
    frame = pd.DataFrame(rows, pd.Index(names, name="model"), columns=["accuracy", "base_accuracy"])
    frame["chance"] = [evaluator.config["tasks"][name]["chance"] for name in names]
    write_atomically(path, frame.to_csv().encode())
    return frame


def score_merges(
    zoo: Path,
    groups: Sequence[tuple[str, ...]],
    methods: Sequence[str],
    alone: pd.Series,
    path: Path,
    bar: Progress,
) -> pd.DataFrame:
    """Merge every group by every method and measure each merge on the held-out data of all its tasks.

    Merges go straight from memory to measurement: every tensor is read once for as many as `MERGED_BYTES` hold. What
    `path` has already is not measured again.

    Args:
        zoo: its folder.
        groups: names of the models of each merge, in the order of the zoo.
        methods: names of merge methods.
        alone: accuracy of each single model on its task.
        path: a CSV file with the columns method, model_a, model_b (or models, joined by "+", where not all groups are
            pairs), accuracy (mean over the tasks) and normalized_accuracy (mean of the ratios to the single models').
        bar: shows how far it is.

    Returns:
        The content of the file, by method and then in the order of the groups.
    """
    scores = _Scores(path, groups, methods)
    missing = [group for group in groups if any(scores.key(method, group) not in scores.found for method in methods)]
    task = bar.add_task("merging", total=len(groups) * len(methods), completed=len(scores.found))
    if missing:
        evaluator = Evaluator(zoo)
        waiting: deque[tuple[str, tuple[str, ...], Future[list[float]]]] = deque()

        def record_first() -> None:
            method, group, future = waiting.popleft()
            accuracies = future.result()
            ratios = [accuracy / alone[name] for name, accuracy in zip(group, accuracies, strict=True)]
            scores.add(method, group, sum(accuracies) / len(group), sum(ratios) / len(group))
            bar.advance(task)

        with evaluator.pool() as pool:

            def measure(group: tuple[str, ...], method: str, merged: dict[str, Tensor]) -> None:
                bar.update(task, description="measuring merges")
                if scores.key(method, group) in scores.found:
                    return
                waiting.append((method, group, pool.submit(evaluator.accuracies, merged, group)))
                while len(waiting) > 16:
                    record_first()

            merge_all(zoo, methods=methods, groups=missing, callback=measure, merged_memory=MERGED_BYTES)
            while waiting:
                record_first()
    scores.save()
    bar.remove_task(task)
    return scores.frame()


class _Scores:
    """A table of scores, kept in a file as it grows."""

    def __init__(self, path: Path, groups: Sequence[tuple[str, ...]], methods: Sequence[str]) -> None:
        self.path = path
        pairs = all(len(group) == 2 for group in groups)
        self.columns = ["method", *(["model_a", "model_b"] if pairs else ["models"])]
        self.order = [self.key(method, group) for method in methods for group in groups]
        self.found: dict[tuple[str, ...], tuple[float, float]] = {}
        if path.exists():
            # Digits as they were written: a run that continues must end with the same bytes.
            # As text: Python's float() reads back what was written, to the last bit.
            kept = pd.read_csv(path, dtype=str, keep_default_na=False)
            wanted = set(self.order)
            for *names, accuracy, normalized in kept.itertuples(index=False, name=None):
                if (key := tuple(names)) in wanted:
                    self.found[key] = (float(accuracy), float(normalized))

    def key(self, method: str, group: tuple[str, ...]) -> tuple[str, ...]:
        return (method, *group) if len(self.columns) == 3 else (method, "+".join(group))

    def add(self, method: str, group: tuple[str, ...], accuracy: float, normalized: float) -> None:
        self.found[self.key(method, group)] = (accuracy, normalized)
        if len(self.found) % SAVED_EVERY == 0:
            self.save()

    def frame(self) -> pd.DataFrame:
        rows = [(*key, *self.found[key]) for key in self.order if key in self.found]
        return pd.DataFrame(rows, columns=[*self.columns, "accuracy", "normalized_accuracy"])

    def save(self) -> None:
        write_atomically(self.path, self.frame().to_csv(index=False).encode())
