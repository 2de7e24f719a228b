"""Checks of the options of merge methods: a `Method` has one for each option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mergekern.errors import OptionError

Check = Callable[[str, Any], None]


def plain(value: Any) -> Any:
    """Return a NumPy scalar, or a tensor of no dimension, as a number of Python; anything else as it is.

    >>> plain(np.int64(3)), plain("random")
    (3, 'random')
    """
    is_scalar = isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.dim() == 0)
    return value.item() if is_scalar else value


def number(
    low: float, high: float = np.inf, *, open_low: bool = False, open_high: bool = False, optional: bool = False
) -> Check:
    """Return a check that an option is a finite number of a range.

    Args:
        low, high: the least and the largest value.
        open_low, open_high: whether that value itself is excluded.
        optional: whether None is allowed too.

    >>> number(0, 1, open_low=True)("density", 0)
    Traceback (most recent call last):
    mergekern.errors.OptionError: density must be above 0 and at most 1, not 0
    """

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        if not (is_number and (low < value or (value == low and not open_low))
                and (value < high or (value == high and not open_high))):  # fmt: skip
            upper = "" if high == np.inf else f" and {'below' if open_high else 'at most'} {high:g}"
            lower = "a number" if low == -np.inf else f"{'above' if open_low else 'at least'} {low:g}"
            raise OptionError(f"{name} must be {lower}{upper}, not {value!r}")

    return check


def one_of(*allowed: Any) -> Check:
    """Return a check that an option is one of a few values, of the same type."""

    def check(name: str, value: Any) -> None:
        if value not in allowed or type(value) not in {type(a) for a in allowed}:
            raise OptionError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")

    return check


def integer(low: int, optional: bool = False) -> Check:
    """Return a check that an option is a whole number of at least `low`, or None where it is optional."""

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise OptionError(f"{name} must be a whole number of at least {low}, not {value!r}")

    return check
