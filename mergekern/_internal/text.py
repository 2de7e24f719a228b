"""Text for messages: however much there is to name, a message stays short."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 100  # characters of what somebody else wrote
NAMED = 20


def shortened(text: str) -> str:
    """Return a text, or its beginning if it is long.

    >>> shortened("a" * 1000) == "a" * 99 + "…"
    True
    """
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def listed(names: Iterable[str], most: int = NAMED) -> str:
    """Return names with commas between them; of many, the first ones and how many more there are.

    >>> listed("abc"), listed(map(str, range(40_000)), 2)
    ('a, b, c', '0, 1 and 39,998 more')
    """
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def readable_bytes(count: float) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> readable_bytes(345_000_000)
    '345 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
