"""config.json of a result of slices: it says how many layers there are, and of each what its source says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# How configurations call the number of layers, and the number of the first layers that have a property.
_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers",
    "max_window_layers",
)  # fmt: skip
# Parts of a configuration that describe the language model.
_PARTS = ("text_config", "llm_config", "language_config")


def layer_count(config: Mapping[str, Any]) -> int | None:
    """Return how many layers a configuration says that a model has; None where it does not.

    >>> layer_count({"text_config": {"num_hidden_layers": 4}})
    4
    """
    for part in (config, *(config.get(name) for name in _PARTS)):
        for name in _COUNTS[:-1]:
            if isinstance(part, Mapping) and isinstance(part.get(name), int):
                return int(part[name])
    return None


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a configuration says that a model has; None where it does not.

    >>> vocabulary_size({"text_config": {"vocab_size": 32000}})
    32000
    """
    for part in (config, *(config.get(name) for name in _PARTS)):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def with_vocabulary(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return a configuration that is true of a model with another number of tokens, wherever it is said.

    >>> with_vocabulary({"text_config": {"vocab_size": 32000}}, 32064)
    {'text_config': {'vocab_size': 32064}}
    """
    parts = {
        name: {**config[name], "vocab_size": size}
        for name in _PARTS
        if isinstance(config.get(name), Mapping) and "vocab_size" in config[name]
    }
    return {**config, **parts} if parts and "vocab_size" not in config else {**config, **parts, "vocab_size": size}


def with_layers(config: Mapping[str, Any], layers: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """Return a configuration that is true of a model with other layers.

    Counts of layers become the new one. Lists with an entry for each layer, such as `layer_types`, get the entry that
    the configuration of each layer's source has for it.

    Args:
        config: that of the model whose configuration the result has.
        layers: configuration of the source of each layer of the result, and the layer's number there.

    >>> of_source = {"num_hidden_layers": 2, "layer_types": ["full", "sliding"]}
    >>> with_layers(of_source, [(of_source, 0), (of_source, 1), (of_source, 1)])
    {'num_hidden_layers': 3, 'layer_types': ['full', 'sliding', 'sliding']}
    """
    found = _with_layers(config, layers)
    for name in _PARTS:
        if isinstance(config.get(name), Mapping):
            inner = [(source.get(name, {}), layer) for source, layer in layers]
            found[name] = _with_layers(config[name], inner)
    return found


def _with_layers(config: Mapping[str, Any], layers: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    count = next((config[name] for name in _COUNTS[:-1] if isinstance(config.get(name), int)), None)
    if count is None:
        return dict(config)
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in _COUNTS and value == count:
            found[name] = len(layers)
        elif isinstance(value, list) and len(value) == count and name != "architectures":
            found[name] = [_entry(source.get(name), layer, value) for source, layer in layers]
        else:
            found[name] = value
    return found


def _entry(theirs: Any, layer: int, ours: list[Any]) -> Any:
    """Return what a source's list says of one of its layers; what ours says where it has no such list."""
    return theirs[layer] if isinstance(theirs, list) and layer < len(theirs) else ours[layer % len(ours)]
