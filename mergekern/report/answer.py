"""The answer with which a page starts: what was found, the best merges, the methods, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Bar:
    """An interval and the score in it, drawn beside a row; all in percent of the width.

    Attributes:
        start: where the interval starts.
        width: width of the interval.
        at: place of the score.
    """

    start: float
    width: float
    at: float


@dataclass(frozen=True)
class Methods:
    """Merge methods beside each other.

    Attributes:
        caption: what the table is of.
        headers: headers of the table.
        rows: its cells.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Step:
    """A thing to do next.

    Attributes:
        text: what, and why.
        command: for a shell; "" without one.
    """

    text: str
    command: str = ""


@dataclass(frozen=True)
class Answer:
    """What a page says first.

    Attributes:
        sentences: the answer, and what it rests on.
        headers: headers of a table below.
        rows: its cells.
        caption: what the table is of.
        bars: an interval for each row, or none.
        methods: a table of the merge methods; None where there are fewer than two.
        steps: what to do next.
        pair: the two models that the page shows first; None for the pair that the first column ranks first.
        method: the merge method by whose scores it ranks the pairs; None for the first one.
        hint: what else to know of the table; "" for nothing.
    """

    sentences: Sequence[str]
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    caption: str = ""
    bars: Sequence[Bar | None] = ()
    methods: Methods | None = None
    steps: Sequence[Step] = ()
    pair: tuple[str, str] | None = None
    method: str | None = None
    hint: str = ""

    def completed(self, other: Answer) -> Answer:
        """Return this answer with what another one has and this one lacks, other than sentences and their table.

        >>> Answer(["Merge a and b."]).completed(Answer(["Merge b and c."], steps=[Step("Rest.")])).steps
        [Step(text='Rest.', command='')]
        """
        lacking = [name for name in ("methods", "steps", "pair", "method") if not getattr(self, name)]
        return replace(self, **{name: getattr(other, name) for name in lacking})


def bars_between(intervals: Sequence[tuple[float, float, float]]) -> list[Bar]:
    """Return the bars of (low, score, high), all on one scale from the lowest low to the highest high.

    >>> bars_between([(0.2, 0.4, 0.6), (0.6, 0.6, 1.0)])[0]
    Bar(start=0.0, width=50.0, at=25.0)
    """
    lowest = min(low for low, _, _ in intervals)
    extent = max(high for _, _, high in intervals) - lowest or 1.0

    def place(value: float) -> float:
        return round(100 * (value - lowest) / extent, 2)

    return [Bar(place(low), round(place(high) - place(low), 2), place(at)) for low, at, high in intervals]
