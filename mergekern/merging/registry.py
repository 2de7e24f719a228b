"""The merge methods by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergekern.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from mergekern.merging.method import Method


class Methods(Mapping[str, "Method"]):
    """The merge methods by name, each imported when it is looked up: names alone need no torch.

    Args:
        where: module and attribute of each method in `mergekern.merging`, by the method's name.
    """

    def __init__(self, where: Mapping[str, str]) -> None:
        self._where = dict(where)

    def __getitem__(self, name: str) -> Method:
        """Return a method."""
        module, _, attribute = self._where[name].partition(":")
        method: Method = getattr(import_module(f"mergekern.merging.{module}"), attribute)
        return method

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in the order of the documentation."""
        return iter(self._where)

    def __len__(self) -> int:
        """Return how many methods there are."""
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a method of this name, without importing it."""
        return name in self._where


METHODS = Methods(
    {
        "weight_average": "weight_average:METHOD",
        "linear": "linear:METHOD",
        "slerp": "slerp:METHOD",
        "nuslerp": "nuslerp:METHOD",
        "multislerp": "multislerp:METHOD",
        "karcher": "karcher:METHOD",
        "model_stock": "model_stock:METHOD",
        "task_arithmetic": "task_arithmetic:METHOD",
        "ties": "ties:METHOD",
        "dare": "dare:METHOD",
        "dare_ties": "dare:DARE_TIES",
        "breadcrumbs": "breadcrumbs:METHOD",
        "breadcrumbs_ties": "breadcrumbs:BREADCRUMBS_TIES",
        "della": "della:METHOD",
        "della_linear": "della:DELLA_LINEAR",
        "sce": "sce:METHOD",
        "ram": "ram:METHOD",
        "ramplus_tl": "ram:RAMPLUS_TL",
        "tsv": "tsv:METHOD",
        "isotropic": "isotropic:METHOD",
        "isotropic_cts": "isotropic_cts:METHOD",
        "tall_masks": "tall_masks:METHOD",
        "arcee_fusion": "arcee_fusion:METHOD",
        "nearswap": "nearswap:METHOD",
    }
)


# Methods that also run the models, on samples of their tasks.
SAMPLED_METHODS = Methods({"regmean": "regmean:METHOD", "fisher": "fisher:METHOD"})
EVERY_METHOD = (*METHODS, *SAMPLED_METHODS)


def methods_for(models: int) -> list[str]:
    """Return the names of the methods that merge groups of this many models.

    >>> "slerp" in methods_for(2), "slerp" in methods_for(3)
    (True, False)
    """
    return [name for name, method in METHODS.items() if method.merges(models)]


def find_method(name: str, options: Mapping[str, Any] | None = None) -> tuple[Method, dict[str, Any]]:
    """Return a method and all its options, checked.

    Args:
        name: one of `METHODS`, or of `SAMPLED_METHODS`.
        options: values of its options, by name; the others have their defaults.

    Raises:
        OptionError: an unknown method or option, with the nearest name; a value that is out of range.

    >>> find_method("ties", {"density": 0.5})[1]
    {'density': 0.5, 'scale': 0.3, 'scope': 'tensor', 'aggregate': 'mean', 'sign': 'mass'}
    """
    method = METHODS.get(name) or SAMPLED_METHODS.get(name)
    if method is None:
        known = ", ".join(EVERY_METHOD)
        raise OptionError(f"unknown merge method {name!r}{did_you_mean(name, EVERY_METHOD)}; known: {known}")
    options = dict(options or {})
    for option in options:
        if option not in method.defaults:
            known = ", ".join(method.defaults) or "none"
            nearest = did_you_mean(option, method.defaults)
            raise OptionError(f"{name} has no option {option!r}{nearest}; its options: {known}")
    return method, method.resolve(options)


def find_methods(
    methods: str | Iterable[str], options: Mapping[str, Mapping[str, Any]] | None
) -> list[tuple[Method, dict[str, Any]]]:
    """Return several methods, each with its own options, checked.

    Raises:
        OptionError: as for `find_method`; no method is given, or one twice, or options for another.

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
