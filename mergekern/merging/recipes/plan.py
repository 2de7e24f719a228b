"""What a recipe asks for, found and checked: slices with the settings of each tensor. Nothing is read but headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mergekern._internal.text import listed
from mergekern.checkpoints.alignment import in_names_of
from mergekern.checkpoints.dtypes import FLOAT8
from mergekern.checkpoints.rounding import note_rounding
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError
from mergekern.merging.arguments import resolve_dtype
from mergekern.merging.mergekit_names import Mergekit
from mergekern.merging.method import Method
from mergekern.merging.recipes.embeddings import RowsAmong
from mergekern.merging.recipes.methods import find_method_of_mergekit, methods_of_mergekit
from mergekern.merging.recipes.models import Model, Models
from mergekern.merging.recipes.modules import Module, modules_of
from mergekern.merging.recipes.parameters import Levels, ineffective, settings_of_tensor
from mergekern.merging.recipes.schema import InputModel, Inputs, ModelPart, Recipe, SlicePart, SourcePart
from mergekern.merging.recipes.slices import Cast, Slice, SourceLayers, Stack, whole
from mergekern.merging.recipes.tokenizer import Tokenizer, find_tokenizer
from mergekern.merging.settings import Settings


@dataclass(frozen=True)
class PlannedSlice:
    """A slice of the result, and how each of its tensors is merged.

    Attributes:
        slice: the layers.
        settings: those of each tensor.
    """

    slice: Slice
    settings: dict[str, Settings]


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for.

    Attributes:
        recipe: the recipe.
        method: how tensors are merged.
        donor: the model that the result is laid out like, and whose other files it gets.
        slices: in the order of the result.
        tokenizer: that of the result.
        models: all models of the recipe.
        notes: what has no effect.
    """

    recipe: Recipe
    method: Method
    donor: Model
    slices: list[PlannedSlice]
    tokenizer: Tokenizer
    models: list[Model]
    notes: list[str]


def plan_recipe(recipe: Recipe, models: Models, on_mismatch: OnMismatch) -> Plan:
    """Return what a recipe asks for.

    Raises:
        OptionError: something that the recipe names is not known, or has no value.
        CheckpointError, MismatchError: models cannot be read, or do not fit together.
    """
    method, mergekit = find_method_of_mergekit(recipe.merge_method)
    inputs = [recipe] if not recipe.modules else list(recipe.modules.values())
    named = [each for part in inputs for group in _groups(part, recipe, "") for each in group.sources]
    for part in (recipe.base_model, *(source.model for source in named)):
        if part is not None:
            models[part]
    donor = models[recipe.base_model or named[0].model]
    dtype = resolve_dtype(recipe.dtype.removeprefix("torch.")) if recipe.dtype else None
    if dtype is None and any(stored in FLOAT8 for model in models.opened for stored in model.checkpoint.dtypes):
        raise OptionError("models are float8, in which nothing is merged; add dtype: bfloat16 to the recipe")
    tokenizer = find_tokenizer(recipe, models, donor)
    if recipe.slices or recipe.modules or tokenizer.embeddings:
        _take_names_of(donor, models.opened)
    planner = _Planner(recipe, models, donor, dtype, tokenizer, method, mergekit, on_mismatch)
    names = [*donor.checkpoint.tensors, *donor.checkpoint.buffers]
    modules = modules_of(recipe, names)
    slices = [each for module in modules for each in planner.slices(module)]
    notes = list(planner.notes)
    if lost := [name for name in names if not any(module.has(name) for module in modules)]:
        notes.append(f"tensors of no module of the recipe, which the result lacks ({len(lost):,}): {listed(lost)}")
    return Plan(recipe, method, donor, slices, tokenizer, models.opened, notes)


@dataclass
class _Planner:
    """Plans the slices of modules; `notes` says what has no effect."""

    recipe: Recipe
    models: Models
    donor: Model
    dtype: torch.dtype | None
    tokenizer: Tokenizer
    method: Method
    mergekit: Mergekit
    on_mismatch: OnMismatch
    notes: dict[str, None] = field(default_factory=dict)

    def slices(self, module: Module) -> list[PlannedSlice]:
        """Return the slices of a module of the result."""
        groups = _groups(module.inputs, self.recipe, f"modules.{module.name}." if module.name else "")
        stack = Stack(self.donor, module, len(groups), self.on_mismatch) if module.inputs.slices else None
        return [self._slice(group, module, stack) for group in groups]

    def _slice(self, group: _Group, module: Module, stack: Stack | None) -> PlannedSlice:
        recipe, models, mergekit = self.recipe, self.models, self.mergekit
        base, merged = _roles(group, recipe.base_model, mergekit, self.method)
        cast = Cast(self.dtype, _rows_among(self.tokenizer, group, recipe.base_model, models))
        if stack is None:
            sources = [models[source.model] for source in merged]
            made = whole(models[base.model], sources, module, cast, self.on_mismatch)
        else:
            layers = [_layers(source, models) for source in merged]
            made = stack.add(_layers(base, models), layers, group.count, cast)
        outer = (group.parameters, *([module.inputs.parameters] if module.name else []), recipe.parameters)
        levels = Levels(
            tuple(source.parameters for source in merged), outer, tuple(source.model.text for source in merged)
        )
        known = frozenset(p.name for _, each in methods_of_mergekit().values() for p in each.parameters)
        self.notes |= dict.fromkeys(ineffective(mergekit, levels, known))
        fixed = {"of": "deltas" if base not in merged else "models"} if mergekit.base == "optional" else {}
        if base not in merged:
            note_rounding(made.zoo.base, made.zoo.models, [tensor.names for tensor in made.zoo.tensors])
        return PlannedSlice(made, _settings(made, self.method, mergekit, levels, fixed))


@dataclass(frozen=True)
class _Group:
    """The sources of one slice; of the whole models, where these are merged."""

    sources: Sequence[InputModel]
    parameters: dict
    base_model: ModelPart | None
    count: int
    shown: str


def _groups(inputs: Inputs, recipe: Recipe, where: str) -> list[_Group]:
    if inputs.slices:
        return [_of_slice(each, f"{where}slices.{number}") for number, each in enumerate(inputs.slices)]
    assert inputs.models is not None
    sources = list(inputs.models)
    if recipe.base_model is not None and all(source.model != recipe.base_model for source in sources):
        sources.append(InputModel(model=recipe.base_model))
    return [_Group(sources, {}, None, 0, f"{where}models")]


def _of_slice(part: SlicePart, shown: str) -> _Group:
    first = part.sources[0].layer_range
    return _Group(part.sources, part.parameters, part.base_model, first[1] - first[0], shown)


def _roles(
    group: _Group, base_model: ModelPart | None, mergekit: Mergekit, method: Method
) -> tuple[InputModel, list[InputModel]]:
    """Return the source that stands as the base, and the sources that are merged."""
    named = group.base_model or base_model
    texts = [source.model.text for source in group.sources]
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise OptionError(f"{group.shown}: {twice[0]} is there twice; a model is one source of a slice")
    base = next((source for source in group.sources if source.model == named), None)
    if mergekit.base in ("base", "first") and base is None:
        where = f"is no source of {group.shown}; add it there" if named else "is missing"
        raise OptionError(f"{mergekit.name} needs a base_model, which {where}")
    others = [source for source in group.sources if source is not base]
    if mergekit.base == "model" or base is None:
        merged = list(group.sources)
        base = base or merged[0]
    elif mergekit.base == "first":
        merged = [base, *others]
    else:
        merged = others
    if mergekit.base == "model" and len(merged) == 1:
        return base, merged  # A slice of a stack may have one model where others have several.
    try:
        method.check_count(len(merged))
    except OptionError as error:
        among = " (base_model is one of them)" if base in merged and base.model == named else ""
        raise OptionError(f"{group.shown}: {error}{among}") from None
    return base, merged


def _rows_among(tokenizer: Tokenizer, group: _Group, base_model: ModelPart | None, models: Models) -> RowsAmong | None:
    if tokenizer.embeddings is None:
        return None
    base = group.base_model or base_model
    return tokenizer.embeddings.among([models[source.model] for source in group.sources], base.text if base else None)


def _layers(source: InputModel, models: Models) -> SourceLayers:
    assert isinstance(source, SourcePart)
    return SourceLayers(models[source.model], source.layer_range[0])


def _take_names_of(donor: Model, models: Sequence[Model]) -> None:
    """Give all models the names that the donor has; heads that its file lacks stay away."""
    held = set(donor.checkpoint.tensors)
    others = [model.checkpoint for model in models if model is not donor]
    in_names_of(donor.checkpoint, others)
    for name in donor.checkpoint.tensors.keys() - held:
        for checkpoint in (donor.checkpoint, *others):
            checkpoint.tensors.pop(name, None)


def _settings(
    made: Slice, method: Method, mergekit: Mergekit, levels: Levels, fixed: dict[str, str]
) -> dict[str, Settings]:
    found = {}
    for name, depth in made.depths().items():
        settings = settings_of_tensor(method, mergekit, levels, name, made.own_names(name), depth)
        found[name] = Settings(settings.weights, {**settings.options, **fixed})
    return found
