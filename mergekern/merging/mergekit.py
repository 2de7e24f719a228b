"""Configurations for mergekit that do what merges here do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mergekern.errors import OptionError
from mergekern.merging.mergekit_names import Mergekit
from mergekern.merging.registry import METHODS, find_method


def mergekit_config(
    models: Sequence[str],
    base: str,
    method: str,
    *,
    options: Mapping[str, Any] | None = None,
    weights: Sequence[float] | None = None,
    dtype: str = "float32",
) -> str:
    """Return the YAML of a mergekit configuration.

    Args:
        models: paths of the models, or their names on a hub.
        base: path or name of the base.
        method: one of `mergekern.METHODS` that mergekit has as well, as its attribute `mergekit` tells.
        options: values of the method's options, as for `mergekern.merge`. Random masks are mergekit's own: `seed` is
            left out.
        weights: one for each model.
        dtype: in which mergekit computes and writes; sums in bfloat16 lose what they add.

    Raises:
        OptionError: a method or option that mergekit does not have.

    >>> print(mergekit_config(["a", "b"], "base", "ties", options={"density": 0.5}))
    merge_method: "ties"
    base_model: "base"
    models:
      - model: "a"
        parameters: {"weight": 1.0, "density": 0.5}
      - model: "b"
        parameters: {"weight": 1.0, "density": 0.5}
    parameters: {"normalize": true, "lambda": 0.3}
    dtype: "float32"
    <BLANKLINE>
    """
    chosen, resolved = find_method(method, options)
    theirs = chosen.mergekit
    if theirs is None:
        known = [name for name, each in METHODS.items() if each.mergekit is not None]
        raise OptionError(f"mergekit has no method like {method}; it has {', '.join(known)}")
    for option, value in theirs.fixed:
        if resolved[option] != value:
            raise OptionError(f"mergekit's {theirs.name} has {option}={value!r} alone, not {resolved[option]!r}")
    weights = [1.0] * len(models) if weights is None else weights
    if len(weights) != len(models):
        raise OptionError(f"{len(weights)} weights for {len(models)} models")
    chosen.check_count(len(models))
    values = {**resolved, "weights": tuple(map(float, chosen.weigh(weights, **resolved) if chosen.weigh else weights))}
    of_models, of_all = _parameters(theirs, values, len(models))
    # JSON is YAML; its quoting is exact for every path.
    lines = [f"merge_method: {json.dumps(theirs.name)}"]
    if theirs.base == "first":
        lines.append(f"base_model: {json.dumps(models[0])}")
    elif theirs.base == "base" or (theirs.base == "optional" and resolved["of"] == "deltas"):
        lines.append(f"base_model: {json.dumps(base)}")
    lines.append("models:")
    for model, own in zip(models, of_models, strict=True):
        lines.append(f"  - model: {json.dumps(model)}")
        if own:
            lines.append(f"    parameters: {json.dumps(own)}")
    if of_all:
        lines.append(f"parameters: {json.dumps(of_all)}")
    lines.append(f"dtype: {json.dumps(dtype)}")
    return "\n".join(lines) + "\n"


def _parameters(
    theirs: Mergekit, values: Mapping[str, Any], models: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the parameters of each model, and those of the merge as a whole."""
    of_models: list[dict[str, Any]] = [{} for _ in range(models)]
    of_all = {}
    for parameter in theirs.parameters:
        if parameter.option is None:
            continue
        value = values[parameter.option]
        try:
            if not parameter.per_model:
                of_all[parameter.name] = parameter.write(value)
                continue
            for own, each in zip(of_models, value if isinstance(value, tuple) else (value,) * models, strict=True):
                own[parameter.name] = parameter.write(each)
        except ValueError as error:
            raise OptionError(f"mergekit's {theirs.name} has {error} alone, not {value!r}") from None
    return of_models, of_all
