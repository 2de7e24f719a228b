"""The options of combinations, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekern._internal.validation import one_of, positive_integer
from mergekern.errors import OptionError
from mergekern.merging.adapters.registry import MAJORITY_SIGNS, find_combination
from mergekern.merging.option_checks import integer, number, plain

DEFAULTS = {"density": None, "svd_rank": None, "majority_sign": "total", "seed": 0}


def resolve_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a combination takes.

    Args:
        name: the combination's name.
        given: values of all options, with their defaults.

    Raises:
        OptionError: there is no such combination; an option is missing, out of range, or not taken.

    >>> resolve_options("cat", {"density": 0.5})
    Traceback (most recent call last):
    mergekern.errors.OptionError: cat takes no density; it takes no options
    """
    combination = find_combination(name)
    options = {option: plain(value) for option, value in given.items()}
    for option, value in options.items():
        if value != DEFAULTS[option] and option not in combination.options:
            raise OptionError(f"{name} takes no {option}; it takes {', '.join(combination.options) or 'no options'}")
    if "density" in combination.options:
        if options["density"] is None:
            raise OptionError(f"{name} needs a density, the share of the elements that are kept, such as density=0.5")
        number(0, 1, open_low=True)("density", options["density"])
    if options.get("svd_rank") is not None:
        positive_integer("svd_rank", options["svd_rank"])
    if "majority_sign" in combination.options:
        one_of("majority_sign", options["majority_sign"], MAJORITY_SIGNS)
    if "seed" in combination.options:
        integer(0)("seed", options["seed"])
    return {option: options[option] for option in combination.options}
