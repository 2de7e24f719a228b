"""PEFT adapter folders: LoRA factors, and the tensors that are saved whole beside them.

Of a matrix W of the base an adapter holds A (r, n) and B (m, r), and means W + s·BA with s = lora_alpha / r, or
lora_alpha / √r with `use_rslora` (arXiv 2106.09685, 2312.03732). The task matrix s·BA is known without the base, and
is used as it is: nothing is materialised until somebody reads the tensor.

Facts of the format are those of PEFT (https://github.com/huggingface/peft); what changes weights in another way is
refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch

from mergekern.checkpoints.adapter_options import MERGE, AdapterOptions
from mergekern.checkpoints.checkpoint import Change, Checkpoint, Factors, StoredTensor
from mergekern.checkpoints.names import bridge, take_names_of
from mergekern.checkpoints.tying import same_values
from mergekern.errors import CheckpointError, MismatchError

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.(?P<what>weight|bias)")
_EMBEDDING_FACTOR = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?")
_OTHER_PARTS = re.compile(r"\.lora_|\.token_adapter\.|\.trainable_tokens_")
_WRAPPER = re.compile(r"\.base_layer(?=\.)|\.modules_to_save(\.default)?(?=\.)")
# Rows of a product that are computed together, wherever a read begins: the same bits for every block.
_ROWS = 256


class _Parts(NamedTuple):
    """What the file holds for one tensor: names of the factors, of the whole values, and how they are put together."""

    shape: tuple[int, ...]
    whole: str | None
    b: str | None = None
    a: str | None = None
    scale: float = 1.0
    is_transposed: bool = False


class StoredFactors(NamedTuple):
    """How an adapter's file holds the factors of one tensor, in PEFT's own shapes.

    Attributes:
        a: A, (r, n), or (r, channels, …) of a convolution; None for the bias of B, which is (m,).
        b: B, (m, r), or (m, r, 1, …) of a convolution; or that bias.
        scale: s, in s·BA.
        is_embedding: whether they are of an embedding, whose matrix is (s·BA)ᵀ.
    """

    a: StoredTensor | None
    b: StoredTensor
    scale: float
    is_embedding: bool


class Adapter(Checkpoint):
    """A LoRA adapter of PEFT. Until it is bound to a base it has the tensors that it changes; then all of the base's.

    Attributes:
        base_name: name of the model it was trained on, as its configuration says; None if it says none.
        options: what its configuration says.
    """

    def __init__(self, inner: Checkpoint, config: Mapping[str, Any], name: str, source: str) -> None:
        super().__init__(name, source)
        self.options = AdapterOptions(config, source)
        self.base_name = self.options.base_name
        self._inner = inner
        self.files = inner.files
        self._parts = _parts(inner, self.options, source)
        self._base: Checkpoint | None = None
        self._equals_base: dict[str, bool] = {}
        for target in self._parts:
            self._add_changed(target, target)
        self._finish()

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The storage dtypes of what the adapter holds."""
        return self._inner.dtypes

    @property
    def needs_base(self) -> list[str]:
        """Names of the tensors that it holds whole, whose task vectors only the base tells."""
        return [name for name, parts in self._parts.items() if parts.whole is not None]

    def bound(self, base: Checkpoint) -> Adapter:
        """Return the adapter of this base: with every tensor of it, and with the base's names.

        Raises:
            CheckpointError: two parts of the adapter change one tensor of the base, which ties them.
        """
        if self._base is base:
            return self
        take_names_of(base, self, self.factored)
        adapter = object.__new__(Adapter)
        Checkpoint.__init__(adapter, self.name, self.source)
        adapter.origin, adapter.location, adapter.files = self.origin, self.location, self.files
        adapter.base_name, adapter.options, adapter.notes = self.base_name, self.options, self.notes
        adapter._inner, adapter._base, adapter._equals_base = self._inner, base, {}
        adapter._parts = dict(self._parts)
        adapter.buffers, adapter.order = list(base.buffers), list(base.order)
        for name, tensor in base.tensors.items():
            adapter.tensors[name] = StoredTensor(name, tensor.shape, tensor.read_dtype, ("base", tensor.storage))
        tied, seen = _tied_names(base), set[str]()
        if self.options.ties_heads:
            adapter._save_ties(tied)
        for target, parts in list(adapter._parts.items()):
            others = [name for name in tied.get(target, ()) if name != target]
            same = (name for name in others if name in seen and adapter._is_saved_alike(name, target))
            adapter._add_changed(target, next(same, target))
            seen.add(target)
            for name in others if parts.a else ():
                if name in self._parts and self._parts[name].a:
                    raise CheckpointError(
                        f"{self.source}: changes {target!r} and {name!r}, which are one tensor in the base; {MERGE}"
                    )
                if name not in self._parts and name not in adapter._parts:
                    adapter._parts[name] = parts
                    adapter._add_changed(name, target)
        adapter._finish()
        return adapter

    def rename(self, names: Mapping[str, str]) -> None:
        """See `Checkpoint`; before it is bound to a base."""
        self._parts = {names.get(name, name): parts for name, parts in self._parts.items()}
        self.tensors = {}
        for target in self._parts:
            self._add_changed(target, target)

    @property
    def factored(self) -> list[str]:
        """Names of the tensors that it holds factors of."""
        return [name for name, parts in self._parts.items() if parts.a]

    def stored_factors(self, name: str) -> StoredFactors:
        """Return how the file holds the factors of a tensor, one of `factored`."""
        parts = self._parts[name]
        a, b = (self._inner.tensors[part or ""] for part in (parts.a, parts.b))
        is_embedding = _EMBEDDING_FACTOR.fullmatch(b.name) is not None
        return StoredFactors(None if parts.a == parts.b else a, b, parts.scale, is_embedding)

    def stored_whole(self, name: str) -> StoredTensor:
        """Return what the file holds of a tensor that it holds whole, one of `needs_base`."""
        return self._inner.tensors[self._parts[name].whole or ""]

    def read_stored(self, tensor: StoredTensor) -> torch.Tensor:
        """Return a tensor of the file, in its shape and dtype."""
        return self._inner.read(tensor.name)

    def _save_ties(self, tied: Mapping[str, Sequence[str]]) -> None:
        """Let what is saved whole of a tensor be saved of those tied to it too, as `ensure_weight_tying` has it."""
        for target, parts in list(self._parts.items()):
            for name in tied.get(target, ()) if parts.a is None else ():
                self._parts.setdefault(name, parts)

    def _is_saved_alike(self, name: str, other: str) -> bool:
        """Tell whether two tensors are saved whole, with equal values."""
        first, second = self._parts[name], self._parts[other]
        if first is second and first.whole:
            return True
        if first.a or second.a or first.whole is None or second.whole is None:
            return False
        return same_values(self._inner, first.whole, second.whole)

    def change(self, name: str) -> Change:
        parts = self._parts.get(name)
        if parts is None:
            return "none"
        if parts.a is None:
            return "whole"
        return "factors" if parts.whole is None or self._is_whole_of_base(name, parts.whole) else "whole"

    def factors(self, name: str) -> Factors:
        parts = self._parts[name]
        assert parts.b is not None
        b = self._inner.read(parts.b)
        a = torch.ones((1, 1), dtype=b.dtype, device="cpu") if parts.a == parts.b else self._inner.read(parts.a or "")
        left, right = b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)
        if parts.is_transposed:
            left, right = right.T, left.T
        return Factors(left, right, parts.scale)

    def bytes_of(self, name: str) -> int:
        parts = self._parts.get(name)
        if parts is None:
            return 0
        held = {part for part in (parts.whole, parts.a, parts.b) if part}
        return sum(self._inner.tensors[part].nbytes for part in held)

    def read_buffer(self, name: str) -> torch.Tensor:
        return self._known_base(name).read_buffer(name)

    def _add_changed(self, name: str, target: str) -> None:
        parts = self._parts[name]
        dtype = torch.float64 if parts.a else self._inner.tensors[parts.whole or ""].read_dtype
        self.tensors[name] = StoredTensor(name, parts.shape, dtype, ("adapter", target))

    def _is_whole_of_base(self, name: str, whole: str) -> bool:
        """Tell whether a tensor that is saved whole beside its factors is just that of the base."""
        if name not in self._equals_base:
            base = self._known_base(name)
            count, step = base.tensors[name].count, 1 << 22
            self._equals_base[name] = all(
                torch.equal(
                    base.read_range(name, start, min(start + step, count)).double(),
                    self._inner.read_range(whole, start, min(start + step, count)).double(),
                )
                for start in range(0, count, step)
            )
        return self._equals_base[name]

    def _known_base(self, name: str) -> Checkpoint:
        if self._base is None:
            raise CheckpointError(
                f"{self.source}: {name!r} is an adapter's, whose values are known with its base only; pass base=PATH"
            )
        return self._base

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        parts = self._parts.get(tensor.name)
        if parts is None:
            return self._known_base(tensor.name).read_range(tensor.name, start, stop)
        if parts.whole is not None:
            values = self._inner.read_range(parts.whole, start, stop)
        else:
            values = self._known_base(tensor.name).read_range(tensor.name, start, stop)
        return values.double() + self._delta(tensor, start, stop) if parts.a else values

    def _delta(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of s·BA, in float64."""
        left, right, scale = self.factors(tensor.name)
        wide, width = right.double(), right.shape[1]
        first, last = start // width, -(-stop // width)
        out = torch.empty((last - first, width), dtype=torch.float64, device="cpu")
        for row in range(first - first % _ROWS, last, _ROWS):
            product = (left[row : row + _ROWS].double() @ wide) * scale
            begin, end = max(row, first), min(row + _ROWS, last)
            out[begin - first : end - first] = product[begin - row : end - row]
        return out.view(-1)[start - first * width : stop - first * width]


class ImpliedBase(Checkpoint):
    """The base of adapters that was not given: names and shapes of what they change, and no values.

    Raises:
        MismatchError: the adapters call the same modules by different names, which only the base can match up.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__("base", "the base of the adapters")
        _check_same_names(adapters)
        for adapter in adapters:
            whole = set(adapter.needs_base)
            for name, tensor in adapter.tensors.items():
                if name not in whole and name not in self.tensors:
                    self._add(name, tensor.shape, torch.float64, name)
        if not self.tensors:
            raise MismatchError("the adapters hold no LoRA factors; pass base=PATH")
        self._finish()

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """None."""
        return frozenset()

    def bytes_of(self, name: str) -> int:
        return 0

    def read_buffer(self, name: str) -> torch.Tensor:
        self._refuse()

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CheckpointError("the values of the adapters' base are needed here; pass base=PATH")


def _check_same_names(adapters: Sequence[Adapter]) -> None:
    """Raise MismatchError where adapters call the same modules by different names, as far as they show it."""
    shapes: dict[str, tuple[int, ...]] = {}
    holders: dict[str, Adapter] = {}
    for adapter in adapters:
        own = {name: adapter.tensors[name].shape for name in adapter.factored}
        name, other = next(iter(bridge(own, shapes).names.items()), ("", ""))
        if name:
            raise MismatchError(
                f"{holders[other].name!r} changes {other!r} where {adapter.name!r} changes {name!r}: adapters of one "
                "model wrapped in different ways; pass base=PATH, by whose names they are matched"
            )
        shapes |= own
        holders = dict.fromkeys(own, adapter) | holders
    # Adapters that share tensors, if only by others that lie between them, call modules by the same names.
    left = [adapter for adapter in adapters if adapter.factored]
    first = left[0] if left else None
    together = set(first.factored) if first else set()
    while linked := [adapter for adapter in left if not together.isdisjoint(adapter.factored)]:
        together.update(*(adapter.factored for adapter in linked))
        left = [adapter for adapter in left if adapter not in linked]
    if left and first:
        second = left[0]
        raise MismatchError(
            f"{first.name!r} and {second.name!r} change no tensor in common ({first.factored[0]!r}, …; "
            f"{second.factored[0]!r}, …): adapters of different modules, or of one model under different names; pass "
            "base=PATH, by whose names they are matched"
        )


def _parts(inner: Checkpoint, options: AdapterOptions, source: str) -> dict[str, _Parts]:
    """Return what an adapter's file holds, by the name of the tensor that it is about."""
    factors: dict[tuple[str, str], dict[str, str]] = {}
    whole: dict[str, str] = {}
    for stored in inner.tensors:
        found = _FACTOR.fullmatch(stored) or _EMBEDDING_FACTOR.fullmatch(stored)
        if found:
            parts = found.groupdict()
            if ".base_layer" in parts["module"]:
                # Parameters of one module wrapped one in another. PEFT adds that of attention's output twice.
                raise CheckpointError(f"{source}: {stored!r} is a factor of a wrapped torch.nn module; {MERGE}")
            kind = parts.get("what", "embedding")
            sides = factors.setdefault((_plain(parts["module"]), kind), {})
            if sides.setdefault(parts["side"], stored) != stored:
                raise CheckpointError(
                    f"{source}: {sides[parts['side']]!r} and {stored!r} are two adapters in one; {MERGE}"
                )
        elif _OTHER_PARTS.search(stored):
            raise CheckpointError(f"{source}: {stored!r} is more than LoRA factors; {MERGE}")
        else:
            whole[_plain(stored)] = stored
    changed = {}
    for (module, kind), sides in factors.items():
        target = f"{module}.{'bias' if kind == 'bias' else 'weight'}"
        changed[target] = _factored(inner, options, module, kind, sides, whole.pop(target, None))
    changed |= {target: _Parts(inner.tensors[stored].shape, stored) for target, stored in whole.items()}
    if not changed:
        raise CheckpointError(f"{source}: holds no LoRA factors")
    return changed


def _factored(
    inner: Checkpoint, options: AdapterOptions, module: str, kind: str, sides: Mapping[str, str], whole: str | None
) -> _Parts:
    if kind == "bias" and "B" in sides:
        # A bias of B adds s·b: the one column of a left factor, whose right one is 1.
        shape = inner.tensors[sides["B"]].shape
        factor = inner.tensors.get(sides["B"].removesuffix("bias") + "weight")
        if "A" in sides or factor is None or len(factor.shape) < 2 or shape != factor.shape[:1]:
            raise CheckpointError(f"{options.source}: {sides['B']!r} is no bias of a factor beside it; {MERGE}")
        return _Parts(shape, whole, sides["B"], sides["B"], options.scale(module, factor.shape[1]))
    if sides.keys() != {"A", "B"}:
        raise CheckpointError(f"{options.source}: of {module!r} only {next(iter(sides.values()))!r} is there")
    a, b = (inner.tensors[sides[side]].shape for side in "AB")
    if not (len(a) == len(b) >= 2 and b[1] == a[0] > 0 and all(size == 1 for size in b[2:])):
        raise CheckpointError(
            f"{options.source}: the LoRA factors of {module!r} have shapes {a} and {b}; (r, n) and (m, r) are read, "
            f"and those of convolutions in one group. Otherwise {MERGE}"
        )
    is_transposed = kind == "embedding" or (len(a) == 2 and options.is_transposed)
    shape = (a[1], b[0]) if is_transposed else (b[0], *a[1:])
    return _Parts(shape, whole, sides["B"], sides["A"], options.scale(module, a[0]), is_transposed)


def _plain(name: str) -> str:
    """Return the name that a module or tensor has in the base.

    >>> _plain("base_model.model.q_proj.base_layer.bias"), _plain("base_model.model.head.modules_to_save.weight")
    ('q_proj.bias', 'head.weight')
    """
    return _WRAPPER.sub("", name.removeprefix(_PREFIX))


def _tied_names(base: Checkpoint) -> dict[str, list[str]]:
    """Return all names of each tensor of the base that has several, by each of them."""
    names: dict[Hashable, list[str]] = {}
    for name, tensor in base.tensors.items():
        names.setdefault(tensor.storage, []).append(name)
    return {name: every for every in names.values() if len(every) > 1 for name in every}
