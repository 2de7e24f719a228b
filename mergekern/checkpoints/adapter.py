"""PEFT adapter folders: LoRA factors, and the tensors that are saved whole beside them.

Of a matrix W of the base an adapter holds A (r, n) and B (m, r), and means W + s·BA with s = lora_alpha / r, or
lora_alpha / √r with `use_rslora` (arXiv 2106.09685, 2312.03732). The task matrix s·BA is known without the base, and
is used as it is: nothing is materialised until somebody reads the tensor.

Facts of the format are those of PEFT (https://github.com/huggingface/peft); what changes weights in another way is
refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch

from mergekern.checkpoints.checkpoint import Change, Checkpoint, Factors, StoredTensor
from mergekern.checkpoints.sources import ADAPTER_CONFIG
from mergekern.errors import CheckpointError, MismatchError

_MERGE = "merge it into its base (PeftModel.merge_and_unload, save_pretrained) and give the result"
# Methods of PEFT that add inputs to a model and change no weight of it.
_PROMPTS = {
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
}  # fmt: skip
# Options that say what s·BA is, and those that do not touch it once it is trained.
_HONOURED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "merge_weights", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Of `init_lora_weights`: those that leave the base as it is. Others subtract their first s·BA from it.
_INITIALISATIONS = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}

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


class Adapter(Checkpoint):
    """A LoRA adapter of PEFT. Until it is bound to a base it has the tensors that it changes; then all of the base's.

    Attributes:
        base_name: name of the model it was trained on, as its configuration says; None if it says none.
    """

    def __init__(self, inner: Checkpoint, config: Mapping[str, Any], name: str, source: str) -> None:
        super().__init__(name, source)
        options = _Options(config, source)
        self.base_name = config.get("base_model_name_or_path") or None
        self._inner = inner
        self.files = inner.files
        self._parts = _parts(inner, options, source)
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
        adapter = object.__new__(Adapter)
        Checkpoint.__init__(adapter, self.name, self.source)
        adapter.origin, adapter.location, adapter.files = self.origin, self.location, self.files
        adapter.notes += self.notes
        adapter.base_name, adapter._inner, adapter._base, adapter._equals_base = self.base_name, self._inner, base, {}
        adapter._parts = _in_names_of(base, self._parts)
        adapter.buffers, adapter.order = list(base.buffers), list(base.order)
        for name, tensor in base.tensors.items():
            adapter.tensors[name] = StoredTensor(name, tensor.shape, tensor.read_dtype, ("base", tensor.storage))
        for target, parts in list(adapter._parts.items()):
            for name in _tied_with(target, base) if parts.a else [target]:
                if name != target and name in adapter._parts:
                    raise CheckpointError(
                        f"{self.source}: changes {target!r} and {name!r}, which are one tensor in the base; {_MERGE}"
                    )
                adapter._parts[name] = parts
                adapter._add_changed(name, target)
        adapter._finish()
        return adapter

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
        holders: dict[str, Adapter] = {}
        for adapter in adapters:
            for name, tensor in adapter.tensors.items():
                if name not in adapter.needs_base and name not in holders:
                    holders[name] = adapter
                    self._add(name, tensor.shape, torch.float64, name)
        for name, holder in holders.items():
            short = name
            while short and (short := short.partition(".")[2]):
                other = holders.get(short)
                if other is not None and short not in holder.tensors and name not in other.tensors:
                    raise MismatchError(
                        f"{holder.name!r} changes {name!r} where {other.name!r} changes {short!r}: adapters of one "
                        "model wrapped in different ways; pass base=PATH, by whose names they are matched"
                    )
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


@dataclass(frozen=True)
class _Options:
    """What an adapter's configuration says of its factors, once everything else in it is refused."""

    config: Mapping[str, Any]
    source: str

    def __post_init__(self) -> None:
        kind = str(self.config.get("peft_type")).rpartition(".")[2].upper()
        if kind in _PROMPTS:
            self.refuse(f"a {kind} adapter, which changes no weights", "leave it out: it has no task vector")
        if kind != "LORA":
            self.refuse(f"peft_type {self.config.get('peft_type')!r}; of adapters only LoRA is read", _MERGE)
        for name, value in self.config.items():
            if value and name not in _HONOURED | _WITHOUT_EFFECT:
                self.refuse(f"{name}={value!r}, which is more than s·BA", _MERGE)
        start = str(self.config.get("init_lora_weights")).lower()
        if start not in _INITIALISATIONS:
            self.refuse(
                f"init_lora_weights={start!r}, with which loading the adapter changes its base",
                "convert it (save_pretrained with path_initial_model_for_weight_conversion), or " + _MERGE,
            )

    def refuse(self, what: str, remedy: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: {ADAPTER_CONFIG} says {what}: {remedy}")

    def scale(self, module: str, rank: int) -> float:
        """Return s of a module whose factors have this rank."""
        r = self._number("r", "rank_pattern", module, 8)
        if r != rank:
            raise CheckpointError(
                f"{self.source}: the LoRA factors of {module!r} have rank {rank}, but {ADAPTER_CONFIG} says {r}"
            )
        alpha = self._number("lora_alpha", "alpha_pattern", module, 8)
        return alpha / (math.sqrt(r) if self.config.get("use_rslora") else r)

    def _number(self, name: str, pattern: str, module: str, default: float) -> float:
        try:
            found = self.config.get(name, default)
            for key, value in (self.config.get(pattern) or {}).items():
                if re.match(rf"(.*\.)?({key})$", module):
                    found = value
                    break
            if isinstance(found, bool) or not (isinstance(found, int | float) and math.isfinite(found)):
                raise TypeError(f"{name} is {found!r}")
        except (TypeError, AttributeError, re.error) as error:
            raise CheckpointError(
                f"{self.source}: {ADAPTER_CONFIG}: {name} or {pattern} is of no use ({error})"
            ) from error
        return found


def _parts(inner: Checkpoint, options: _Options, source: str) -> dict[str, _Parts]:
    """Return what an adapter's file holds, by the name of the tensor that it is about."""
    factors: dict[tuple[str, str], dict[str, str]] = {}
    whole: dict[str, str] = {}
    for stored in inner.tensors:
        found = _FACTOR.fullmatch(stored) or _EMBEDDING_FACTOR.fullmatch(stored)
        if found:
            parts = found.groupdict()
            if ".base_layer" in parts["module"]:
                # Parameters of one module wrapped one in another. PEFT adds that of attention's output twice.
                raise CheckpointError(f"{source}: {stored!r} is a factor of a wrapped torch.nn module; {_MERGE}")
            kind = parts.get("what", "embedding")
            sides = factors.setdefault((_plain(parts["module"]), kind), {})
            if sides.setdefault(parts["side"], stored) != stored:
                raise CheckpointError(
                    f"{source}: {sides[parts['side']]!r} and {stored!r} are two adapters in one; {_MERGE}"
                )
        elif _OTHER_PARTS.search(stored):
            raise CheckpointError(f"{source}: {stored!r} is more than LoRA factors; {_MERGE}")
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
    inner: Checkpoint, options: _Options, module: str, kind: str, sides: Mapping[str, str], whole: str | None
) -> _Parts:
    if kind == "bias" and "B" in sides:
        # A bias of B adds s·b: the one column of a left factor, whose right one is 1.
        (size,) = inner.tensors[sides["B"]].shape
        rank = inner.tensors[sides["B"].removesuffix("bias") + "weight"].shape[1]
        return _Parts((size,), whole, sides["B"], sides["B"], options.scale(module, rank))
    if sides.keys() != {"A", "B"}:
        raise CheckpointError(f"{options.source}: of {module!r} only {next(iter(sides.values()))!r} is there")
    a, b = (inner.tensors[sides[side]].shape for side in "AB")
    if not (len(a) == len(b) >= 2 and b[1] == a[0] > 0 and all(size == 1 for size in b[2:])):
        raise CheckpointError(
            f"{options.source}: the LoRA factors of {module!r} have shapes {a} and {b}; (r, n) and (m, r) are read, "
            f"and those of convolutions in one group. Otherwise {_MERGE}"
        )
    is_transposed = kind == "embedding" or (len(a) == 2 and bool(options.config.get("fan_in_fan_out")))
    shape = (a[1], b[0]) if is_transposed else (b[0], *a[1:])
    return _Parts(shape, whole, sides["B"], sides["A"], options.scale(module, a[0]), is_transposed)


def _plain(name: str) -> str:
    """Return the name that a module or tensor has in the base.

    >>> _plain("base_model.model.q_proj.base_layer.bias"), _plain("base_model.model.head.modules_to_save.weight")
    ('q_proj.bias', 'head.weight')
    """
    return _WRAPPER.sub("", name.removeprefix(_PREFIX))


def _tied_with(name: str, base: Checkpoint) -> list[str]:
    if name not in base.tensors:
        return [name]
    storage = base.tensors[name].storage
    return [other for other, tensor in base.tensors.items() if tensor.storage == storage]


def _in_names_of(base: Checkpoint, parts: Mapping[str, _Parts]) -> dict[str, _Parts]:
    """Return the parts by the base's names: a model may have been loaded with another prefix than it was saved with."""
    targets = [name for name, part in parts.items() if part.a] or list(parts)
    first = targets[0]
    longer = [(name.removesuffix(first), "") for name in base.tensors if name.endswith(f".{first}")]
    shorter = [("", first[: -len(name)]) for name in base.tensors if first.endswith(f".{name}")]

    def fits(added: str, removed: str) -> bool:
        return all(added + name.removeprefix(removed) in base.tensors for name in targets)

    changes = [change for change in (*longer, *shorter) if fits(*change)]
    added, removed = changes[0] if len(changes) == 1 and not fits("", "") else ("", "")
    return {added + name.removeprefix(removed): part for name, part in parts.items()}
