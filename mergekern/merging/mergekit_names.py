"""What mergekit calls a method, and which of its parameters are which of our options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


def _is_mean(aggregate: str) -> bool:
    if aggregate == "max":
        raise ValueError("aggregate='mean' or 'sum'")
    return aggregate == "mean"


def same(value: Any) -> Any:
    """Return a value as it is."""
    return value


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method in mergekit.

    Attributes:
        name: mergekit's.
        option: name of the option here; "weights" for the weights of the models; None where it changes nothing.
        default: its value in mergekit where a recipe does not give it; None: it must be given.
        per_model: whether each model may have its own.
        read: mergekit's value -> the option's.
        write: the option's value -> mergekit's; raises ValueError where mergekit has no such choice.
    """

    name: str
    option: str | None
    default: Any = None
    per_model: bool = False
    read: Callable[[Any], Any] = same
    write: Callable[[Any], Any] = same


@dataclass(frozen=True)
class Mergekit:
    """A method as mergekit has it.

    Attributes:
        name: the value of `merge_method` in a recipe.
        parameters: those that a recipe may give; others are errors.
        fixed: options that have one value in mergekit, by name.
        base: what base_model is: "base" (task vectors are differences from it), "first" (the first of the models),
            "model" (one more model), or "optional" (the base where it is given: task vectors are merged then).
    """

    name: str
    parameters: tuple[Parameter, ...] = ()
    fixed: tuple[tuple[str, Any], ...] = ()
    base: str = "base"


WEIGHT = Parameter("weight", "weights", per_model=True)
# Of methods that elect signs: whether the elected entries are averaged or summed.
NORMALIZE = Parameter("normalize", "aggregate", True, read=lambda mean: "mean" if mean else "sum", write=_is_mean)
# The same where mergekit's default is the sum.
UNNORMALIZED = replace(NORMALIZE, default=False)
LAMBDA = Parameter("lambda", "scale", 1.0)
INT8_MASK = Parameter("int8_mask", None, False)
DENSITY = Parameter("density", "density", 1.0, per_model=True)
DROPPED = Parameter("density", "rate", 1.0, True, lambda density: 1.0 - density, lambda rate: round(1.0 - rate, 12))
# mergekit brings back the sum of magnitudes, which in the mean over random masks is to divide by the density.
RESCALE_NORM = Parameter(
    "rescale", "rescale", True, read=lambda yes: "norm" if yes else "none", write=lambda rescale: rescale != "none"
)
RESCALED = replace(RESCALE_NORM, default=False)
GAMMA = Parameter("gamma", "gamma", 0.01, per_model=True)
