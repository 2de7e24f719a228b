"""Tables of pages that a program writes: what lies between two comments, the marks of the program."""

from __future__ import annotations

from pathlib import Path

from mergekern._internal.files import write_atomically

Marks = tuple[str, str]


def with_table(page: str, marks: Marks, table: str) -> str:
    r"""Return the text of a page with what is between its marks replaced.

    >>> with_table("<!-- a -->old<!-- b -->", ("<!-- a -->", "<!-- b -->"), "new")
    '<!-- a -->\n\nnew\n\n<!-- b -->'
    """
    before, rest = page.split(marks[0])
    return f"{before}{marks[0]}\n\n{table}\n\n{marks[1]}{rest.split(marks[1])[1]}"


def write_table(path: Path, marks: Marks, table: str) -> None:
    """Replace what is between the marks of a page."""
    write_atomically(path, with_table(path.read_text("utf-8"), marks, table).encode())
