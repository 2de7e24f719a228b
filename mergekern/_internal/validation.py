"""Checks of arguments that several parts take."""

from __future__ import annotations

import operator
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
