"""Which tensors are merged, where a caller names them by patterns; all others are the base's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from mergekern._internal.text import listed
from mergekern.checkpoints import Zoo
from mergekern.errors import OptionError
from mergekern.merging.depth import fits


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Patterns of the names of tensors that are merged; `depth.fits` says what a pattern is.

    Attributes:
        only: tensors that one of them fits are merged; of none, all are.
        exclude: tensors that one of them fits are not.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def given(cls, only: str | Iterable[str] | None, exclude: str | Iterable[str] | None) -> Chosen:
        """Return what a caller gave: one pattern, several, or None."""
        return cls(*((each,) if isinstance(each, str) else tuple(each or ()) for each in (only, exclude)))

    def check(self, zoos: Iterable[tuple[str, Zoo]]) -> None:
        """Raise OptionError where a pattern fits no tensor of some zoos, each with what goes before its names."""
        names = [f"{before}{name}" for before, zoo in zoos for name in zoo.base.tensors]
        for what, patterns in (("only", self.only), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(fits(pattern, name) for name in names):
                    raise OptionError(f"{what}: no tensor has {pattern!r} in its name; names are such as {names[0]!r}")

    def of(self, zoo: Zoo, before: str = "") -> Zoo:
        """Return a zoo with the tensors that are merged, and a note on those that are not.

        Args:
            zoo: with all tensors.
            before: what goes before the names, for patterns: that of a sub-folder.
        """
        merged = {
            name
            for name, every in _names(zoo, before).items()
            if (not self.only or _any_fits(self.only, every)) and not _any_fits(self.exclude, every)
        }
        left = sorted(tensor.name for tensor in zoo.tensors if tensor.name not in merged)
        if not left:
            return zoo
        note = f"tensors that were left out of the merge, and are the base's ({len(left):,}): {listed(left)}"
        tensors = tuple(tensor for tensor in zoo.tensors if tensor.name in merged)
        return dataclasses.replace(zoo, tensors=tensors, left_out=(*zoo.left_out, note))


def _any_fits(patterns: Sequence[str], names: Sequence[str]) -> bool:
    return any(fits(pattern, name) for pattern in patterns for name in names)


def _names(zoo: Zoo, before: str) -> dict[str, list[str]]:
    """Return the names of each tensor: its own, and those that are tied to it."""
    found = {tensor.name: [f"{before}{tensor.name}"] for tensor in zoo.tensors}
    for alias, name in zoo.tied.items():
        found.get(name, []).append(f"{before}{alias}")
    return found
