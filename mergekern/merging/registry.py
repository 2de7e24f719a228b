"""The merge methods by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mergekern.errors import OptionError, did_you_mean
from mergekern.merging import (
    dare,
    isotropic,
    isotropic_cts,
    tall_masks,
    task_arithmetic,
    ties,
    tsv,
    weight_average,
)
from mergekern.merging.recipe import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        weight_average.METHOD, task_arithmetic.METHOD, ties.METHOD, dare.METHOD, dare.DARE_TIES, tsv.METHOD,
        isotropic.METHOD, isotropic_cts.METHOD, tall_masks.METHOD,
    )
}  # fmt: skip


def find_method(name: str, options: Mapping[str, Any], arguments: Iterable[str] = ()) -> tuple[Method, dict[str, Any]]:
    """Return a method and all its options, checked.

    Args:
        name: of the method.
        options: its options, by name.
        arguments: what an unknown option may be a misspelling of, beside the method's own.

    Raises:
        OptionError: an unknown method or option, with the nearest name; a value that is out of range.

    >>> find_method("ties", {"density": 0.5})[1]
    {'density': 0.5, 'scale': 0.3, 'scope': 'tensor'}
    """
    method = METHODS.get(name)
    if method is None:
        raise OptionError(f"unknown merge method {name!r}{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}")
    for option in options:
        if option not in method.defaults:
            known = ", ".join(method.defaults) or "none"
            nearest = did_you_mean(option, [*method.defaults, *arguments])
            raise OptionError(f"{name} has no option {option!r}{nearest}; its options: {known}")
    return method, method.resolve(options)


def find_methods(
    methods: str | Iterable[str], options: Mapping[str, Mapping[str, Any]] | None
) -> list[tuple[Method, dict[str, Any]]]:
    """Return several methods, each with its own options, checked.

    Raises:
        OptionError: as for `find_method`; none at all, one twice, or options of another.

    >>> [method.name for method, _ in find_methods(["ties", "tsv"], {"ties": {"density": 0.5}})]
    ['ties', 'tsv']
    """
    names = [methods] if isinstance(methods, str) else list(methods)
    if not names or len(set(names)) != len(names):
        raise OptionError("methods must be different from each other, and one at least")
    options = dict(options or {})
    for method in options:
        if method not in names:
            raise OptionError(f"options are given for {method!r}, which is not among the methods {', '.join(names)}")
    return [find_method(name, options.get(name, {})) for name in names]
