"""Modules of a model as recipes name them: the encoder and the decoder, the vision tower and the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekern._internal.text import listed
from mergekern.errors import OptionError, did_you_mean
from mergekern.merging.recipes.configuration import with_layers
from mergekern.merging.recipes.schema import Inputs, Recipe

_PROJECTOR = "multi_modal_projector"
_VISION = ("vision_tower", "vision_model", "visual")
# Parts of the names of the tensors of a module; others have those with the module's own name in theirs.
_PARTS_OF_NAMES: dict[str, tuple[str, ...]] = {
    _PROJECTOR: (_PROJECTOR, "visual.merger", "visual.deepstack_merger_list"),
    "vision_tower": _VISION,
    "vision_model": _VISION,
}
# Modules of all tensors that no other one has, and the modules that their models have besides them.
_REST: dict[str, tuple[str, ...]] = {
    "default": (),
    "text_decoder": ("vision_tower",),
    "shared": ("encoder", "decoder"),
}
# Where a configuration says how many layers a module has: the part, and the names that the number may have there.
_LAYERS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "encoder": (None, ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers")),
    "decoder": (None, ("decoder_layers", "num_decoder_layers")),
    "vision_tower": ("vision_config", ("num_hidden_layers", "depth")),
    "vision_model": ("vision_config", ("num_hidden_layers", "depth")),
}


@dataclass(frozen=True)
class Module:
    """A module of the result.

    Attributes:
        name: as the recipe calls it; "" where the recipe names no modules.
        inputs: what is merged to it.
        tensors: the names of its tensors in the model that the result is laid out like; None for all.
    """

    name: str
    inputs: Inputs
    tensors: frozenset[str] | None

    def has(self, name: str) -> bool:
        """Tell whether a tensor is one of the module."""
        return self.tensors is None or name in self.tensors

    def with_layers(self, config: Mapping[str, Any], layers: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
        """Return a configuration that is true of other layers of the module; see `configuration.with_layers`."""
        if self.name not in _LAYERS:
            return with_layers(config, layers)
        part, counts = _LAYERS[self.name]
        inner = config if part is None else config.get(part, {})
        changed = {name: len(layers) if name in counts else value for name, value in inner.items()}
        return changed if part is None else {**config, part: changed}


def modules_of(recipe: Recipe, names: Sequence[str]) -> list[Module]:
    """Return the modules of a recipe, each with its tensors; one of all tensors where the recipe names none.

    Args:
        recipe: the recipe.
        names: names of all tensors and buffers of the model that the result is laid out like.

    Raises:
        OptionError: a module without tensors, or two that stand for all the others.
    """
    if not recipe.modules:
        return [Module("", recipe, None)]
    rest = [name for name in recipe.modules if name in _REST]
    if len(rest) > 1:
        raise OptionError(f"modules: {' and '.join(rest)} each have all tensors of no other module; give one of them")
    tensors: dict[str, list[str]] = {}
    for name in names:
        tensors.setdefault(_module_of(name, list(recipe.modules), rest[0] if rest else ""), []).append(name)
    for module in recipe.modules:
        if module not in tensors:
            starts = sorted({name.split(".")[0] for name in names})
            nearest = did_you_mean(module, [*starts, *_REST, *_PARTS_OF_NAMES])
            raise OptionError(
                f"modules: no tensor belongs to {module!r}{nearest}; names of tensors begin with {listed(starts)}"
            )
    return [Module(name, part, frozenset(tensors[name])) for name, part in recipe.modules.items()]


def _module_of(name: str, modules: Sequence[str], rest: str) -> str:
    """Return the module that a tensor belongs to."""
    if rest != "default" and _is_of(name, _PROJECTOR):  # It may lie within the vision tower.
        return _PROJECTOR
    named = (each for each in (*modules, *_REST.get(rest, ())) if each != rest and _is_of(name, each))
    return next(named, rest)


def _is_of(name: str, module: str) -> bool:
    return any(f".{part}." in f".{name}" for part in _PARTS_OF_NAMES.get(module, (module,)))
