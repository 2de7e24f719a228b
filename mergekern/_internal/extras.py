"""What errors say where a library of an optional extra of pyproject.toml is missing."""

from __future__ import annotations


def needs(what: str, extra: str, error: ImportError) -> str:
    r"""Return a sentence that says which extra brings a missing library.

    Args:
        what: what cannot be done without the library, such as "a report".
        extra: name of the extra.
        error: the error of the import.

    >>> needs("a report", "report", ImportError("No module named 'jinja2'"))
    'a report needs more packages (No module named \'jinja2\'): pip install "mergekern[report]"'
    """
    return f'{what} needs more packages ({error}): pip install "mergekern[{extra}]"'
