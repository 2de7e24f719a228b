"""Embeddings and heads for the tokens of a result: which row of which model each of their rows is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mergekern.checkpoints.rows import Rows, RowsOf
from mergekern.checkpoints.tying import is_embedding, is_head
from mergekern.errors import OptionError
from mergekern.merging.depth import in_layer
from mergekern.merging.recipes.configuration import vocabulary_size
from mergekern.merging.recipes.models import Model
from mergekern.merging.recipes.schema import ModelPart, ModelToken, TokenPart, Zero
from mergekern.merging.recipes.vocabulary import Vocabulary

# Ends of the names of biases of heads over the vocabulary, and of heads that are never tied.
_OF_HEADS = ("lm_head.bias", "predictions.bias", "vocab_projector.bias", "output_layer.weight", "lm_head.linear.weight",
             "lm_head.linear.bias", "embed_out.bias")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The rows that the tensors of a vocabulary have in a result.

    Attributes:
        vocabulary: the tokens of the result, numbered from 0 on without gaps.
        of_models: the tokens of each model, by its text.
        tokens: what the recipe says of single tokens.
        padding: how many rows come after those of tokens.
    """

    vocabulary: Vocabulary
    of_models: Mapping[str, Vocabulary]
    tokens: Mapping[str, TokenPart]
    padding: int

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.vocabulary.numbers) + self.padding

    def among(self, models: Sequence[Model], base: str | None) -> RowsAmong:
        """Return the rows of models that are merged with each other.

        Args:
            models: the models.
            base: text of the base model of the recipe; None where it has none.

        Raises:
            OptionError: a token that the recipe names has no source, or one that lacks it.
        """
        own = {model.text: self._rows_of(self.of_models[model.text], model) for model in models}
        has = torch.stack([rows >= 0 for rows in own.values()])
        gives = has if base not in own else has & ~(own[base] >= 0)
        sources = {text: torch.where(row, own[text], -1) for text, row in zip(own, gives, strict=True)}
        if base in own:
            sources[base] = own[base].clone()
        for token, part in self.tokens.items():
            number = self.vocabulary.numbers[token]
            if part.force or not has[:, number].all():
                text, row = self._source(token, part, own)
                for each in sources.values():
                    each[number] = -1
                if text is not None:
                    sources[text][number] = row
            if part.force:
                for each in own.values():
                    each[number] = -1
        return RowsAmong({model.text: model for model in models}, own, sources, self.padding)

    def _rows_of(self, held: Vocabulary, model: Model) -> torch.Tensor:
        """Return the row of each token of the result in a model, -1 where it has none."""
        rows = rows_of_vocabulary(model)
        found = [-1] * len(self.vocabulary.numbers)
        for token, number in self.vocabulary.numbers.items():
            row = held.numbers.get(token, -1)
            found[number] = row if row < rows else -1
        return torch.tensor(found, dtype=torch.int64)

    def _source(self, token: str, part: TokenPart, own: Mapping[str, torch.Tensor]) -> tuple[str | None, int]:
        """Return the model that gives the row of a token that the recipe names, None for zeros, and its row there."""
        where, source = f"tokenizer.tokens.{token}", part.source
        if isinstance(source, Zero):
            return None, -1
        if source is None:
            raise OptionError(f"{where}: not every model has this token; give a `source`")
        model = source.text if isinstance(source, ModelPart) else source.model.text
        if model not in own:
            raise OptionError(f"{where}: {model} is no source of the embeddings; they come from {', '.join(own)}")
        row = int(own[model][self.vocabulary.numbers[token]])
        if isinstance(source, ModelToken):
            token = source.token or token
            row = self.of_models[model].numbers.get(token, -1) if source.token_id is None else source.token_id
        if row < 0:
            raise OptionError(f"{where}: {model} has no token {token!r}")
        return model, row


@dataclass(frozen=True, eq=False)
class RowsAmong:
    """The rows of the tensors of a vocabulary in models that are merged with each other.

    Attributes:
        models: the models, by their texts.
        own: for each of them, the row of each token, -1 where it takes it from elsewhere.
        sources: the rows that each gives to those that lack a token.
        padding: how many rows come after those of tokens.
    """

    models: Mapping[str, Model]
    own: Mapping[str, torch.Tensor]
    sources: Mapping[str, torch.Tensor]
    padding: int

    def rows(self, model: Model, name: str) -> Rows | None:
        """Return the rows of a tensor of a model; None where they are not those of tokens.

        Raises:
            OptionError: it lacks rows that are asked for, or a model that is to give some lacks the tensor.
        """
        if not is_of_vocabulary(model, name):
            return None
        own, others = self.own[model.text], []
        if (own < 0).any():
            for text, index in self.sources.items():
                giver = self.models[text]
                if not (index >= 0).any():
                    continue
                if name not in giver.checkpoint.tensors:
                    raise OptionError(f"tokenizer: {text} has no tensor {name!r}, which is to give rows for tokens")
                _check(giver, name, index)
                others.append(RowsOf(giver.checkpoint, name, index))
        _check(model, name, own)
        return Rows(own, others, self.padding)


def is_of_vocabulary(model: Model, name: str) -> bool:
    """Tell whether a tensor of a model has a row for each token."""
    tensor = model.checkpoint.tensors[name]
    is_one = is_head(name) or is_embedding(name) or any(f".{name}".endswith(f".{end}") for end in _OF_HEADS)
    return (
        is_one
        and in_layer(name) is None
        and tensor.shape[0] in (model.rows_of_embedding, vocabulary_size(model.checkpoint.config))
    )


def rows_of_vocabulary(model: Model) -> int:
    """Return how many of the rows of a model's embedding may be tokens.

    Raises:
        OptionError: it has no embedding.
    """
    rows = model.rows_of_embedding
    if rows is None:
        raise OptionError(
            f"tokenizer: {model.text} has no embedding of tokens; leave `tokenizer` and `tokenizer_source` out"
        )
    return vocabulary_size(model.checkpoint.config) or rows


def _check(model: Model, name: str, index: torch.Tensor) -> None:
    rows = model.checkpoint.tensors[name].shape[0]
    if (last := int(index.max())) >= rows:
        raise OptionError(
            f"tokenizer: {name!r} of {model.text} has {rows} rows, and no row {last}, which is that of a token; "
            "correct vocab_size in its config.json, or leave `tokenizer` and `tokenizer_source` out"
        )
