"""How deep in a model a tensor lies, and values that change with it: gradients over the layers, and filters of names.

What lies in numbered layers is told by names alone: the first part of a name that is a number is the layer's, and all
tensors with the same parts before it are one stack of layers, `model.layers`, `encoder.layer` or `blocks`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


class InLayer(NamedTuple):
    """A tensor's name, in three parts.

    Attributes:
        stack: what comes before the layer's number, with its dot.
        layer: the number.
        rest: what comes after it.
    """

    stack: str
    layer: int
    rest: str

    @property
    def name(self) -> str:
        """The name."""
        return f"{self.stack}{self.layer}.{self.rest}"


def in_layer(name: str) -> InLayer | None:
    """Return the parts of the name of a tensor that lies in a numbered layer; None for others.

    >>> in_layer("model.layers.3.mlp.experts.7.w1")
    InLayer(stack='model.layers.', layer=3, rest='mlp.experts.7.w1')
    >>> in_layer("model.norm.weight") is None
    True
    """
    found = _NUMBER.search(name)
    return InLayer(name[: found.start(1)], int(found[1]), name[found.end() :]) if found else None


def depths(names: Iterable[str]) -> dict[str, float]:
    """Return how deep each tensor lies: 0 in the first layer of its stack, 1 in the last, 0 outside of layers.

    >>> depths(["h.0.w", "h.1.w", "h.2.w", "head"])
    {'h.0.w': 0.0, 'h.1.w': 0.5, 'h.2.w': 1.0, 'head': 0.0}
    """
    parts = {name: in_layer(name) for name in names}
    last: dict[str, int] = {}
    for found in parts.values():
        if found:
            last[found.stack] = max(last.get(found.stack, 0), found.layer)
    return {name: depth_of(found.layer, last[found.stack] + 1) if found else 0.0 for name, found in parts.items()}


def depth_of(layer: int, layers: int) -> float:
    """Return how deep a layer of several lies, from 0 to 1; a single layer is the last."""
    return layer / (layers - 1) if layers > 1 else 1.0


@dataclass(frozen=True)
class Filtered:
    """A value for the tensors that have a text in their names; None for all."""

    filter: str | None
    value: Any


def value_at(setting: Any, name: str, depth: float) -> Any:
    """Return the value of a setting for one tensor, None where it has none.

    Args:
        setting: a value for all tensors; a list of numbers, the gradient from the first layer to the last, linear in
            between; other lists of plain values, of which each is for an equal share of the layers; or a list of
            `Filtered`, of which the first that fits the name counts.
        name: name of the tensor.
        depth: from 0 to 1; see `depths`.

    >>> [value_at([0.0, 1.0, 0.5], "w", depth) for depth in (0.0, 0.25, 1.0)]
    [0.0, 0.5, 0.5]
    >>> value_at([Filtered("mlp", 0.25), Filtered(None, 1.0)], "h.0.mlp.w", 0.0)
    0.25
    """
    if not isinstance(setting, list | tuple):
        return setting
    if setting and isinstance(setting[0], Filtered):
        fitting = (each for each in setting if each.filter in (None, "*") or each.filter in name)
        first = next(fitting, None)
        return None if first is None else value_at(first.value, name, depth)
    at = depth * (len(setting) - 1)
    if any(isinstance(value, bool | str) for value in setting):
        return setting[int(at)]
    low = int(at)
    share = at - low
    return (1 - share) * setting[low] + share * setting[min(low + 1, len(setting) - 1)]


def fits(pattern: str, name: str) -> bool:
    """Tell whether a pattern fits a tensor's name: as a part of it, or, where it holds * or ?, as all of it.

    >>> fits("mlp", "h.0.mlp.w"), fits("h.?.mlp.*", "h.0.mlp.w"), fits("*.mlp", "h.0.mlp.w")
    (True, True, False)
    """
    return fnmatch.fnmatchcase(name, pattern) if set(pattern) & set("*?[") else pattern in name


def by_pattern(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return for each tensor the value of the first pattern that fits its name, None where none does."""
    return {name: next((values[p] for p in values if fits(p, name)), None) for name in names}
