"""Weights that are not the same for all tensors: gradients over the layers, and values by patterns of names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from mergekern.checkpoints import Zoo
from mergekern.errors import OptionError
from mergekern.merging.depth import depths, fits, value_at
from mergekern.merging.option_checks import plain

Gradient: TypeAlias = Sequence[float]
Weight: TypeAlias = float | Gradient | Mapping[str, float | Gradient]
"""A weight: a number; a gradient, numbers from the first layer to the last, linear in between; or either by pattern of
names, of which the first that fits a tensor counts: a part of the name, or, with * or ?, the whole name."""


def checked_weight(value: Any) -> Weight:
    """Return a weight as plain values.

    Raises:
        OptionError: it is none, or a number is not finite.

    >>> checked_weight({"mlp": [0, 1], "*": 0.5})
    {'mlp': [0.0, 1.0], '*': 0.5}
    """
    if isinstance(value, Mapping):
        if not value:
            raise OptionError("a weight by patterns needs one pattern at least")
        return {str(pattern): _number_or_gradient(each) for pattern, each in value.items()}
    return _number_or_gradient(value)


def weights_of_tensors(weights: Sequence[Weight], zoo: Zoo) -> dict[str, tuple[float, ...]]:
    """Return the weights of the models for each tensor of a zoo, by its name.

    Raises:
        OptionError: a tensor has no weight, or a pattern fits no tensor.
    """
    found: dict[str, list[float]] = {tensor.name: [] for tensor in zoo.tensors}
    depth = depths([*zoo.base.tensors, *found])
    for model, weight in zip(zoo.model_names, weights, strict=True):
        by_pattern = weight if isinstance(weight, Mapping) else {"*": weight}
        used = set()
        for name, values in found.items():
            pattern = next((pattern for pattern in by_pattern if fits(pattern, name)), None)
            if pattern is None:
                raise OptionError(f"no weight of {model!r} for tensor {name!r}; add the pattern '*' for all others")
            used.add(pattern)
            values.append(float(value_at(by_pattern[pattern], name, depth[name])))
        if unused := [pattern for pattern in by_pattern if pattern not in used | {"*"}]:
            raise OptionError(f"weights of {model!r}: the pattern {unused[0]!r} is the first to fit for no tensor")
    return {name: tuple(values) for name, values in found.items()}


def _number_or_gradient(value: Any) -> float | Gradient:
    value = plain(value.tolist() if hasattr(value, "tolist") else value)
    if isinstance(value, list | tuple) and value:
        return [_number(each) for each in value]
    return _number(value)


def _number(value: Any) -> float:
    value = plain(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise OptionError(f"a weight must be a finite number, not {value!r}")
    return float(value)
