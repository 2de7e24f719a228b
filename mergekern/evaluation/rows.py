"""Files of scores that are filled in row by row: each row that is measured is on the disk before the next is begun."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mergekern._internal.files import write_output
from mergekern._internal.text import shortened
from mergekern.errors import EvaluationError
from mergekern.tables.cells import from_cell, to_cell

MERGE = ("method", "model_a", "model_b")
REMARKS = "remarks"
Row = dict[str, str]
# A method and two models.
Merge = tuple[str, str, str]


def normalized(score: str) -> str:
    """Return the name of the column of scores that are divided by those of the single models."""
    return f"normalized_{score}"


class RowFile:
    """A CSV file with a row for each thing that is measured; rows and columns that are there stay as they are.

    Args:
        path: where it is, or is to be; None for rows that are in memory only.
        columns: those that it must have; the ones it lacks are added at its end.
        numbers: the columns of numbers, whose cells may be empty.

    Attributes:
        rows: its rows, column -> text, in the order of the file.

    Raises:
        EvaluationError: the file cannot be read as such rows.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], numbers: Sequence[str]) -> None:
        self.path = path
        self._end = "\n"
        found: list[str] = list(columns)
        self.rows: list[Row] = []
        if path is not None and path.exists():
            text = _text(path)
            self._end = "\r\n" if "\r\n" in text else "\n"
            found, self.rows = _parsed(path, text)
        self.columns = [*found, *(name for name in columns if name not in found)]
        for row in self.rows:
            row.update({name: "" for name in self.columns if name not in row})
        for number, row in enumerate(self.rows, 2):
            for name in numbers:
                if row[name].strip() and not _is_number(row[name]):
                    raise EvaluationError(
                        f"{path}, row {number}: {shortened(row[name])!r} in the column {name} is no number; leave "
                        "empty what was not measured"
                    )

    def add(self, row: Row) -> Row:
        """Add a row at the end, and return it."""
        self.rows.append({name: row.get(name, "") for name in self.columns})
        return self.rows[-1]

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        if self.path is None:
            return
        file = io.StringIO()
        writer = csv.writer(file, lineterminator=self._end)
        writer.writerow([to_cell(name) for name in self.columns])
        writer.writerows([to_cell(row[name]) for name in self.columns] for row in self.rows)
        write_output(self.path, file.getvalue().encode())


def read_pairs(path: Path) -> list[Merge]:
    r"""Return the pairs of models that a file lists, each with its method, "" where there is none.

    A file of scores, a plan, and what `mergekern recommend` writes are such files; each pair is returned once for a
    method.

    Raises:
        EvaluationError: the file cannot be read, or does not name two models in each row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "pairs.csv").write_text("model_a,model_b\na,b\nb,a\n")
    ...     read_pairs(Path(folder, "pairs.csv"))
    [('', 'a', 'b')]
    """
    columns, rows = _parsed(path, _text(path))
    if lacking := [name for name in MERGE[1:] if name not in columns]:
        raise EvaluationError(
            f"{path}: no column {' or '.join(map(repr, lacking))}; pairs are a CSV file with the columns "
            f"model_a,model_b, this one has {','.join(columns) or 'none'}"
        )
    found: dict[tuple[str, frozenset[str]], Merge] = {}
    for line, row in enumerate(rows, 2):
        merge = (row.get("method", ""), row["model_a"], row["model_b"])
        if not all(merge[1:]) or merge[1] == merge[2]:
            raise EvaluationError(f"{path}, row {line}: a pair is of two models, not {merge[1]!r} and {merge[2]!r}")
        found.setdefault((merge[0], frozenset(merge[1:])), merge)
    return list(found.values())


def unique_pairs(merges: Iterable[Merge]) -> Iterator[tuple[str, str]]:
    """Yield each pair of models once.

    >>> list(unique_pairs([("ties", "a", "b"), ("tsv", "b", "a")]))
    [('a', 'b')]
    """
    seen = set()
    for _, first, second in merges:
        if frozenset((first, second)) not in seen:
            seen.add(frozenset((first, second)))
            yield first, second


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _text(path: Path) -> str:
    try:
        # Line ends as they are.
        with path.open(newline="", encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from error


def _parsed(path: Path, text: str) -> tuple[list[str], list[Row]]:
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    except csv.Error as error:
        raise EvaluationError(f"{path}: is no CSV file ({error})") from error
    if not lines:
        raise EvaluationError(f"{path}: is empty; a CSV file begins with the names of its columns")
    columns = [from_cell(name.strip()) for name in lines[0]]
    if len(set(columns)) < len(columns):
        raise EvaluationError(f"{path}: two columns have one name")
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) != len(columns):
            raise EvaluationError(
                f"{path}, row {number}: {len(cells)} values for the {len(columns)} columns of its header"
            )
        rows.append(dict(zip(columns, map(from_cell, cells), strict=True)))
    return columns, rows
