"""The answer of a search for the best merge, with which a page starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a page says first.

    Attributes:
        sentences: the answer, and what it rests on.
        headers: headers of a table below.
        rows: its cells.
        caption: what the table is of.
    """

    sentences: Sequence[str]
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    caption: str = ""
