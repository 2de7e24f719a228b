"""Names of one model's tensors in two checkpoints: the renaming by which they are the same, where there is just one.

Wrappers such as `torch.compile` leave parts of their own in names, a body that is saved alone lacks the prefix that the
model around it gives, and transformers has moved parts about (https://github.com/huggingface/transformers/pull/37033).
So parts of names may be added, removed or moved. One word is never taken for another: `encoder` is not `decoder`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mergekern.errors import MismatchError, OptionError

if TYPE_CHECKING:
    from mergekern.checkpoints.checkpoint import Checkpoint

Shapes = Mapping[str, tuple[int, ...]]

# Parts of names that wrappers of modules add: of data parallelism, torch.compile, FSDP, activation checkpointing,
# Lightning and Opacus.
WRAPPERS = frozenset({
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module",
    "_module",
})  # fmt: skip
# Ends of names that were spelled otherwise once, and that transformers reads as what they are now.
_SPELLINGS = {
    "LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias",
    "weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1",
}  # fmt: skip
# Rules that together still are one mapping; transformers needs four for a model of text and images.
_MOST_RULES = 8
# Names of one ending beyond which none is tried: which of them is meant cannot be told.
_MOST_CANDIDATES = 16


class Rule(NamedTuple):
    """The beginning of names, and what stands there instead; "#" stands for any number, the same in both."""

    old: tuple[str, ...]
    new: tuple[str, ...]

    @classmethod
    def between(cls, old: Sequence[str], new: Sequence[str]) -> Rule:
        """Return the rule that turns one beginning into another, whatever numbers both have.

        >>> Rule.between(["h", "0"], ["h", "0", "inner"])
        Rule(old=('h', '#'), new=('h', '#', 'inner'))
        """
        if [part for part in old if part.isdigit()] == [part for part in new if part.isdigit()]:
            old, new = (["#" if part.isdigit() else part for part in parts] for parts in (old, new))
        return cls(tuple(old), tuple(new))

    def apply(self, name: str) -> str | None:
        """Return the name with its beginning replaced; None if it begins otherwise.

        >>> Rule(("h", "#"), ("layer", "#")).apply("h.7.bias"), Rule(("h",), ()).apply("hh.bias")
        ('layer.7.bias', None)
        """
        parts = name.split(".")
        if len(parts) <= len(self.old):
            return None
        numbers = []
        for part, expected in zip(parts, self.old, strict=False):
            if expected == "#" and part.isdigit():
                numbers.append(part)
            elif part != expected:
                return None
        beginning = [numbers.pop(0) if part == "#" and numbers else part for part in self.new]
        return ".".join([*beginning, *parts[len(self.old) :]])

    def reversed(self) -> Rule:
        """Return the rule of the other direction."""
        return Rule(self.new, self.old)

    def __str__(self) -> str:
        """Return it as it is said of a checkpoint, beside the base."""
        return _difference(".".join(self.old), ".".join(self.new))


def _difference(old: str, new: str) -> str:
    if not old:
        return f"its names lack the prefix '{new}.' of the base's"
    if not new:
        return f"its names have the prefix '{old}.', which the base's lack"
    return f"its names have '{old}.' where the base's have '{new}.'"


@dataclass(frozen=True)
class Bridge:
    """What one checkpoint calls tensors that another calls differently.

    Attributes:
        names: own name -> the other's.
        rules: by which beginnings of names differ.
        notes: what is said of it.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()

    def rename(self, name: str) -> str:
        """Return any name by the same rules, wrappers removed."""
        plain = canonical(name)
        found = (rule.apply(plain) for rule in self.rules)
        return next((new for new in found if new is not None), plain if self.rules else name)


def canonical(name: str) -> str:
    """Return a name without the parts of wrappers, in the spelling of today.

    >>> canonical("_orig_mod.module.h.0._checkpoint_wrapped_module.LayerNorm.gamma")
    'h.0.LayerNorm.weight'
    """
    if any(wrapper in name for wrapper in WRAPPERS):
        name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    for old, new in _SPELLINGS.items():
        if name.endswith(f".{old}"):
            return name.removesuffix(old) + new
    return name


def bridge(own: Shapes, known: Shapes) -> Bridge:
    """Return how names of a checkpoint become those of another one; nothing where it cannot be told.

    Beginnings of names are replaced only if all tensors of the side with fewer then match, in shape too, and only one
    replacement does it. Names that are the same already stay. Time is linear in the names.

    >>> bridge({"bert.w": (2,), "bert.b": (3,), "head.w": (5,)}, {"w": (2,), "b": (3,)}).notes
    ("its names have the prefix 'bert.', which the base's lack",)
    """
    names: dict[str, str] = {}
    notes: dict[str, None] = {}
    free = {name: shape for name, shape in known.items() if name not in own}
    ours = _by_canonical(name for name in own if name not in known)
    theirs = _by_canonical(free)
    for plain, name in list(ours.items()):
        other = theirs.get(plain)
        if other is not None and own[name] == free[other]:
            names[name] = other
            notes |= dict.fromkeys(_spelling_notes(name, other))
            del ours[plain], theirs[plain]
    left = {plain: own[name] for plain, name in ours.items()}
    right = {plain: free[name] for plain, name in theirs.items()}
    is_within = len(left) <= len(right)
    rules = tuple(_rules(left, right) if is_within else _rules(right, left))
    for plain in left if is_within and rules else ():
        names[ours[plain]] = theirs[_renamed(plain, rules)]
    for plain in right if rules and not is_within else ():
        names[ours[_renamed(plain, rules)]] = theirs[plain]
    rules = rules if is_within else tuple(rule.reversed() for rule in rules)
    return Bridge(names, rules, (*notes, *map(str, rules)))


def _by_canonical(names: Iterable[str]) -> dict[str, str]:
    """Return names by their canonical forms, those alone that no other name shares."""
    found: dict[str, str | None] = {}
    for name in names:
        plain = canonical(name)
        found[plain] = None if plain in found else name
    return {plain: name for plain, name in found.items() if name is not None}


def _spelling_notes(name: str, other: str) -> Iterable[str]:
    """Yield in which wrappers and spellings two names of one canonical form differ."""
    ours, theirs = (Counter(part for part in n.split(".") if part in WRAPPERS) for n in (name, other))
    for wrapper in ours - theirs:
        yield f"its names have the wrapper '{wrapper}.', which the base's lack"
    for wrapper in theirs - ours:
        yield f"its names lack the wrapper '{wrapper}.' of the base's"
    for pair in _SPELLINGS.items():
        for old, new in (pair, pair[::-1]):
            if name.endswith(old) and other.endswith(new):
                yield f"its names have '{old}' where the base's have '{new}'"


def _renamed(name: str, rules: Sequence[Rule]) -> str:
    return next(new for new in (rule.apply(name) for rule in rules) if new is not None)


def _rules(fewer: Shapes, more: Shapes) -> list[Rule]:
    """Return the rules that turn all names of one side into different ones of the other; none where there are not."""
    left = dict(fewer)
    rules: list[Rule] = []
    while left:
        rule = _rule_of(next(iter(left)), left, more) if len(rules) < _MOST_RULES else None
        if rule is None:
            return []
        rules.append(rule)
        left = {name: shape for name, shape in left.items() if rule.apply(name) is None}
    return rules if len({_renamed(name, rules) for name in fewer}) == len(fewer) else []


def _rule_of(name: str, left: Shapes, more: Shapes) -> Rule | None:
    """Return the one rule that fits a name, and the most others with it, and none of those wrongly."""
    covered: dict[Rule, int] = {}
    for other in _candidates(name, left[name], more):
        common = _common_end(name, other)
        for named in range(common):
            rule = _between(name, other, common - named)
            renamed = {new: shape for each, shape in left.items() if (new := rule.apply(each)) is not None}
            if all(more.get(new) == shape for new, shape in renamed.items()):
                covered[rule] = len(renamed)
                break
    most = max(covered.values(), default=0)
    best = [rule for rule, count in covered.items() if count == most]
    return best[0] if len(best) == 1 else None


def _candidates(name: str, shape: tuple[int, ...], names: Shapes) -> list[str]:
    """Return the names of a shape that have the parts of a name and more, or some of them and no others."""
    parts = Counter(name.split("."))
    _, _, last = name.rpartition(".")
    found = []
    for other, other_shape in names.items():
        if other_shape == shape and other.endswith(last):
            others = Counter(other.split("."))
            if (parts <= others or others <= parts) and _common_end(name, other):
                found.append(other)
    return found if len(found) <= _MOST_CANDIDATES else []


def _between(name: str, other: str, common: int) -> Rule:
    """Return the rule between the beginnings of two names, before so many common parts."""
    return Rule.between(name.split(".")[:-common], other.split(".")[:-common])


def _nearest(name: str, shape: tuple[int, ...], names: Shapes) -> list[tuple[str, int]]:
    """Return the names of a shape that share the longest end with a name, and how many parts that has."""
    most = 1
    found: list[tuple[str, int]] = []
    for other, other_shape in names.items():
        if other_shape != shape:
            continue
        common = _common_end(name, other)
        if common > most:
            most, found = common, []
        if common == most:
            found.append((other, common))
    return found if len(found) <= _MOST_CANDIDATES else []


def _common_end(name: str, other: str) -> int:
    """Return how many parts the ends of two names share.

    >>> _common_end("a.b.weight", "x.b.weight")
    2
    """
    parts, others = name.split("."), other.split(".")
    count = 0
    while count < min(len(parts), len(others)) and parts[-1 - count] == others[-1 - count]:
        count += 1
    return count


def take_names_of(base: Checkpoint, model: Checkpoint, main: Sequence[str] = ()) -> None:
    """Rename the tensors of a model as its base calls them, where it can be told, and note it.

    Args:
        base: whose names hold.
        model: to be renamed.
        main: its tensors that must be in the base, where others, such as an adapter's head of a classifier, may not be.
    """
    own, known = ({name: tensor.shape for name, tensor in c.tensors.items()} for c in (model, base))
    if own.keys() <= known.keys() or known.keys() <= own.keys():
        return
    found = bridge(own, known)
    if main and not found.rules:
        found = bridge({name: own[name] for name in main}, known)
    if not main and not found.names:  # Heads, and poolers, that only one side has, hide the renaming of the body.
        found = bridge(*({name: shape for name, shape in side.items() if _is_of_layer(name)} for side in (own, known)))
    if not found.names:
        return
    names = dict(found.names)
    for name in [*own, *model.buffers]:
        if (
            name not in known
            and name not in names
            and ((other := found.rename(name)) in known or other in base.buffers)
        ):
            names[name] = other
    unchanged = own.keys() - names.keys()
    model.rename({old: new for old, new in names.items() if new not in unchanged})
    model.notes += found.notes


def _is_of_layer(name: str) -> bool:
    """Tell whether a name is of a tensor in a numbered layer, as all of a body are but its first and last ones."""
    return any(part.isdigit() for part in name.split(".")[:-1])


def likely_difference(own: Shapes, known: Shapes) -> tuple[str, str] | None:
    """Return the parts (OLD, NEW) by which most of the names that do not match differ, for an error to say; or None."""
    left = {canonical(name): shape for name, shape in own.items() if name not in known}
    right = {canonical(name): shape for name, shape in known.items() if name not in own}
    if not left or not right:
        return None
    best: tuple[int, Rule | None] = (min(len(left), len(right)) // 2, None)
    names = list(left)
    for name in names[:: max(1, len(names) // 4)][:4]:
        for other, common in _nearest(name, left[name], right):
            rule = _between(name, other, common)
            matched = sum(rule.apply(each) in right for each in left)
            if matched > best[0]:
                best = (matched, rule)
    return None if best[1] is None else (".".join(best[1].old), ".".join(best[1].new))


def check_rename(rename: Mapping[str, str] | None) -> dict[str, str]:
    """Return what users give as `rename`, without dots at the ends.

    Raises:
        OptionError: it is no mapping from strings to strings.

    >>> check_rename({"model.": "text."})
    {'model': 'text'}
    """
    if rename is None:
        return {}
    if not isinstance(rename, Mapping) or not all(isinstance(n, str) for pair in rename.items() for n in pair):
        raise OptionError(
            f'rename is a mapping from parts of names to others, such as {{"old": "new"}}, not {rename!r}'
        )
    return {old.strip("."): new.strip(".") for old, new in rename.items()}


def renamed(names: Iterable[str], known: Iterable[str], rename: Mapping[str, str], source: str) -> dict[str, str]:
    """Return the new names of those that a user's `rename` changes.

    Args:
        names: the names of a checkpoint.
        known: names of the base, which stay as they are.
        rename: OLD -> NEW. Of each name the first place where the parts OLD stand becomes NEW: `a.b` stands in
            `x.a.b.w`, not in `xa.b.w`. An empty OLD is the beginning of every name; an empty NEW leaves the parts out.
            Where a name has several OLD, the longest counts.
        source: the checkpoint, for messages.

    Raises:
        MismatchError: two tensors would get one name.

    >>> renamed(["model.a.w", "head.w"], ["head.w"], {"model": "text.model", "": "x"}, "")
    {'model.a.w': 'text.model.a.w'}
    """
    known, everything, changed = set(known), list(names), {}
    for name in everything:
        if name in known:
            continue
        for old in sorted(rename, key=len, reverse=True):
            part, instead = (f".{text}." if text else "." for text in (old, rename[old]))
            if part in f".{name}.":
                changed[name] = f".{name}.".replace(part, instead, 1)[1:-1]
                break
    taken: dict[str, str] = {}
    for name in everything:
        if (other := taken.setdefault(changed.get(name, name), name)) != name:
            raise MismatchError(
                f"{source}: with this rename {other!r} and {name!r} both become {changed.get(name, name)!r}"
            )
    return {old: new for old, new in changed.items() if old != new}
