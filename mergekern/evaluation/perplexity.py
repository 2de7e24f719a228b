"""Perplexity of causal language models on given texts, as a score."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from mergekern.checkpoints import Zoo
from mergekern.errors import EvaluationError
from mergekern.evaluation.evaluator import Evaluator, check_known
from mergekern.evaluation.examples import named_texts
from mergekern.evaluation.processors import Processor, processor_of

# Tokens of a window where neither tokenizer nor model says how many it takes.
WINDOW = 2048
_OTHER = "perplexity is of models that continue a text"


class Perplexity(Evaluator):
    """Scores a causal language model by 1 / perplexity on texts: the geometric mean of the probabilities of the tokens.

    That is a share from 0 to 1, the larger, the better. Texts that are longer than a window are cut into several; of
    each window, every token but the first is predicted from those before it.

    Args:
        texts: a .jsonl, .csv or .parquet file with a column text, or a .txt file with a text a line, for all models; a
            folder with such a file for each task, TASK.jsonl; task -> texts; or texts.
        tokenizer: a function of texts like those of transformers, or its folder; by default that in the base's folder.
        batch_size: windows that are run at a time.
        max_length: tokens of a window; by default as many as the model takes.

    Raises:
        EvaluationError: texts or a tokenizer that cannot be read.

    >>> Perplexity(["one text", "another"]).tasks
    ('texts',)
    """

    score = "inverse_perplexity"

    def __init__(
        self,
        texts: str | os.PathLike[str] | Mapping[str, Sequence[str]] | Sequence[str],
        *,
        tokenizer: Processor = None,
        batch_size: int = 8,
        max_length: int | None = None,
    ) -> None:
        self._texts, is_shared = named_texts(texts)
        self.tasks = tuple(self._texts) if is_shared else None
        self._given, self._batch_size, self._max_length = tokenizer, batch_size, max_length
        self._tokens: dict[str, list[list[int]]] = {}

    def prepare(self, zoo: Zoo, tasks: Sequence[str]) -> None:
        """Tokenise the texts; see `Evaluator`."""
        check_known(tasks, list(self._texts), "the folder of texts")
        tokenizer = processor_of(zoo, self._given, "AutoTokenizer", "tokenizer")
        try:
            self._tokens = {task: tokenizer(self._texts[task])["input_ids"] for task in tasks}
        except Exception as error:  # the library of tokenizers raises Exception itself
            raise EvaluationError(f"the tokenizer fails on the texts: {error}") from error
        self._longest = getattr(tokenizer, "model_max_length", WINDOW)
        for task, of_task in self._tokens.items():
            if all(len(tokens) < 2 for tokens in of_task):
                raise EvaluationError(f"task {task!r}: no text has two tokens, so that none is predicted")

    def __call__(self, model: nn.Module, task: str) -> float:
        """Return 1 / perplexity of a model on the texts of a task."""
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise EvaluationError(f"a {type(model).__name__} has an encoder: {_OTHER}")
        loss, count = 0.0, 0
        with torch.inference_mode():
            for tokens, is_token in self._batches(model, task):
                logits = model(input_ids=tokens, attention_mask=is_token.long()).logits
                if logits.dim() != 3:
                    raise EvaluationError(f"a {type(model).__name__} tells no next token: {_OTHER}")
                losses = nn.functional.cross_entropy(
                    logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
                )
                counted = is_token[:, 1:].flatten()
                loss += float(losses[counted].double().sum())
                count += int(counted.sum())
        return math.exp(-loss / count)

    def _batches(self, model: nn.Module, task: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the tokens of windows, (n, length), padded with zeros, and which of them are tokens."""
        device = next(model.parameters()).device
        takes = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        length = self._max_length or min(self._longest, takes or WINDOW)
        windows = [
            tokens[start : start + length] for tokens in self._tokens[task] for start in range(0, len(tokens), length)
        ]
        windows = [window for window in windows if len(window) > 1]
        for first in range(0, len(windows), self._batch_size):
            batch = [torch.tensor(window) for window in windows[first : first + self._batch_size]]
            tokens = nn.utils.rnn.pad_sequence(batch, batch_first=True)
            lengths = torch.tensor([len(window) for window in batch])
            yield tokens.to(device), (torch.arange(tokens.shape[1]) < lengths[:, None]).to(device)
