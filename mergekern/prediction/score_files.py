"""Files in which scores of merges are filled in: a plan begins one, and adds to it without changing what is there."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mergekern.errors import OutputError, PredictionError
from mergekern.tables.cells import from_cell, to_cell

COLUMNS = ("method", "model_a", "model_b")
# A method and two models.
Wanted = Sequence[tuple[str, str, str]]


def to_fill_in(wanted: Wanted, target: str) -> bytes:
    r"""Return a file in which scores are to be filled in.

    >>> to_fill_in([("tsv", "a", "b")], "accuracy")
    b'method,model_a,model_b,accuracy\ntsv,a,b,\n'
    """
    return _text([[*COLUMNS, target], *([*row, ""] for row in wanted)], "\n").encode()


def with_rows(content: bytes, wanted: Wanted, target: str) -> bytes:
    r"""Return a file of scores with rows to be filled in at its end; what is there stays, byte for byte.

    Merges that have a row already, filled in or not, get no other.

    >>> before = b"method,model_a,model_b,accuracy\ntsv,a,b,0.7"
    >>> with_rows(before, [("tsv", "b", "a"), ("tsv", "a", "c")], "accuracy")
    b'method,model_a,model_b,accuracy\ntsv,a,b,0.7\ntsv,a,c,\n'
    """
    text = content.decode("utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames = [from_cell(name) for name in reader.fieldnames or []]
    if lacking := [name for name in (*COLUMNS, target) if name not in columns]:
        raise PredictionError(f"the scores have no column {', '.join(lacking)}, so that no rows can be added")
    rows = [[from_cell(row[column] or "") for column in COLUMNS] for row in reader]
    there = {(method, frozenset(pair)) for method, *pair in rows}
    new = [
        [dict(zip(COLUMNS, row, strict=True)).get(column, "") for column in columns]
        for row in wanted
        if (row[0], frozenset(row[1:])) not in there
    ]
    end = "\r\n" if "\r\n" in text else "\n"
    gap = "" if not new or content.endswith(b"\n") else end
    return content + (gap + _text(new, end)).encode()


def check_plan(path: Path, overwrite: bool) -> None:
    """Raise OutputError unless a file may be replaced by a plan: it is a plan without any score yet, and may be."""
    if not overwrite:
        raise OutputError(
            f"{path}: is there already; pass it as --scores too, to add the plan to it, or --overwrite to replace it"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            is_plan = {*COLUMNS} <= set(reader.fieldnames or [])
            is_plan = is_plan and not any(value for row in reader for name, value in row.items() if name not in COLUMNS)
    except (OSError, ValueError, csv.Error):
        is_plan = False
    if not is_plan:
        raise OutputError(f"{path}: holds more than a plan to be filled in; only such a plan is replaced")


def _text(rows: Sequence[Sequence[str]], end: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator=end).writerows([to_cell(text) for text in row] for row in rows)
    return file.getvalue()
