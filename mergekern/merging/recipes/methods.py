"""The methods that a recipe may name."""

from __future__ import annotations

import dataclasses

from mergekern.errors import OptionError, did_you_mean
from mergekern.merging.mergekit_names import Mergekit, Parameter
from mergekern.merging.method import Method
from mergekern.merging.registry import METHODS


def _passthrough() -> Method:
    """Return the method that takes one model's tensors as they are, or scaled."""
    mergekit = Mergekit(
        "passthrough", (Parameter("scale", "weights", 1.0, per_model=True),), (("normalize", False),), base="model"
    )
    return dataclasses.replace(METHODS["linear"], name="passthrough", least=1, most=1, mergekit=mergekit)


def methods_of_mergekit() -> dict[str, tuple[Method, Mergekit]]:
    """Return every method that mergekit has as well, by mergekit's name for it.

    >>> methods_of_mergekit()["dare_linear"][0].name
    'dare'
    """
    found: dict[str, tuple[Method, Mergekit]] = {}
    for method in (*METHODS.values(), _passthrough()):
        mergekit = method.mergekit
        if mergekit is not None and (mergekit.name not in found or method.name == mergekit.name):
            found[mergekit.name] = (method, mergekit)
    return found


def find_method_of_mergekit(name: str) -> tuple[Method, Mergekit]:
    """Return the method that mergekit calls by a name.

    Raises:
        OptionError: there is none.
    """
    known = methods_of_mergekit()
    if name not in known:
        raise OptionError(
            f"merge_method {name!r} is not supported{did_you_mean(name, known)}; supported are "
            f"{', '.join(sorted(known))}"
        )
    return known[name]
