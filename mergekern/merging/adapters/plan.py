"""What a merged adapter holds, tensor by tensor, with every check made before anything is computed or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from mergekern._internal.text import listed
from mergekern.checkpoints import StoredTensor
from mergekern.checkpoints.dtypes import WRITTEN_NAMES
from mergekern.checkpoints.layout import Entry
from mergekern.errors import MismatchError, OptionError
from mergekern.merging.adapters.reading import Adapters, Module
from mergekern.merging.adapters.registry import Combination, SavedWhole

_PREFIX = "base_model.model."
_HOW = (
    "without the base only their values are known, not what was learnt. Merge with the base (mergekern merge), or pass "
    "saved_whole='average' (--saved-whole average) for their weighted mean, or 'skip' to leave such tensors out"
)


@dataclass(frozen=True)
class ModuleOutput:
    """A module of the result: names of its tensors in the file, the rank, the dtype.

    Attributes:
        module: what the adapters hold of it.
        rank: rank of the result; 1 for a bias.
        a, b: the tensors that are written; `a` is None for a bias.
    """

    module: Module
    rank: int
    a: Entry | None
    b: Entry

    @property
    def entries(self) -> list[Entry]:
        """The tensors that are written."""
        return [entry for entry in (self.a, self.b) if entry]


@dataclass(frozen=True)
class WholeOutput:
    """A tensor that the result holds whole: the mean of those of some adapters, or the one that all hold."""

    name: str
    entry: Entry
    held: Mapping[int, StoredTensor]
    is_mean: bool


def plan_modules(
    adapters: Adapters, combination: Combination, svd_rank: int | None, dtype: torch.dtype | None
) -> list[ModuleOutput]:
    """Return the modules of the result.

    Raises:
        MismatchError: the combination needs equal ranks.
        OptionError: a dtype in which nothing is written; biases of B beside factors of an embedding.
    """
    largest = max(rank for module in adapters.modules for rank in module.ranks.values())
    outputs = [
        _module_output(
            module, 1 if module.is_bias else _rank(adapters, module, combination, svd_rank or largest), dtype
        )
        for module in adapters.modules
    ]
    if any(output.module.is_bias for output in outputs):
        outputs += _missing_biases(outputs)
    return outputs


def _rank(adapters: Adapters, module: Module, combination: Combination, most: int) -> int:
    ranks = module.ranks
    if combination.of == "factors":
        if len(set(ranks.values())) > 1:
            said = ", ".join(f"{rank} in {adapters.names[index]!r}" for index, rank in list(ranks.items())[:8])
            raise MismatchError(
                f"{module.name!r} has the ranks {said}; this combination adds factors up and needs equal ones. cat and "
                "svd, and the forms in _svd, take any"
            )
        return next(iter(ranks.values()))
    total = sum(ranks.values())
    if not combination.is_truncated:
        return total
    return min(most, *module.shape, *([total] if combination.of == "stack" else []))


def _module_output(module: Module, rank: int, dtype: torch.dtype | None) -> ModuleOutput:
    first = module.first
    stored = [part for held in module.held.values() for part in (held.a, held.b) if part]
    dtype = dtype or _widest(stored)
    name = f"{_PREFIX}{module.name}"
    if first.a is None:
        return ModuleOutput(module, rank, None, Entry(f"{name}.lora_B.bias", dtype, first.b.shape))
    form = "lora_embedding_{}" if first.is_embedding else "lora_{}.weight"
    a = Entry(f"{name}.{form.format('A')}", dtype, (rank, *first.a.shape[1:]))
    b = Entry(f"{name}.{form.format('B')}", dtype, (first.b.shape[0], rank, *first.b.shape[2:]))
    return ModuleOutput(module, rank, a, b)


def _missing_biases(outputs: Sequence[ModuleOutput]) -> list[ModuleOutput]:
    """Return zero biases of B for the modules without one: with lora_bias PEFT gives every module one."""
    have = {output.module.name for output in outputs if output.module.is_bias}
    missing = []
    for output in outputs:
        name = output.module.name
        if output.module.first.is_embedding:
            raise OptionError(
                f"{name!r} is an embedding, and other modules have biases of B (lora_bias); PEFT has no adapter with "
                "both"
            )
        if name not in have:
            entry = Entry(f"{_PREFIX}{name}.lora_B.bias", output.b.dtype, output.b.shape[:1])
            missing.append(ModuleOutput(Module(name, True, {}), 1, None, entry))
    return missing


def plan_whole(
    adapters: Adapters, saved_whole: SavedWhole, weights: Sequence[float], dtype: torch.dtype | None
) -> tuple[list[WholeOutput], list[str]]:
    """Return the tensors that the result holds whole, and notes on them and on those that are left out.

    What every adapter holds with equal values is kept, and so is PEFT's copy of an embedding of the base beside its
    factors. Of the rest, `saved_whole` decides.

    Raises:
        OptionError: tensors held whole that differ, or that only some adapters hold, and `saved_whole` is "error"; a
            mean whose weights are negative or sum to zero.
        MismatchError: a tensor is held whole by some adapters, and as factors by others.
    """
    if saved_whole == "skip":
        names = sorted(adapters.whole)
        return [], [f"tensors saved whole, which are left out ({len(names):,}): {listed(names)}"] if names else []
    factored = {f"{module.name}.{'bias' if module.is_bias else 'weight'}" for module in adapters.modules}
    outputs: list[WholeOutput] = []
    undecided: list[str] = []
    averaged: list[str] = []
    for name, held in sorted(adapters.whole.items()):
        is_copy = name in adapters.beside_factors
        if name in factored and not is_copy:
            raise MismatchError(
                f"{name!r} is held whole by {listed(adapters.names[index] for index in held)} and as LoRA factors by "
                "others; merge with the base (mergekern merge), or pass saved_whole='skip' to leave out the whole one"
            )
        is_same = _is_same(adapters, held) and (is_copy or len(held) == len(adapters.adapters))
        if not is_same:
            (averaged if saved_whole == "average" else undecided).append(name)
        kept = dtype or _widest(list(held.values()))
        stored = next(iter(held.values()))
        outputs.append(WholeOutput(name, Entry(_stored_name(stored), kept, stored.shape), held, not is_same))
    if undecided:
        raise OptionError(
            f"{len(undecided):,} tensors saved whole are not the same in all adapters ({listed(undecided, 3)}); {_HOW}"
        )
    for output in outputs:
        used = [weights[index] for index in output.held]
        if output.is_mean and (min(used) < 0 or not sum(used) > 0):
            raise OptionError(
                f"{output.name!r} is saved whole and averaged, for which weights must not be negative, and one must be "
                f"above 0, not {used!r}; saved_whole='skip' leaves it out"
            )
    same = [output.name for output in outputs if not output.is_mean]
    notes = [f"tensors saved whole, with equal values, which are kept ({len(same):,}): {listed(same)}"] if same else []
    if averaged:
        notes.append(
            f"tensors saved whole, of which the result has the weighted mean of the adapters that hold them "
            f"({len(averaged):,}): {listed(averaged)}"
        )
    return outputs, notes


def _stored_name(stored: StoredTensor) -> str:
    return stored.name if stored.name.startswith(_PREFIX) else _PREFIX + stored.name


def _is_same(adapters: Adapters, held: Mapping[int, StoredTensor]) -> bool:
    (first, stored), *others = held.items()
    values = adapters.adapters[first].read_stored(stored)
    return all(torch.equal(values, adapters.adapters[index].read_stored(other)) for index, other in others)


def _widest(stored: Sequence[StoredTensor]) -> torch.dtype:
    """Return the dtype that holds all of some tensors.

    Raises:
        OptionError: nothing is written in it.
    """
    for tensor in stored:
        if tensor.read_dtype not in WRITTEN_NAMES:
            raise OptionError(
                f"{tensor.name!r} is {tensor.read_dtype}, in which no result is written; pass dtype='bfloat16' "
                "(--dtype bfloat16)"
            )
    return reduce(torch.promote_types, (tensor.read_dtype for tensor in stored))


def notes_of_plan(adapters: Adapters, modules: Sequence[ModuleOutput], options: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of the modules of a result."""
    notes = []
    count = len(adapters.adapters)
    some = [output.module.name for output in modules if output.module.held and len(output.module.held) < count]
    if some:
        notes.append(
            f"modules that not all adapters change, where only those that do count ({len(some):,}): {listed(some)}"
        )
    if biases := [output.module.name for output in modules if output.module.is_bias and output.module.held]:
        notes.append(f"biases of B, of which the weighted sum is taken ({len(biases):,}): {listed(biases)}")
    dtypes = {
        part.dtype for output in modules for held in output.module.held.values() for part in (held.a, held.b) if part
    }
    if len(dtypes) > 1 and options.get("dtype") is None:
        notes.append(
            f"the factors are of several dtypes; each module has the widest: {listed(sorted(map(str, dtypes)))}"
        )
    return notes
