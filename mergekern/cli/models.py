"""The models that a command is given, by name; and what is said of them before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mergekern.cli.display import say

NamedPath = tuple[str | None, Path]


def models_of(given: Sequence[NamedPath], base: Path | None) -> Any:
    """Return models as the functions of the package take them.

    One folder without a name stays a path: it may hold several models. Models that would have one name are told
    apart by the folders they lie in.
    """
    from mergekern.checkpoints.sources import Source
    from mergekern.checkpoints.zoo_sources import zoo_sources

    if len(given) == 1 and given[0][0] is None:
        return [given[0][1]] if given[0][1].is_file() else given[0][1]
    models = []
    for name, path in given:
        kept = zoo_sources([path], base).models  # without the base, where it is among them
        models += [(Source.from_given(source.given, name).name, source.given, name is None) for source in kept]
    names = [name for name, _, _ in models]
    if len(set(names)) == len(names) and not any(name for name, _ in given):
        return [path for _, path, _ in models]
    names = told_apart(names, [Path(path) if may_change else None for _, path, may_change in models])
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise click.UsageError(f"several models are called {twice[0]!r}; name them yourself, as NAME=PATH")
    return {name: path for name, (_, path, _) in zip(names, models, strict=True)}


def told_apart(names: Sequence[str], paths: Sequence[Path | None]) -> list[str]:
    """Return names of which equal ones have as many folders of their paths before them as tell them apart.

    Args:
        names: names of models.
        paths: where each lies; None for a name that must stay.

    >>> told_apart(["last", "last", "mnist"], [Path("run1/last"), Path("run2/last"), Path("mnist.pt")])
    ['run1-last', 'run2-last', 'mnist']
    """
    found = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [index for index, other in enumerate(names) if other == name and paths[index] is not None]
        folders = {index: Path(os.path.abspath(paths[index] or "")).parts[1:-1] for index in alike}
        for depth in range(1, max(map(len, folders.values()), default=0) + 1):
            longer = {index: "-".join((*folders[index][-depth:], name)) for index in alike}
            if len(set(longer.values())) == len(alike):
                for index, text in longer.items():
                    found[index] = text
                break
    return found


def say_what_is_left_out(models: Any, base: Path | None) -> None:
    """Print what a folder of models holds that is none, and where models were found that are not as usual."""
    from mergekern.checkpoints.folders import find_weights
    from mergekern.checkpoints.zoo_sources import is_zoo_folder, zoo_sources
    from mergekern.tables.notes import LEFT_OUT_NAMED, few_lines

    if isinstance(models, Path) and not is_zoo_folder(models):
        return
    given = zoo_sources(models, base)
    notes = few_lines(given.left_out, LEFT_OUT_NAMED)
    for source in given.models:
        weights = find_weights(source.given) if source.kind == "path" and source.given.is_dir() else None
        notes += [f"{source.name}: {note}" for note in (*(weights.notes if weights else ()), *source.notes)]
    for note in notes:
        say(f"note: {note}")
