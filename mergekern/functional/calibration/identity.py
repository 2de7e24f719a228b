"""What tells one calibration from another: a description of its code, and hashes of its tensors."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mergekern.functional.calibration.architectures import OwnHead
from mergekern.functional.calibration.tasks import Task


def describe_module(module: nn.Module) -> list[Any]:
    """Return what a module is made of: its `repr`, the classes of its parts, names, shapes and ties of its tensors."""
    classes = [f"{type(m).__module__}.{type(m).__qualname__}" for m in module.modules()]
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    tied: dict[int, int] = {}
    shapes = [[name, tuple(t.shape), tied.setdefault(id(t), len(tied))] for name, t in tensors]
    return [repr(module), classes, shapes]


def describe_code(function: Callable) -> list[str] | None:
    """Return what tells a function from others, where its name and code do."""
    if function is nn.functional.cross_entropy:
        return ["cross_entropy"]
    if not isinstance(function, types.FunctionType) or function.__closure__:
        return None
    code = function.__code__
    names = [function.__module__, function.__qualname__, repr(function.__defaults__), repr(function.__kwdefaults__)]
    return [*names, code.co_code.hex(), repr(code.co_consts), repr(code.co_names)]


def update(hasher: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor, with its name, dtype and shape, to a hash."""
    values = tensor.detach().cpu().contiguous()
    hasher.update(f"{name}\0{values.dtype}{tuple(values.shape)}".encode())
    hasher.update(values.reshape(-1).view(torch.uint8).numpy())


def update_by_task(hasher: Any, name: str, task: Task) -> None:
    """Add a task, with its samples and its head, to a hash."""
    every = task.inputs if isinstance(task.inputs, dict) else {"": task.inputs}
    tensors = {f"inputs.{key}": values for key, values in every.items()} | {"labels": task.labels}
    if isinstance(task.head, OwnHead):
        hasher.update(json.dumps(task.head.identity).encode())
        tensors |= {f"head.{key}": values for key, values in task.head.tensors.items()}
    elif isinstance(task.head, nn.Module):
        hasher.update(json.dumps(describe_module(task.head)).encode())
        tensors |= {f"head.{key}": v for key, v in task.head.state_dict().items() if isinstance(v, Tensor)}
    else:
        tensors |= {f"head.{i}": part for i, part in enumerate(task.head) if part is not None}
    for key, tensor in sorted(tensors.items()):
        update(hasher, f"{name}\0{key}", tensor)
