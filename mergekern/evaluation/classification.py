"""Accuracy of classifiers on given texts, images or tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from mergekern._internal.extras import needs
from mergekern.checkpoints import Zoo
from mergekern.errors import EvaluationError
from mergekern.evaluation.evaluator import Evaluator, check_known
from mergekern.evaluation.examples import TABLES, TENSORS, files_by_task, read_table, read_tensors
from mergekern.evaluation.processors import Processor, processor_of
from mergekern.functional.processors import give_padding

Inputs = dict[str, torch.Tensor]


@dataclass
class Samples:
    """The samples of a task.

    Attributes:
        labels: classes, as numbers or by their names in the configuration of the model.
        inputs: (first, last, length) -> the inputs of these samples, by keyword; "" stands for the only one. Texts are
            cut off at `length` tokens, if it is not None.
        pad: the token that texts are padded with; None for others.
        head: weight (classes, h) and bias (classes,) of a head on what the model returns; empty where it has its own.
    """

    labels: list[Any]
    inputs: Callable[[int, int, int | None], Inputs]
    head: dict[str, torch.Tensor] = field(default_factory=dict)
    pad: int | None = None


class Accuracy(Evaluator):
    """Scores a classifier by the share of samples that it tells right.

    Args:
        data: a folder with a file for each task, or one file for all models. A .jsonl, .csv or .parquet file has the
            columns label and text (and perhaps text_pair), or label and image, the path of a file. A .safetensors file
            has the tensors labels and inputs (or `inputs.KEYWORD`, for each of several), and perhaps head.weight and
            head.bias of a head on the features that the model returns, as `Calibration.save` writes them; of a file
            with test.labels and test.inputs those count, and not the samples that metrics see. A label is
            the number of its class, or its name in the configuration of the model (label2id).
        processor: a tokenizer or image processor like those of transformers, or its folder; by default that in the
            base's folder. Texts that are longer than the model takes are cut off.
        batch_size: samples that are run at a time.

    Raises:
        EvaluationError: data that cannot be read.
    """

    def __init__(self, data: str | os.PathLike[str], *, processor: Processor = None, batch_size: int = 32) -> None:
        self._files, is_shared = files_by_task(data, (*TABLES[:3], TENSORS))
        self.tasks = tuple(self._files) if is_shared else None
        self._where, self._given, self._batch_size = Path(data), processor, batch_size
        self._samples: dict[str, Samples] = {}

    def prepare(self, zoo: Zoo, tasks: Sequence[str]) -> None:
        """Read the samples; see `Evaluator`."""
        check_known(tasks, list(self._files), str(self._where))
        self._samples = {}
        for task in tasks:
            path = self._files[task]
            self._samples[task] = _tensors(path) if path.suffix == TENSORS else self._table(path, zoo)

    def __call__(self, model: nn.Module, task: str) -> float:
        """Return the share of samples that a model tells right."""
        samples = self._samples[task]
        device = next(model.parameters()).device
        labels = _classes(samples.labels, model).to(device)
        config: Any = getattr(model, "config", None)
        length = getattr(config, "max_position_embeddings", None)
        if samples.pad is not None and getattr(config, "pad_token_id", 0) is None:
            config.pad_token_id = samples.pad  # by which decoders find the last token of a text
        right = 0
        with torch.inference_mode():
            for first in range(0, len(labels), self._batch_size):
                last = min(first + self._batch_size, len(labels))
                logits = _logits(model, samples, samples.inputs(first, last, length), device)
                if logits.dim() != 2 or len(logits) != last - first:
                    raise EvaluationError(
                        f"logits are (samples, classes), not of shape {tuple(logits.shape)} for {last - first} samples"
                    )
                if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
                    raise EvaluationError(
                        f"labels from {int(labels.min())} to {int(labels.max())}, and {logits.shape[1]} classes"
                    )
                right += int((logits.argmax(1) == labels[first:last]).sum())
        return right / len(labels)

    def _table(self, path: Path, zoo: Zoo) -> Samples:
        frame = read_table(path, ["label"])
        if "image" in frame:
            processor = processor_of(zoo, self._given, "AutoImageProcessor", "processor")
            paths = [path.parent / str(name) for name in frame["image"]]
            if lost := next((each for each in paths if not each.is_file()), None):
                raise EvaluationError(f"{path}: no image {lost}")
            return Samples(frame["label"].tolist(), lambda first, last, _: _images(processor, paths[first:last]))
        if "text" not in frame:
            raise EvaluationError(f"{path}: examples have a text or an image; it has {', '.join(map(str, frame))}")
        tokenizer = processor_of(zoo, self._given, "AutoTokenizer", "processor")
        pad = None
        if hasattr(tokenizer, "pad_token_id"):
            pad = give_padding(tokenizer, "of --processor" if self._given else "of the base", EvaluationError)
        texts = frame[["text", "text_pair"] if "text_pair" in frame else ["text"]]
        return Samples(frame["label"].tolist(), lambda *part: _tokens(tokenizer, texts, *part), pad=pad)


def _tensors(path: Path) -> Samples:
    tensors = read_tensors(path)
    inputs = {name.partition(".")[2]: values for name, values in tensors.items() if name.split(".")[0] == "inputs"}
    head = {name.partition(".")[2]: values for name, values in tensors.items() if name.startswith("head.")}
    return Samples(
        tensors["labels"].tolist(),
        lambda first, last, _: {name: values[first:last] for name, values in inputs.items()},
        head,
    )


def _tokens(tokenizer: Any, texts: pd.DataFrame, first: int, last: int, length: int | None) -> Inputs:
    columns = [texts[name][first:last].astype(str).tolist() for name in texts]
    longest = min(length or tokenizer.model_max_length, tokenizer.model_max_length)
    # A tokenizer that knows no longest text says 1e30, which is no length to cut off at.
    cut = {"truncation": True, "max_length": longest} if longest < 1 << 30 else {}
    return dict(tokenizer(*columns, padding=True, return_tensors="pt", **cut))


def _images(processor: Any, paths: Sequence[Path]) -> Inputs:
    return dict(processor(images=list(_opened(paths)), return_tensors="pt"))


def _opened(paths: Sequence[Path]) -> Iterator[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise EvaluationError(needs("an image", "evaluation", error)) from error
    for path in paths:
        with Image.open(path) as image:
            yield image.convert("RGB")


def _logits(model: nn.Module, samples: Samples, inputs: Inputs, device: torch.device) -> torch.Tensor:
    moved = {name: values.to(device) for name, values in inputs.items()}
    out = model(moved[""]) if "" in moved else model(**moved)
    logits = getattr(out, "logits", out)
    logits = logits[0] if isinstance(logits, tuple) else logits
    if not isinstance(logits, torch.Tensor):
        raise EvaluationError(f"a classifier returns logits, not a {type(out).__name__}")
    if samples.head:
        weight, bias = samples.head["weight"].to(logits), samples.head.get("bias")
        logits = nn.functional.linear(logits, weight, None if bias is None else bias.to(logits))
    return logits


def _classes(labels: Sequence[Any], model: nn.Module) -> torch.Tensor:
    """Return labels as the numbers of classes."""
    if all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
        return torch.tensor(labels)
    known = getattr(getattr(model, "config", None), "label2id", None) or {}
    if unknown := [label for label in labels if label not in known]:
        raise EvaluationError(
            f"the label {unknown[0]!r} is no number of a class, nor a name of the model's: "
            f"{', '.join(sorted(known, key=known.__getitem__)) or 'none'}"
        )
    return torch.tensor([known[label] for label in labels])
