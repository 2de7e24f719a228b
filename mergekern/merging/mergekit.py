"""Configurations for mergekit that do what merges here do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mergekern.errors import OptionError
from mergekern.merging.method import Method
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
    if chosen.mergekit is None:
        known = [name for name, each in METHODS.items() if each.mergekit is not None]
        raise OptionError(f"mergekit has no method like {method}; it has {', '.join(known)}")
    if resolved.get("scope", "tensor") != "tensor" or resolved.get("mask", "random") != "random":
        raise OptionError("mergekit trims each tensor alone, and drops at random: scope='tensor' and mask='random'")
    weights = [1.0] * len(models) if weights is None else weights
    if len(weights) != len(models):
        raise OptionError(f"{len(weights)} weights for {len(models)} models")
    # JSON is YAML; its quoting is exact for every path.
    lines = [f"merge_method: {json.dumps(chosen.mergekit.name)}"]
    if chosen.mergekit.name != "linear":  # which merges models, without a base
        lines.append(f"base_model: {json.dumps(base)}")
    lines.append("models:")
    for model, weight in zip(models, weights, strict=True):
        lines.append(f"  - model: {json.dumps(model)}")
        lines.append(f"    parameters: {json.dumps({'weight': float(weight), **_density(resolved)})}")
    lines.append(f"parameters: {json.dumps(_parameters(chosen, resolved))}")
    lines.append(f"dtype: {json.dumps(dtype)}")
    return "\n".join(lines) + "\n"


def _density(options: Mapping[str, Any]) -> dict[str, float]:
    if "density" in options:
        return {"density": options["density"]}
    return {"density": round(1.0 - options["rate"], 12)} if "rate" in options else {}


def _parameters(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the merge as a whole, which are not of one model."""
    assert method.elements is not None
    scale = {"lambda": options["scale"]} if "scale" in options else {}
    return {"normalize": method.elements(**options).consensus != "sum", **scale}
