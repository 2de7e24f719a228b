"""Checks of arguments that several parts take."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

from mergekern.errors import OptionError


def positive_integer(name: str, size: Any) -> int:
    """Return an argument that is a positive integer.

    Raises:
        OptionError: it is something else.

    >>> positive_integer("top_k", 10)
    10
    """
    try:
        if (count := operator.index(size)) > 0 and size is not True:
            return count
    except TypeError:
        pass
    raise OptionError(f"{name} must be a positive integer, not {size!r}")


def share(name: str, value: Any) -> float:
    """Return an argument that is a number between 0 and 1, both excluded.

    Raises:
        OptionError: it is something else.

    >>> share("svd_tolerance", 0.01)
    0.01
    """
    if isinstance(value, Real) and 0 < float(value) < 1:
        return float(value)
    raise OptionError(f"{name} must be a number between 0 and 1, not {value!r}")


def positive_bytes(name: str, size: Any) -> int:
    """Return an argument that is a positive number of bytes, rounded down.

    Raises:
        OptionError: it is something else.

    >>> positive_bytes("max_memory", 2e9)
    2000000000
    """
    if isinstance(size, Real) and 1 <= float(size) < math.inf:
        return int(size)  # type: ignore[call-overload]
    raise OptionError(f"{name} must be a positive number of bytes, not {size!r}")


def one_of(name: str, value: Any, words: Sequence[str]) -> None:
    """Raise OptionError if an argument is none of the words that it may be.

    >>> one_of("io", "mmap", ("mmap", "pread"))
    """
    if value not in words:
        raise OptionError(f"{name} must be {' or '.join(map(repr, words))}, not {value!r}")
