"""Recipes as they are given, a file or a mapping, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergekern.errors import OptionError
from mergekern.merging.option_checks import plain

if TYPE_CHECKING:
    from mergekern.merging.recipes.schema import Recipe

# A recipe is some kilobytes long; weights that are given in its place are not read.
_LONGEST = 1 << 20


class Given(NamedTuple):
    """A recipe that was read.

    Attributes:
        recipe: checked.
        content: as plain values, for the record.
        place: the folder that its paths may count from besides the working folder; None for a mapping.
        shown: what messages call it.
    """

    recipe: Recipe
    content: dict[str, Any]
    place: Path | None
    shown: str


def read_recipe(given: str | os.PathLike[str] | Mapping[str, Any]) -> Given:
    """Return a recipe, checked against its schema.

    Raises:
        OptionError: it is no YAML, no recipe, or has keys that are not known or not supported.

    >>> read_recipe({"merge_method": "linear", "modells": []})
    Traceback (most recent call last):
    mergekern.errors.OptionError: the recipe: unknown key 'modells' (did you mean 'models'?); known are base_model, ...
    """
    from mergekern._internal.documents import checked
    from mergekern.merging.recipes.schema import Recipe

    if isinstance(given, Mapping):
        content, place, shown = _plain(given), None, "the recipe"
    elif isinstance(given, str | os.PathLike):
        place, shown = Path(os.path.abspath(given)).parent, os.fspath(given)
        content = _parsed(Path(given))
    else:
        raise OptionError(f"a recipe is the path of a YAML file or a mapping, not {type(given).__name__}")
    try:
        return Given(checked(Recipe, content), content, place, shown)
    except ValueError as error:
        raise OptionError(f"{shown}: {error}") from None


def _plain(value: Any) -> Any:
    """Return a value of Python as YAML would give it."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else plain(value)


def _parsed(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Loads plain values alone; a key that is there twice is an error."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := [key for key in keys if isinstance(key, str) and key != "<<" and keys.count(key) > 1]:
                raise ValueError(f"the key {twice[0]!r} is there twice{node.start_mark}")
            return super().construct_mapping(node, deep)

    try:
        if path.stat().st_size > _LONGEST:
            raise OptionError(f"{path}: is no recipe, which is a short YAML file")
        documents = list(yaml.load_all(path.read_text("utf-8-sig"), Loader))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"{path}: is not YAML ({what})") from None
    if len(documents) != 1:
        raise OptionError(f"{path}: holds {len(documents)} YAML documents; a recipe is one, so write each to its file")
    return documents[0]
