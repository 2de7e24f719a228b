"""What was gathered of one tensor by running the models, for methods that need more than weights (`gathered`)."""

from __future__ import annotations

from typing import NamedTuple

import torch


class OfTensor(NamedTuple):
    """What was gathered of one tensor.

    Attributes:
        values: those of each model.
        norms: length of all that was gathered of each model.
        of_rows: whether inner products of inputs belong to the rows of a matrix, not to its columns.
    """

    values: list[torch.Tensor]
    norms: list[float]
    of_rows: bool
