"""Weights and options of the models of a merge: one set for all tensors, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Weights and options with which the models of one tensor are merged.

    Attributes:
        weights: one for each model.
        options: all options of the method, checked; a tuple has a value for each model.
    """

    weights: tuple[float, ...]
    options: Mapping[str, Any]

    def of_model(self, place: int) -> tuple[float, str]:
        """Return what sets a model apart from others of the same content, in a form that can be sorted."""
        own = [value[place] for value in self.options.values() if isinstance(value, tuple)]
        return self.weights[place], repr(own)

    def ordered(self, order: Sequence[int]) -> Settings:
        """Return the settings of the models in another order, given by their places in this one.

        >>> Settings((1.0, 2.0), {"density": (0.1, 0.2), "scale": 0.3}).ordered([1, 0])
        Settings(weights=(2.0, 1.0), options={'density': (0.2, 0.1), 'scale': 0.3})
        """
        return Settings(tuple(self.weights[place] for place in order), select_options(self.options, order))


def select_options(options: Mapping[str, Any], models: Sequence[int]) -> dict[str, Any]:
    """Return options with the values of some models, in their order.

    >>> select_options({"density": (0.1, 0.2, 0.4), "scale": 0.3}, [2, 0])
    {'density': (0.4, 0.1), 'scale': 0.3}
    """
    return {
        name: tuple(value[model] for model in models) if isinstance(value, tuple) else value
        for name, value in options.items()
    }
