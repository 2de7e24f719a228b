"""A configuration for mergekit that says what a merge here does, for people who go on there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mergekern.errors import OptionError
from mergekern.merging.registry import find_method

_NAMES = {
    "weight_average": "linear", "task_arithmetic": "task_arithmetic", "ties": "ties", "dare": "dare_linear",
    "dare_ties": "dare_ties",
}  # fmt: skip


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
        models: their paths or names on a hub.
        base: that of the base.
        method: one that mergekit has as well: weight_average, task_arithmetic, ties, dare, dare_ties.
        options: of the method, by name, as for `mergekern.merge`. Random masks are mergekit's own: `seed` is left out.
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
    _, resolved = find_method(method, options)
    if method not in _NAMES:
        raise OptionError(f"mergekit has no method like {method}; it has {', '.join(_NAMES)}")
    if resolved.get("scope", "tensor") != "tensor" or resolved.get("mask", "random") != "random":
        raise OptionError("mergekit trims each tensor alone, and drops at random: scope='tensor' and mask='random'")
    weights = [1.0] * len(models) if weights is None else weights
    if len(weights) != len(models):
        raise OptionError(f"{len(weights)} weights for {len(models)} models")
    # JSON is YAML; its quoting is exact for every path.
    lines = [f"merge_method: {json.dumps(_NAMES[method])}"]
    if method != "weight_average":
        lines.append(f"base_model: {json.dumps(base)}")
    lines.append("models:")
    for model, weight in zip(models, weights, strict=True):
        lines.append(f"  - model: {json.dumps(model)}")
        lines.append(f"    parameters: {json.dumps({'weight': float(weight), **_density(resolved)})}")
    lines.append(f"parameters: {json.dumps(_whole(method, resolved))}")
    lines.append(f"dtype: {json.dumps(dtype)}")
    return "\n".join(lines) + "\n"


def _density(options: Mapping[str, Any]) -> dict[str, float]:
    if "density" in options:
        return {"density": options["density"]}
    return {"density": round(1.0 - options["rate"], 12)} if "rate" in options else {}


def _whole(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if method == "weight_average":
        return {"normalize": True}
    return {"normalize": method != "task_arithmetic", "lambda": options["scale"]}
