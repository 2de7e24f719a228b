"""adapter_config.json of a merged adapter, as PEFT reads it: every scale is 1, and ranks are those of the factors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergekern._internal.text import listed, shortened
from mergekern.errors import OptionError
from mergekern.merging.adapters.reading import Adapters, agreed

# What decides which modules an adapter has, kept where it is the same in all adapters, and they change the same ones.
_SELECTION = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")
_BIASES = ("none", "lora_only", "all")
# Tasks for which PEFT looks for a head among the tensors saved whole, and does not load an adapter without one.
_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def merged_configuration(
    adapters: Adapters, ranks: Mapping[str, int], base_name: str | None, kept_whole: Sequence[str], has_biases: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration of a merged adapter, and notes on what could not be kept of those of the adapters.

    Args:
        adapters: what was merged.
        ranks: rank of the result by module.
        base_name: name of the base, as `base_of` returns it.
        kept_whole: names of the tensors that the result holds whole.
        has_biases: whether the result has biases of B.

    Raises:
        OptionError: the adapters differ in an option that one adapter cannot have both ways.
    """
    configs = [adapter.options.config for adapter in adapters.adapters]
    notes: list[str] = []
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _common("task_type", str, configs, notes),
        "base_model_name_or_path": base_name,
        "revision": _common("revision", str, configs, notes),
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "use_rslora": False,
        "rank_pattern": rank_pattern(ranks),
        "alpha_pattern": rank_pattern(ranks),
        **_selection(adapters, ranks),
        "fan_in_fan_out": agreed(adapters, "fan_in_fan_out"),
        "bias": _bias(configs) if any(name.endswith(".bias") for name in kept_whole) else "none",
        "modules_to_save": _modules_to_save(configs) if kept_whole else None,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "use_dora": False,
    }
    if adapters.whole and not kept_whole and config["task_type"] in _WITH_HEAD:
        notes.append(f"task_type {config['task_type']}, of which PEFT expects the head, is left open")
        config["task_type"] = None
    if config["task_type"] is None:
        config["auto_mapping"] = _common("auto_mapping", dict, configs, notes)
    if has_biases:
        config["lora_bias"] = True
    if agreed(adapters, "ensure_weight_tying"):
        config["ensure_weight_tying"] = True
    return config, notes


def base_of(adapters: Adapters, base_name: str | None) -> str | None:
    """Return the name of the base: the one given, or the one that the adapters name; None if they name none.

    Raises:
        OptionError: they name different ones, and none is given.
    """
    named = {
        name: adapter.base_name for name, adapter in zip(adapters.names, adapters.adapters, strict=True)
        if adapter.base_name
    }  # fmt: skip
    if base_name is not None:
        return base_name
    if len(set(named.values())) > 1:
        said = "; ".join(f"{name}: {base}" for name, base in list(named.items())[:8])
        raise OptionError(
            f"the adapters name different bases ({said}). If they are one model, say how it is called: base_name=NAME "
            "(--base-name NAME)"
        )
    return next(iter(named.values()), None)


def rank_pattern(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the ranks of modules other than the largest rank, as PEFT matches them: the first key that fits counts.

    A key fits every module whose name ends with it, so longer names come first, and modules of the largest rank are
    among them where another key would fit them too.

    >>> rank_pattern({"a.q": 8, "a.k": 4, "x.a.k": 8})
    {'x.a.k': 8, 'a.k': 4}
    """
    default = max(ranks.values())
    others = {name for name, rank in ranks.items() if rank != default}
    named = [name for name in ranks if name in others or any(end in others for end in _ends(name))]
    return {name: ranks[name] for name in sorted(named, key=lambda name: (-len(name), name))}


def _ends(name: str) -> Iterable[str]:
    """Yield the ends of a name at its dots, itself left out.

    >>> list(_ends("a.b.c"))
    ['b.c', 'c']
    """
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(1, len(parts)))


def _selection(adapters: Adapters, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the options that say which modules have factors.

    They are those of the adapters, where they are the same in all, and otherwise the full names of the modules: those
    of one adapter alone would be given to layers that have none.
    """
    configs = [adapter.options.config for adapter in adapters.adapters]
    found = [{key: _ordered(config.get(key)) for key in _SELECTION} for config in configs]
    is_same = all(each == found[0] for each in found[1:])
    have_all = all(len(module.held) == len(adapters.adapters) for module in adapters.modules)
    if is_same and have_all and found[0]["target_modules"] and all(map(_is_selection, found[0].values())):
        return {key: value for key, value in found[0].items() if value not in (None, [], "")}
    if all("." in name for name in ranks):
        return {"target_modules": sorted(ranks)}
    # In a list the name of a module without a parent would stand for all modules of that last name.
    return {"target_modules": "|".join(re.escape(name) for name in sorted(ranks))}


def _ordered(value: Any) -> Any:
    """Return lists, which PEFT makes of sets in any order, sorted.

    >>> _ordered(["v", "q"]), _ordered("all-linear")
    (['q', 'v'], 'all-linear')
    """
    return sorted(value, key=str) if isinstance(value, list) else value


def _is_selection(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(item, str | int) for item in items)


def _common(name: str, kind: type, configs: Sequence[Mapping[str, Any]], notes: list[str]) -> Any:
    """Return the value of a type that all adapters have that say one, or None and add a note."""
    found: list[Any] = []
    for config in configs:
        value = config.get(name)
        if isinstance(value, kind) and value not in found:
            found.append(value)
    if len(found) > 1:
        said = sorted(shortened(str(value)) for value in found)
        notes.append(f"{name} differs among the adapters, and is left open: {listed(said)}")
    return found[0] if len(found) == 1 else None


def _bias(configs: Sequence[Mapping[str, Any]]) -> str:
    """Return the widest of the settings of biases."""
    found = [_BIASES.index(config["bias"]) for config in configs if config.get("bias") in _BIASES]
    return _BIASES[max(found, default=0)]


def _modules_to_save(configs: Sequence[Mapping[str, Any]]) -> list[str] | None:
    found: set[str] = set()
    for config in configs:
        value = config.get("modules_to_save")
        found |= {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()
    return sorted(found) or None
