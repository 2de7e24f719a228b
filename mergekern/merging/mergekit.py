"""Configurations for mergekit that do what merges here do."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mergekern.errors import OptionError
from mergekern.merging.mergekit_names import Mergekit
from mergekern.merging.registry import METHODS, find_method
from mergekern.merging.weights_by_tensor import Weight, checked_weight


def mergekit_config(
    models: Sequence[str | tuple[str, str]],
    base: str | None,
    method: str,
    *,
    options: Mapping[str, Any] | None = None,
    weights: Sequence[Weight] | None = None,
    dtype: str = "float32",
    out_dtype: str | None = None,
) -> str:
    """Return the YAML of a mergekit configuration.

    Args:
        models: paths of the models, or their names on a hub, with or without a revision, "org/name@revision"; a pair is
            a model and its adapter. A folder with + or @ in its path is written in mergekit's long form.
        base: path or name of the base; None for methods that need none, as `mergekern.merge` does without.
        method: one of `mergekern.METHODS` that mergekit has as well, as its attribute `mergekit` tells.
        options: values of the method's options, as for `mergekern.merge`. Random masks are mergekit's own: `seed` is
            left out.
        weights: one for each model, as for `mergekern.merge`. Patterns must be parts of names, as mergekit's filters
            are, without * and ?, or "*" alone.
        dtype: in which mergekit computes; sums in bfloat16 lose what they add.
        out_dtype: in which it writes; None for `dtype`.

    Raises:
        OptionError: a method or option that mergekit does not have, or a method that needs a base without one.

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
    checked = tuple(checked_weight(weight) for weight in weights)
    if chosen.weigh is not None:
        if not all(isinstance(weight, float) for weight in checked):
            raise OptionError(f"mergekit's {theirs.name} has one weight for all tensors here, not {weights!r}")
        checked = tuple(float(weight) for weight in chosen.weigh(checked, **resolved))
    values = {**resolved, "weights": tuple(map(_setting, checked))}
    of_models, of_all = _parameters(theirs, values, len(models))
    # JSON is YAML; its quoting is exact for every path.
    lines = [f"merge_method: {json.dumps(theirs.name)}"]
    if theirs.base == "first":
        lines.append(f"base_model: {json.dumps(_reference(models[0]))}")
    elif theirs.base == "base" or (theirs.base == "optional" and resolved["of"] == "deltas"):
        if base is None:
            raise OptionError(f"{method} needs a base: pass base=PATH (--base on the command line)")
        lines.append(f"base_model: {json.dumps(_reference(base))}")
    lines.append("models:")
    for model, own in zip(models, of_models, strict=True):
        lines.append(f"  - model: {json.dumps(_reference(model))}")
        if own:
            lines.append(f"    parameters: {json.dumps(own)}")
    if of_all:
        lines.append(f"parameters: {json.dumps(of_all)}")
    lines.append(f"dtype: {json.dumps(dtype)}")
    if out_dtype is not None and out_dtype != dtype:
        lines.append(f"out_dtype: {json.dumps(out_dtype)}")
    return "\n".join(lines) + "\n"


def mergekit_command(models: Sequence[str | tuple[str, str]], config: str) -> str:
    """Return the command of a shell that has mergekit do what a configuration says.

    >>> mergekit_command([("org/model", "an adapter"), "org/model"], "merge.yaml")
    'mergekit-yaml merge.yaml merged --lora-merge-cache lora-merge-cache'
    """
    parts = [part for model in models for part in ((model,) if isinstance(model, str) else model)]
    # mergekit-pytorch takes single files, mergekit-yaml folders and models of the Hub.
    program = "mergekit-pytorch" if any(os.path.isfile(part) for part in parts) else "mergekit-yaml"
    cache = "" if all(isinstance(model, str) for model in models) else " --lora-merge-cache lora-merge-cache"
    return f"{program} {shlex.quote(config)} merged{cache}"


def _reference(model: str | tuple[str, str]) -> str | dict[str, Any]:
    """Return a model as mergekit takes it: in one line, or, where + and @ would part a path, by its parts."""
    parts = (model,) if isinstance(model, str) else model
    if not any(os.path.isdir(part) and set(part) & set("+@") for part in parts):
        return "+".join(parts)
    return {key: {"path": part} for key, part in zip(("model", "lora"), parts, strict=False)}


def _setting(value: Any) -> Any:
    """Return a weight as mergekit takes it.

    Raises:
        OptionError: a pattern that is none of mergekit's.
    """
    if not isinstance(value, Mapping):
        return value
    if bad := [pattern for pattern in value if pattern != "*" and set(pattern) & set("*?[")]:
        raise OptionError(f"mergekit's filters are parts of names; the pattern {bad[0]!r} is none")
    return [{"filter": pattern, "value": each} for pattern, each in value.items()]


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
