"""The values that a recipe has for each tensor: the parameters of a method as mergekit reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergekern.errors import OptionError, did_you_mean
from mergekern.merging.depth import value_at
from mergekern.merging.mergekit_names import Mergekit, Parameter
from mergekern.merging.method import Method
from mergekern.merging.recipes.schema import Parameters
from mergekern.merging.settings import Settings

# What mergekit computes by, not what; nobody need be told.
_WITHOUT_EFFECT = ("int8_mask",)
# Methods whose mean is that of all task vectors, not of the entries that agree in sign.
_OF_ALL = ("dare_linear", "della_linear", "breadcrumbs")
# Parameters that mergekit's own programs take besides those of methods; they change no tensor here.
_OF_NO_METHOD = ("embed_slerp",)


@dataclass(frozen=True)
class Levels:
    """The `parameters` of a recipe that hold for the sources of one slice.

    Attributes:
        sources: those of each source, in the order of the models that are merged.
        outer: those of the slice, then of the recipe.
        names: what messages call each source.
    """

    sources: tuple[Parameters, ...]
    outer: tuple[Parameters, ...]
    names: tuple[str, ...]


def settings_of_tensor(
    method: Method, mergekit: Mergekit, levels: Levels, name: str, own_names: Sequence[str], depth: float
) -> Settings:
    """Return the weights and options with which one tensor is merged.

    Args:
        method: how it is merged.
        mergekit: its parameters.
        levels: where their values are given.
        name: name of the tensor in the result, which filters see of parameters that all models share.
        own_names: its name in each source, which filters see of parameters of single models.
        depth: how deep it lies in the slice, from 0 to 1.

    Raises:
        OptionError: a parameter without a value, or a value that is out of range.
    """
    weights, options = (1.0,) * len(levels.sources), {**method.defaults, **dict(mergekit.fixed)}
    empty: tuple[bool, ...] = ()
    for place, parameter in enumerate(mergekit.parameters):
        value: Any
        if parameter.option is None:
            _value(parameter, levels.outer, name, depth, None)  # which `read` may refuse
            continue
        if parameter.per_model:
            value = tuple(
                _value(parameter, [own, *levels.outer], each, depth, model)
                for own, each, model in zip(levels.sources, own_names, levels.names, strict=True)
            )
            checked = value
        else:
            value = _value(parameter, levels.outer, name, depth, None)
            checked = (value,)
        if parameter.option == "weights":
            weights = tuple(float(each) for each in value)
            continue
        if parameter.name == "density":
            empty = tuple(each == parameter.read(0.0) for each in value)
            value = checked = tuple(parameter.read(1.0) if none else v for v, none in zip(value, empty, strict=True))
        # Of two parameters for one option the second counts where the first has changed it.
        is_second = parameter.option in {other.option for other in mergekit.parameters[:place]}
        if value is None or (is_second and options[parameter.option] == method.defaults[parameter.option]):
            continue
        names = levels.names if parameter.per_model else ("the recipe",)
        for model, each in zip(names, checked, strict=True):
            _check(method, parameter, each, model)
        # One value for all models is no value for each: methods need not know which it was.
        options[parameter.option] = checked[0] if len(set(checked)) == 1 else value
    if method.weigh is not None:
        weights = tuple(method.weigh(weights, **options))
    return _without(empty, Settings(weights, options), mergekit)


def _without(empty: Sequence[bool], settings: Settings, mergekit: Mergekit) -> Settings:
    """Return settings without the task vectors of which nothing is kept, as mergekit's density 0 says."""
    weights, options = settings.weights, settings.options
    if not any(empty):
        return settings
    if all(empty):
        return Settings(weights, {**options, "scale": 0.0})
    kept = tuple(0.0 if is_empty else weight for weight, is_empty in zip(weights, empty, strict=True))
    # A mean of all task vectors counts those too; one of the elected entries does not.
    if options["aggregate"] == "mean" and mergekit.name in _OF_ALL and sum(weights):
        options = {**options, "scale": options["scale"] * sum(kept) / sum(weights)}
    return Settings(kept, options)


def _check(method: Method, parameter: Parameter, value: Any, where: str) -> None:
    try:
        if check := method.checks.get(parameter.option or ""):
            check(str(parameter.option), value)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def _value(parameter: Parameter, levels: Sequence[Parameters], name: str, depth: float, model: str | None) -> Any:
    given = (value_at(level[parameter.name], name, depth) for level in levels if parameter.name in level)
    value = next((each for each in given if each is not None), parameter.default)
    if value is None:
        of = f" for {model}" if model else ""
        raise OptionError(f"no value of {parameter.name!r}{of} (tensor {name!r}); give it under `parameters`")
    if isinstance(parameter.default, bool):
        value = bool(value)
    elif isinstance(parameter.default, int) and float(value).is_integer():
        value = int(value)  # A gradient between whole numbers.
    return parameter.read(value)


def ineffective(mergekit: Mergekit, levels: Levels, known: frozenset[str]) -> list[str]:
    """Return the parameters that change nothing, as mergekit too takes no account of them.

    Args:
        mergekit: the method.
        levels: what is given.
        known: the parameters of all methods.

    Raises:
        OptionError: a parameter that no method has.
    """
    own = {parameter.name: parameter for parameter in mergekit.parameters}
    found = {}
    for level in (*levels.sources, *levels.outer):
        for name in level:
            if name not in own and name not in known and name not in _OF_NO_METHOD:
                nearest = did_you_mean(name, own) or did_you_mean(name, known)
                raise OptionError(
                    f"unknown parameter {name!r}{nearest}; {mergekit.name} has {', '.join(own) or 'none'}"
                )
            if name not in own and name not in _WITHOUT_EFFECT:
                found[name] = f"parameter {name!r} is none of {mergekit.name}, and has no effect"
    for level in levels.sources:
        for name in level:
            if name in own and not own[name].per_model:
                found[name] = f"parameter {name!r} of one model has no effect; it is one of the whole merge"
    return list(found.values())
