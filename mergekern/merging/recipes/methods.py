"""The methods that a recipe may name."""

from __future__ import annotations

import dataclasses
from typing import Any

from mergekern.errors import OptionError, did_you_mean
from mergekern.merging import ties
from mergekern.merging.elementwise import Elementwise, Rescale
from mergekern.merging.mergekit_names import RESCALED, Mergekit, Parameter
from mergekern.merging.method import Method
from mergekern.merging.option_checks import one_of
from mergekern.merging.registry import METHODS


def _passthrough() -> Method:
    """Return the method that takes one model's tensors as they are, or scaled."""
    mergekit = Mergekit(
        "passthrough", (Parameter("scale", "weights", 1.0, per_model=True),), (("normalize", False),), base="model"
    )
    return dataclasses.replace(METHODS["linear"], name="passthrough", least=1, most=1, mergekit=mergekit)


def _ties() -> Method:
    """Return TIES with the `rescale` that mergekit has for it: each τ gets the sum of magnitudes back that it had."""
    method = METHODS["ties"]
    assert method.mergekit is not None

    def elements(rescale: Rescale, **options: Any) -> Elementwise:
        return dataclasses.replace(ties.elements(**options), keeps_norm=rescale == "norm")

    return dataclasses.replace(
        method, elements=elements, defaults={**method.defaults, "rescale": "none"},
        checks={**method.checks, "rescale": one_of("norm", "none")},
        mergekit=dataclasses.replace(method.mergekit, parameters=(*method.mergekit.parameters, RESCALED)),
    )  # fmt: skip


def methods_of_mergekit() -> dict[str, tuple[Method, Mergekit]]:
    """Return every method that mergekit has as well, by mergekit's name for it.

    >>> methods_of_mergekit()["dare_linear"][0].name
    'dare'
    """
    found: dict[str, tuple[Method, Mergekit]] = {}
    for method in (*({**METHODS, "ties": _ties()}).values(), _passthrough()):
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
