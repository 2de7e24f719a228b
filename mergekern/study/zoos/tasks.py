"""Tasks on any data: a change of the inputs, of the ten classes, or something else to be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

Examples = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """Something to learn about the data."""

    name: str
    kind: str  # transformed, relabelled, subset, pairwise or other
    description: str
    examples: Examples  # from all inputs and classes to inputs and labels; a label −1 leaves the example out


@dataclass(frozen=True)
class Domain:
    """Data of ten classes, and tasks on them.

    Attributes:
        load: returns inputs (n, ...) and classes (n,), the same ones every time.
        base: the task of pretraining.
        tasks: those of fine-tuning; the kinds take turns, so that the first few have some of each.
    """

    load: Callable[[], tuple[Tensor, Tensor]]
    base: Task
    tasks: tuple[Task, ...]


def transformed(change: Callable[[Tensor, Generator], Tensor]) -> Examples:
    """Return the task to tell the ten classes of changed inputs.

    >>> transformed(lambda images, _: images.flip(-1))(torch.tensor([[1, 2]]), torch.tensor([7]), Generator())
    (tensor([[2, 1]]), tensor([7]))
    """
    return lambda inputs, classes, generator: (change(inputs, generator), classes)


def relabelled(labels: str) -> Examples:
    """Return the task to tell the labels written for the classes 0 to 9; a dot leaves a class out.

    >>> relabelled("...0....1.")(torch.zeros(3, 2), torch.tensor([8, 3, 5]), Generator())[1]
    tensor([ 1,  0, -1])
    """
    table = torch.tensor([-1 if label == "." else int(label) for label in labels])
    return lambda inputs, classes, generator: (inputs, table[classes])
