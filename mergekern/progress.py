"""What a run tells while it goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is; given to the `progress` callable at the start of every tensor, and at the end.

    Attributes:
        tensor: the one that is worked on now; "" at the end.
        tensors_done, tensors_total: counts.
        bytes_done, bytes_total: of weights, in the base and all models.
        seconds: since the run began.
        probe: what a model is run for, after all tensors are done: "gradients of mnist"; else "".
    """

    tensor: str
    tensors_done: int
    tensors_total: int
    bytes_done: int
    bytes_total: int
    seconds: float
    probe: str = ""
