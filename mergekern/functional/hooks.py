"""What a named module gives while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mergekern.errors import CalibrationError


@contextmanager
def outputs_of(model: nn.Module, layer: str, with_gradient: bool = False) -> Iterator[list[Any]]:
    """Gather the outputs of a module while the model runs; with their gradients, once they are computed."""
    outputs: list[Any] = []

    def gather(module: nn.Module, arguments: Any, output: Any) -> None:
        found = _first(output)
        if with_gradient and isinstance(found, Tensor) and found.is_floating_point():
            if not found.requires_grad:
                found.requires_grad_()
            found.retain_grad()
        outputs.append(found)

    handle = model.get_submodule(layer).register_forward_hook(gather)
    try:
        yield outputs
    finally:
        handle.remove()


def _first(output: Any) -> Any:
    """Return the tensor of an output, the first of a tuple or mapping."""
    while isinstance(output, tuple | list | Mapping) and len(output):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


def only_output(outputs: Sequence[Any], what: str, layer: str) -> Tensor:
    if len(outputs) != 1:
        times = f"{len(outputs)} times" if outputs else "not at all"
        raise CalibrationError(f"{what} {layer!r} runs {times} when the model does; name a module that runs once")
    if not isinstance(outputs[0], Tensor) or not outputs[0].is_floating_point():
        found = outputs[0].dtype if isinstance(outputs[0], Tensor) else f"a {type(outputs[0]).__name__}"
        raise CalibrationError(f"{what} {layer!r} gives {found}, not a floating-point tensor")
    return outputs[0]
