"""LoRA adapters opened, and their tensors matched by name: which of them change a module, and by what shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from mergekern._internal.text import listed
from mergekern._internal.validation import one_of
from mergekern.checkpoints import StoredTensor, open_checkpoint
from mergekern.checkpoints.adapter import Adapter, StoredFactors
from mergekern.checkpoints.alignment import rename_as_asked
from mergekern.checkpoints.names import bridge, check_rename
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo_sources import named_sources
from mergekern.errors import CheckpointError, MismatchError, NonFiniteError, OptionError


@dataclass(frozen=True)
class Module:
    """A module, or the bias of one, that at least one adapter changes by factors.

    Attributes:
        name: the module's name in the base.
        is_bias: whether it is the bias of the module, to which each adapter adds s·b.
        held: what the adapters' files hold, by the position of the adapter; those that leave it as it is are missing.
    """

    name: str
    is_bias: bool
    held: Mapping[int, StoredFactors]

    @property
    def first(self) -> StoredFactors:
        """What one of the adapters holds; the others have the same shapes but for the rank."""
        return next(iter(self.held.values()))

    @property
    def ranks(self) -> dict[int, int]:
        """Rank of each adapter; of a bias 1."""
        return {index: held.b.shape[1] if held.a else 1 for index, held in self.held.items()}

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of B·A, where n is the product of all sizes but the rank."""
        a, b = self.first.a, self.first.b
        return b.shape[0], a.count // a.shape[0] if a else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(part.nbytes for held in self.held.values() for part in (held.a, held.b) if part)


@dataclass(frozen=True)
class Adapters:
    """Adapters of one model.

    Attributes:
        adapters: opened, in the order in which they are given.
        modules: what they change by factors, sorted by name.
        whole: what they hold whole, by name, then by the position of the adapter.
        beside_factors: names among them that every holder has factors of too: PEFT's copies of the base's embeddings.
    """

    adapters: tuple[Adapter, ...]
    modules: tuple[Module, ...]
    whole: Mapping[str, Mapping[int, StoredTensor]]
    beside_factors: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(adapter.name for adapter in self.adapters)

    def factors(self, module: Module, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return B (m, r) and A (r, n) of an adapter in float64; of a bias its values and a one."""
        held, adapter = module.held[index], self.adapters[index]
        b = adapter.read_stored(held.b).double().reshape(held.b.shape[0], -1).numpy()
        if held.a is None:
            return b, np.ones((1, 1))
        return b, adapter.read_stored(held.a).double().reshape(held.a.shape[0], -1).numpy()


def open_adapters(given: Any, io: IO, rename: Mapping[str, str] | None) -> Adapters:
    """Open adapters and match their tensors.

    Args:
        given: a path of one adapter or of a folder of them, a sequence of paths, or a mapping name -> path.
        io: "mmap" or "pread".
        rename: parts of tensor names to replace, OLD -> NEW.

    Raises:
        OptionError: two adapters have one name; `rename` names nothing.
        CheckpointError: one cannot be read, is no LoRA adapter, or is of a kind that is not read.
        MismatchError: they do not fit together.
    """
    one_of("io", io, ("mmap", "pread"))
    adapters = []
    for name, source in named_sources(given).items():
        opened = open_checkpoint(source, name, io=io)
        if not isinstance(opened, Adapter):
            raise CheckpointError(
                f"{opened.source}: no LoRA adapter; whole models are merged by merge (mergekern merge)"
            )
        adapters.append(opened)
    rename_as_asked(None, adapters, check_rename(rename))
    _check_names(adapters)
    whole: dict[str, dict[int, StoredTensor]] = {}
    for index, adapter in enumerate(adapters):
        for name in adapter.needs_base:
            whole.setdefault(name, {})[index] = adapter.stored_whole(name)
    for name, held in whole.items():
        _check_alike(name, adapters, {index: tensor.shape for index, tensor in held.items()})
    factored = [set(adapter.factored) for adapter in adapters]
    beside = {name for name, held in whole.items() if all(name in factored[index] for index in held)}
    return Adapters(tuple(adapters), _modules(adapters), whole, frozenset(beside))


def _modules(adapters: Sequence[Adapter]) -> tuple[Module, ...]:
    held: dict[str, dict[int, StoredFactors]] = {}
    for index, adapter in enumerate(adapters):
        for name in adapter.factored:
            held.setdefault(name, {})[index] = adapter.stored_factors(name)
    modules = []
    for name, by_adapter in sorted(held.items()):
        module, _, what = name.rpartition(".")
        _check_alike(name, adapters, {index: _form(factors) for index, factors in by_adapter.items()})
        modules.append(Module(module, what == "bias", by_adapter))
        if 0 in modules[-1].shape:
            raise MismatchError(f"{name!r} has no elements, and so nothing to merge")
    if not modules:
        raise MismatchError("the adapters hold no LoRA factors")
    return tuple(modules)


def _form(held: StoredFactors) -> tuple[Any, ...]:
    """Return what must be the same in all adapters: the shapes without the rank, and the kind of module."""
    kind = ("embedding",) if held.is_embedding else ()
    return (*kind, held.b.shape[0], *(held.a.shape[1:] if held.a else ()))


def _check_alike(name: str, adapters: Sequence[Adapter], forms: Mapping[int, tuple[Any, ...]]) -> None:
    """Raise MismatchError where adapters hold a tensor in different shapes."""
    (first, form), *others = forms.items()
    for index, other in others:
        if other != form:
            raise MismatchError(
                f"{name!r}: {form} in {adapters[first].name!r}, {other} in {adapters[index].name!r} (sizes without the "
                "rank); adapters of different models cannot be merged"
            )


def _check_names(adapters: Sequence[Adapter]) -> None:
    """Raise MismatchError where adapters call the same modules by different names, as far as they show it."""
    shapes: dict[str, tuple[int, ...]] = {}
    holders: dict[str, str] = {}
    for adapter in adapters:
        own = {name: adapter.tensors[name].shape for name in adapter.factored}
        for name, other in bridge(own, shapes).names.items():
            raise MismatchError(
                f"{holders[other]!r} changes {other!r} where {adapter.name!r} changes {name!r}: adapters of one model "
                "wrapped in different ways; rename={'old': 'new'} (--rename OLD=NEW) makes the names alike"
            )
        shapes |= own
        holders = dict.fromkeys(own, adapter.name) | holders


def shares_no_module(adapters: Adapters) -> list[str]:
    """Return the names of the adapters that share no module with any other, where there are several adapters."""
    shared = {index for module in adapters.modules if len(module.held) > 1 for index in module.held}
    alone = [name for index, name in enumerate(adapters.names) if index not in shared]
    return sorted(alone) if len(adapters.names) > 1 else []


class Contents:
    """Hashes of what adapters hold; made by reading everything once, which also finds values that are not finite.

    Raises:
        NonFiniteError: an adapter holds NaN or infinite values.
    """

    def __init__(self, adapters: Adapters) -> None:
        self._of_modules: dict[tuple[str, bool, int], str] = {}
        hashers = [xxhash.xxh3_128() for _ in adapters.adapters]
        for module in adapters.modules:
            for index, held in module.held.items():
                hasher = xxhash.xxh3_128(f"{module.name}\0{module.is_bias}\0{held.scale}".encode())
                for side in adapters.factors(module, index):
                    _check_finite(torch.from_numpy(side), module.name, adapters.names[index])
                    hasher.update(f"{side.shape}".encode())
                    hasher.update(np.ascontiguousarray(side))
                self._of_modules[module.name, module.is_bias, index] = hasher.hexdigest()
                hashers[index].update(hasher.digest())
        for name, held_whole in adapters.whole.items():
            for index, tensor in held_whole.items():
                values = adapters.adapters[index].read_stored(tensor)
                _check_finite(values, name, adapters.names[index])
                hashers[index].update(f"{name}\0{tuple(values.shape)}{values.dtype}".encode())
                hashers[index].update(values.contiguous().reshape(-1).view(torch.uint8).numpy())
        self.of_adapters = [hasher.hexdigest() for hasher in hashers]

    def of(self, module: Module, index: int) -> str:
        """Return the hash of what an adapter holds of a module: its name, scale and factors."""
        return self._of_modules[module.name, module.is_bias, index]


def _check_finite(values: torch.Tensor, name: str, adapter: str) -> None:
    if count := int((~values.isfinite()).sum()):
        raise NonFiniteError(
            f"{name!r} of {adapter!r}: {count} values are NaN or infinite. Repair or leave out that adapter."
        )


def agreed(adapters: Adapters, option: str) -> bool:
    """Return a true-or-false option of the configurations.

    Raises:
        OptionError: they differ in it.
    """
    found = {
        name: bool(a.options.config.get(option)) for name, a in zip(adapters.names, adapters.adapters, strict=True)
    }
    if len(set(found.values())) > 1:
        wanting = listed(name for name, value in found.items() if not value)
        raise OptionError(
            f"{option} is true in {listed(n for n, value in found.items() if value)} and not in {wanting}; one adapter "
            "cannot be both. Merge them with their base instead (mergekern merge)"
        )
    return next(iter(found.values()))
