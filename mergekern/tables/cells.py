"""Cells of CSV files: text that a spreadsheet would run as a formula is written so that it does not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What starts a formula, also in its full-width forms (OWASP, CSV injection), after any number of our own marks.
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


def to_cell(text: str) -> str:
    """Return a text as a cell: after an apostrophe, as spreadsheets write it, where it would start a formula.

    >>> to_cell("=SUM(A1)"), to_cell("plain"), to_cell("'tis")
    ("'=SUM(A1)", 'plain', "'tis")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """Return the text that `to_cell` made a cell of.

    >>> [from_cell(to_cell(text)) for text in ("=1", "'=1", "'tis", "-")]
    ['=1', "'=1", "'tis", '-']
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def to_csv(frame: pd.DataFrame, *, index: bool = True) -> bytes:
    r"""Return a frame as a CSV file in UTF-8; numbers are as pandas writes them, texts and headings are cells.

    Raises:
        UnicodeEncodeError: a text is not Unicode, such as the name of a file that is not.

    >>> import pandas as pd
    >>> to_csv(pd.DataFrame({"model": ["=1"], "score": [-0.5]}), index=False)
    b"model,score\n'=1,-0.5\n"
    """
    cells = frame.reset_index() if index else frame.copy()
    for column in cells:
        if cells[column].dtype.kind not in "fiub":
            cells[column] = cells[column].map(_cell)
    return cells.rename(columns=_cell).to_csv(index=False).encode()


def _cell(value: Any) -> Any:
    return to_cell(value) if isinstance(value, str) else value
