"""Documents that others may have written: JSON, checked against a schema before anything in it is used.

It is imported where a document is read, since pydantic takes as long to import as the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergekern._internal.text import shortened

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class Document(BaseModel):
    """A schema: the fields of a document and their types. A number is never text, and text never a number."""

    model_config = ConfigDict(strict=True, frozen=True)


Kind = TypeVar("Kind", bound=Document)


def read_document(path: Path, kind: type[Kind]) -> Kind:
    """Return the JSON document in a file, checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a document; the message says why in a line.
    """
    return checked(kind, parse_json(path.read_bytes()))


def parse_json(text: bytes | str) -> Any:
    """Return the content of a JSON text, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested too deeply, or has a name twice in one object.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: 'a' is there twice
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, object_pairs_hook=_no_twice)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def checked(kind: type[Kind], content: Any) -> Kind:
    """Return a document of a kind.

    Raises:
        ValueError: the content is something else; the message names the first thing that is wrong.

    >>> class Named(Document):
    ...     names: list[str]
    >>> checked(Named, {"names": ["a", 1]})
    Traceback (most recent call last):
    ValueError: names.1: input should be a valid string
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = shortened(".".join(str(part) for part in first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {said[:1].lower()}{said[1:]}" if place else said) from None


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs if len(dict(pairs)) < len(pairs) else ():
        if name in found:
            raise ValueError(f"{shortened(name)!r} is there twice")
        found[name] = value
    return dict(pairs)
