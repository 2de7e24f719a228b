"""Samples by the batch, whether inputs are one tensor or several by keyword."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from mergekern.functional.calibration import Inputs


def batches(every: Sequence[Inputs], size: int) -> Iterator[list[Inputs]]:
    """Yield the samples of several inputs, `size` at a time; a batch holds samples of one shape and kind."""
    pending: list[Inputs] = []
    room = size
    for inputs in every:
        start, count = 0, length(inputs)
        while start < count:
            if pending and (room == 0 or _signature(pending[0]) != _signature(inputs)):
                yield pending
                pending, room = [], size
            stop = min(count, start + room)
            pending.append(rows_of(inputs, slice(start, stop)))
            room -= stop - start
            start = stop
    if pending:
        yield pending


def length(inputs: Inputs) -> int:
    return len(tensors_of(inputs)[0])


def rows_of(inputs: Inputs, rows: slice) -> Inputs:
    return {key: values[rows] for key, values in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def tensors_of(inputs: Inputs) -> list[Tensor]:
    return list(inputs.values()) if isinstance(inputs, dict) else [inputs]


def _signature(inputs: Inputs) -> Any:
    every = inputs.items() if isinstance(inputs, dict) else [("", inputs)]
    return sorted((key, str(values.dtype), tuple(values.shape[1:])) for key, values in every)
