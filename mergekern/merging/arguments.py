"""Arguments of merges as a caller gives them, checked and resolved: weights, groups of models and dtypes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from mergekern.checkpoints import Zoo
from mergekern.checkpoints.dtypes import FLOATS
from mergekern.errors import OptionError, did_you_mean
from mergekern.merging.method import Method
from mergekern.merging.option_checks import plain

DTYPES = {str(row.dtype).removeprefix("torch."): row.dtype for row in FLOATS if row.is_written}

Weights = Mapping[str, float] | Sequence[float] | None


def resolve_weights(
    weights: Weights, zoo: Zoo, method: Method, options: Mapping[str, Any] | None = None
) -> tuple[float, ...]:
    """Return the weight of each model of a zoo.

    Args:
        weights: by name or in the models' order; None for 1 each.
        zoo: the models.
        method: decides which weights are allowed.
        options: all options of the method, some of which may decide the weights.

    Raises:
        OptionError: a weight is missing, has no model, is not finite, or not allowed.
    """
    names = zoo.model_names
    if weights is None:
        return (1.0,) * len(names)
    if method.weigh is not None and tuple(method.weigh((2.0,) * len(names), **(options or {}))) != (2.0,) * len(names):
        raise OptionError(f"the options of {method.name} say what its models weigh; give those or weights, not both")
    values = finite_weights(weights, names)
    any_weight = method.takes_any_weight(method.defaults if options is None else options)
    if not any_weight and (min(values) < 0 or not sum(values) > 0):
        raise OptionError(f"weights of {method.name} must not be negative, and one must be above 0, not {values!r}")
    return tuple(float(value) for value in values)


def finite_weights(weights: Mapping[str, float] | Sequence[float], names: Sequence[str]) -> list[float]:
    """Return the weight of each model, in the order of their names.

    Raises:
        OptionError: a weight is missing, has no model, or is not finite.
    """
    values = [plain(value) for value in _in_order(weights, names)]
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise OptionError(f"a weight must be a finite number, not {value!r}")
    return values


def resolve_per_model(options: Mapping[str, Any], zoo: Zoo, method: Method) -> dict[str, Any]:
    """Return options in which values of the models are tuples in the order of the zoo.

    Raises:
        OptionError: a value is missing, or has no model.
    """
    values = {name: options[name] for name in method.per_model if isinstance(options[name], Mapping | tuple)}
    return {**options, **{name: tuple(_in_order(each, zoo.model_names, name)) for name, each in values.items()}}


def _in_order(
    weights: Mapping[str, float] | Sequence[float], names: Sequence[str], what: str = "weight"
) -> list[float]:
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise OptionError(f"a {what} for {name!r}, which is no model{did_you_mean(name, names)}")
        if missing := [name for name in names if name not in weights]:
            raise OptionError(f"no {what} for {', '.join(missing)}")
        return [weights[name] for name in names]
    if isinstance(weights, str) or not isinstance(weights, Iterable):
        raise OptionError(f"weights are a number for each model, by name or in their order, not {weights!r}")
    values = list(weights)
    if len(values) != len(names):
        raise OptionError(f"{len(values)} {what}s for {len(names)} models")
    return values


def resolve_groups(groups: Iterable[Sequence[str]] | None, zoo: Zoo) -> list[tuple[int, ...]]:
    """Return the positions of the models of each group.

    Args:
        groups: names of the models of each; None for every pair.
        zoo: the models.

    Raises:
        OptionError: a group has an unknown model, the same model twice, or fewer than two; a group is given twice.
    """
    if groups is None:
        return list(itertools.combinations(range(len(zoo.models)), 2))
    found = []
    for group in groups:
        if isinstance(group, str) or len(set(group)) != len(group) or len(group) < 2:
            raise OptionError(f"a group is two or more different model names, not {group!r}")
        for name in group:
            if name not in zoo.model_names:
                raise OptionError(f"no model {name!r} in the zoo{did_you_mean(name, zoo.model_names)}")
        found.append(tuple(sorted(zoo.model_names.index(name) for name in group)))
    if not found or len(set(found)) != len(found):
        raise OptionError("groups must be different from each other, and one at least")
    return found


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of a name, or a dtype or None as it is.

    Raises:
        OptionError: merges are not written in this dtype.
    """
    if dtype is None or dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if str(dtype) not in DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}{did_you_mean(str(dtype), DTYPES)}")
    return DTYPES[str(dtype)]
