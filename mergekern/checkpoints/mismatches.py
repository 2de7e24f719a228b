"""Tensors that do not match between checkpoints, gathered in linear time and memory, and said in a few lines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.heads import named_heads
from mergekern.checkpoints.names import likely_difference
from mergekern.errors import MismatchError

# Tensors, and models of one tensor, that an error names.
_TENSORS_NAMED = 10
_MODELS_NAMED = 3


class Mismatches:
    """What does not match between a base and its models, by tensor and by what is wrong with it.

    >>> found = Mismatches(5)
    >>> for model in "abcd":
    ...     found.add("w", "in 'base' but missing in {}", model)
    >>> found.lines
    ("w: in 'base' but missing in 'a', 'b', 'c' and 1 more",)
    """

    def __init__(self, models: int) -> None:
        self._models = models
        self._found: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {}

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor does not match."""
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tensors that do not match."""
        return iter(self._found)

    def leave(self, names: Collection[str]) -> None:
        """Leave out what is wrong with these tensors: it is as it should be."""
        self._found = {name: kinds for name, kinds in self._found.items() if name not in names}

    def add(self, name: str, what: str, model: str) -> None:
        """Add what is wrong with a tensor of a model, "{}" standing for the model."""
        kinds = self._found.setdefault(name, {})
        count, named = kinds.get(what, (0, ()))
        kinds[what] = (count + 1, (*named, model) if count < _MODELS_NAMED else named)

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each tensor."""
        return tuple(
            f"{name}: {'; '.join(self._said(what, *models) for what, models in kinds.items())}"
            for name, kinds in self._found.items()
        )

    def _said(self, what: str, count: int, named: tuple[str, ...]) -> str:
        if count <= _MODELS_NAMED and count < max(self._models, _MODELS_NAMED):
            return "; ".join(what.format(repr(model)) for model in named)
        if count == self._models:
            return what.format(f"all {count} models")
        more = f" and {count - len(named)} more" if count > len(named) else ""
        return what.format(", ".join(map(repr, named)) + more)

    def error(self, base: Checkpoint, models: Sequence[Checkpoint]) -> MismatchError:
        """Return the error that names the first of them, in which part most names differ, and what to do."""
        lines = self.lines
        count = f"{len(lines):,} tensor{'s do' if len(lines) > 1 else ' does'}"
        shown = "\n  ".join(lines[:_TENSORS_NAMED])
        more = f"\n  and {len(lines) - _TENSORS_NAMED:,} more" if len(lines) > _TENSORS_NAMED else ""
        skip = 'on_mismatch="skip" (--on-mismatch skip)'
        if self._found.keys() <= named_heads((base, *models)):
            remedy = (
                'They are heads: merges keep each model\'s with heads="each" (--heads each), and metrics leave them '
            )
            remedy += f"out with {skip}."
        else:
            remedy = f"Give checkpoints of one architecture, or {skip} to leave these tensors out."
        return MismatchError(
            f"{count} not match between the checkpoints:\n  {shown}{more}\n{hint(base, models)}{remedy}"
        )


def hint(base: Checkpoint, models: Sequence[Checkpoint]) -> str:
    """Return a line on the part in which most names of a model differ from the base's; empty where there is none."""
    known = {name: tensor.shape for name, tensor in base.tensors.items()}
    for model in models:
        own = {name: tensor.shape for name, tensor in model.tensors.items()}
        if difference := likely_difference(own, known):
            old, new = (f"'{part}.'" if part else "nothing" for part in difference)
            return (
                f"Most names of {model.name!r} begin with {old} where those of {base.name!r} begin with {new}; if they "
                f'are the same tensors, pass rename={{"{difference[0]}": "{difference[1]}"}} '
                f"(--rename {difference[0]}={difference[1]} on the command line).\n"
            )
    return ""
