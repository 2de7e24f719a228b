"""What a run reports while it goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is; given to the `progress` callable at the start of every step, and at the end.

    A step is a tensor, or, after all tensors, an activity that runs a model.

    Attributes:
        tensor: name of the tensor that is worked on now; "" during an activity and at the end.
        tensors_done, tensors_total: numbers of tensors.
        bytes_done, bytes_total: numbers of bytes of weights, in the base and all models.
        seconds: time since the run began.
        activity: what a model is run for, such as "gradients of mnist"; "" while tensors are read and at the end.
    """

    tensor: str
    tensors_done: int
    tensors_total: int
    bytes_done: int
    bytes_total: int
    seconds: float
    activity: str = ""
