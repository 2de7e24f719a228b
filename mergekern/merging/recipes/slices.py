"""Slices of a recipe as zoos: the layers that each source gives to the result, under the result's names."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mergekern.checkpoints import Zoo
from mergekern.checkpoints.selection import Selected, Selection
from mergekern.checkpoints.tying import is_embedding, is_head
from mergekern.checkpoints.zoo import OnMismatch, align
from mergekern.errors import MismatchError, OptionError
from mergekern.merging.depth import InLayer, depth_of, depths, in_layer
from mergekern.merging.recipes.configuration import layer_count
from mergekern.merging.recipes.embeddings import RowsAmong
from mergekern.merging.recipes.models import Model
from mergekern.merging.recipes.modules import Module

# Parts of the names of what stands before the layers; mergekit takes all that from the first slice, other tensors that
# lie in no layer from the last.
_BEFORE_LAYERS = ("embed", "wte", "wpe", "tok_", "cls_token")


@dataclass(frozen=True)
class SourceLayers:
    """Layers of one model that go into a slice.

    Attributes:
        model: the model.
        first: its first layer.
    """

    model: Model
    first: int


@dataclass(frozen=True)
class Slice:
    """Layers of the result, and where they come from.

    Attributes:
        zoo: the base, or what stands in its place, and the models that are merged, under the names of the result.
        sources: the source that each model of the zoo is, in its order.
        base: the source that is the zoo's base.
        start, count: the first layer in the result, and how many there are; 0 layers where models are merged whole.
        stack: what comes before the numbers of layers in names; "" where models are merged whole.
        module: the module of the model that they are of.
    """

    zoo: Zoo
    sources: tuple[SourceLayers, ...]
    base: SourceLayers
    start: int
    count: int
    stack: str
    module: Module

    def depths(self) -> dict[str, float]:
        """Return how deep each tensor lies in the slice, from 0 to 1."""
        names = [tensor.name for tensor in self.zoo.tensors]
        if not self.count:
            return depths(names)
        parts = {name: _of_stack(name, self.stack) for name in names}
        return {name: depth_of(part.layer - self.start, self.count) if part else 0.0 for name, part in parts.items()}

    def own_names(self, name: str) -> list[str]:
        """Return the name of a tensor of the result in each of the sources."""
        part = _of_stack(name, self.stack) if self.count else None
        if part is None:
            return [name] * len(self.sources)
        return [part._replace(layer=part.layer - self.start + source.first).name for source in self.sources]


@dataclass(frozen=True)
class Cast:
    """How tensors are read: to which dtype, and with which rows.

    Attributes:
        dtype: that of all values; None for each tensor's own.
        among: the rows of embeddings and heads; None for their own.
    """

    dtype: torch.dtype | None = None
    among: RowsAmong | None = None

    def selected(self, model: Model, name: str) -> Selected:
        """Return a tensor of a model as it is read."""
        return Selected(name, self.dtype, self.among.rows(model, name) if self.among else None)


def whole(base: Model, models: Sequence[Model], module: Module, cast: Cast, on_mismatch: OnMismatch) -> Slice:
    """Return models that are merged with all their layers as one slice."""
    views = [_view(model, {name: name for name in _names(model, module)}, cast) for model in (base, *models)]
    zoo = _zoo(views, on_mismatch)
    return Slice(zoo, tuple(SourceLayers(model, 0) for model in models), SourceLayers(base, 0), 0, 0, "", module)


class Stack:
    """Makes the slices of a module, one after the other.

    Args:
        donor: the model that the result is laid out like.
        module: which of its tensors.
        total: how many slices there are.
        on_mismatch: as for `open_zoo`.

    Raises:
        OptionError: it cannot be told which of its numbered tensors are the layers.
    """

    def __init__(self, donor: Model, module: Module, total: int, on_mismatch: OnMismatch) -> None:
        self.name, self._module = stack_of(donor, module), module
        self._donor, self._total, self._on_mismatch = donor.checkpoint, total, on_mismatch
        firsts = [name for name in self._donor.tensors if module.has(name) and self._is_first(name)]
        storages = {self._donor.tensors[name].storage for name in firsts}
        self._tied_to_first = {name for name, tensor in self._donor.tensors.items() if tensor.storage in storages}
        self._made = self._layers = 0

    def add(self, base: SourceLayers, sources: Sequence[SourceLayers], count: int, cast: Cast) -> Slice:
        """Return the next slice, with tensors read as `cast` says.

        Raises:
            OptionError: a model has fewer layers.
            MismatchError: the sources do not fit together.
        """
        start, self._layers = self._layers, self._layers + count
        is_first, is_last = self._made == 0, self._made == self._total - 1
        self._made += 1
        views = []
        for source in (base, *sources):
            names = {}
            for name in _names(source.model, self._module):
                part = _of_stack(name, self.name)
                if part and source.first <= part.layer < source.first + count:
                    names[part._replace(layer=part.layer - source.first + start).name] = name
                elif part is None and (is_first if self._is_first(name) or name in self._tied_to_first else is_last):
                    names[name] = name
            self._check_layers(source, count)
            views.append(_view(source.model, dict(sorted(names.items(), key=self._place)), cast))
        zoo = _zoo(views, self._on_mismatch)
        return Slice(zoo, tuple(sources), base, start, count, self.name, self._module)

    def _is_first(self, name: str) -> bool:
        return _of_stack(name, self.name) is None and (is_before_layers(name) or in_layer(name) is not None)

    def _place(self, names: tuple[str, str]) -> tuple[int, int]:
        """Return where a tensor lies in the result, by its name there: before the layers, in one, or after them."""
        part = _of_stack(names[0], self.name)
        return (1, part.layer) if part else (0 if self._is_first(names[0]) else 2, 0)

    def _check_layers(self, source: SourceLayers, count: int) -> None:
        parts = (_of_stack(name, self.name) for name in source.model.checkpoint.tensors)
        layers = 1 + max((part.layer for part in parts if part), default=-1)
        if not layers:
            raise MismatchError(f"{source.model.text}: has no tensor {self.name}0.…, as the first of the models has")
        if source.first + count > layers:
            raise OptionError(
                f"{source.model.text}: layer_range [{source.first}, {source.first + count}] goes beyond its {layers} "
                "layers"
            )


def _zoo(views: Sequence[Selection], on_mismatch: OnMismatch) -> Zoo:
    """Return a zoo whose base, which results are like, has the dtypes in which all values of a tensor can be held."""
    try:
        zoo = align(views[0], views[1:], on_mismatch)
    except MismatchError as error:
        for name in filter(is_embedding, views[0].tensors):
            if len({each.tensors[name].shape[:1] for each in views if name in each.tensors}) > 1:
                remedy = "vocabularies differ: add tokenizer_source: union, or base, to the recipe"
                raise MismatchError(f"{error}\n{remedy}") from None
        raise
    for tensor in zoo.tensors:
        dtypes = [each.tensors[name].read_dtype for each, name in zip(zoo.checkpoints, tensor.names, strict=True)]
        dtype = functools.reduce(torch.promote_types, dtypes)
        if dtype != dtypes[0]:
            views[0].widen(tensor.names[0], dtype)
    return zoo


def _view(model: Model, names: Mapping[str, str], cast: Cast) -> Selection:
    held = model.checkpoint
    tensors = {new: cast.selected(model, old) for new, old in names.items() if old in held.tensors}
    return Selection(held, tensors, {new: old for new, old in names.items() if old not in held.tensors})


def _names(model: Model, module: Module) -> list[str]:
    """Return the names of a model's tensors and buffers."""
    return [name for name in (*model.checkpoint.tensors, *model.checkpoint.buffers) if module.has(name)]


def _of_stack(name: str, stack: str) -> InLayer | None:
    part = in_layer(name)
    return part if part and part.stack == stack else None


def is_before_layers(name: str) -> bool:
    """Tell whether a tensor that lies in no layer stands before them, as embeddings do, by its name."""
    return not is_head(name) and any(part in name for part in _BEFORE_LAYERS)


def stack_of(model: Model, module: Module) -> str:
    """Return what comes before the numbers of the layers of a model's module in the names of its tensors.

    Raises:
        OptionError: it cannot be told.
    """
    counts: dict[str, int] = {}
    for name in filter(module.has, model.checkpoint.tensors):
        if part := in_layer(name):
            counts[part.stack] = max(counts.get(part.stack, 0), part.layer + 1)
    named = layer_count(model.checkpoint.config)
    found = [stack for stack, count in counts.items() if count == named] or list(counts)
    if len(found) != 1:
        seen = ", ".join(f"{stack}0 to {count - 1}" for stack, count in counts.items()) or "none"
        raise OptionError(
            f"{model.text}: it cannot be told which of its numbered tensors are the layers ({seen}); merge such models "
            "whole, with `models`, or their `modules` one by one"
        )
    return found[0]
