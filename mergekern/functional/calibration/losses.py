"""Losses that have a name, by which a folder says which one a calibration has."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
IGNORED = -100  # the label of what takes no part, as torch's cross-entropy has it


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of every token but the first, given those before it.

    Args:
        logits: (n, length, vocabulary).
        labels: (n, length), the tokens themselves; −100 where padding takes no part.

    >>> import torch
    >>> next_token(torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.long)).exp().round()
    tensor(8.)
    """
    return tokens(logits[:, :-1], labels[:, 1:])


def tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of all tokens: logits (n, length, vocabulary), labels (n, length) or −100."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def by_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss that transformers chooses for a classifier's labels.

    Args:
        logits: (n, classes).
        labels: (n,) integers: cross-entropy. (n,) floats: the mean squared error of one output. (n, classes) floats:
            binary cross-entropy of each class.
    """
    if not labels.is_floating_point():
        return nn.functional.cross_entropy(logits, labels)
    if labels.dim() == 1:
        return nn.functional.mse_loss(logits.reshape(len(labels)), labels)
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


LOSSES: dict[str, Loss] = {
    "cross_entropy": nn.functional.cross_entropy, "next_token": next_token, "tokens": tokens, "by_labels": by_labels,
}  # fmt: skip


def name_of(loss: Loss) -> str | None:
    """Return the name of a loss; None of one that is code alone.

    >>> name_of(next_token), name_of(nn.functional.mse_loss)
    ('next_token', None)
    """
    return next((name for name, known in LOSSES.items() if known is loss), None)
