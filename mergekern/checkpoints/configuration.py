"""config.json of a folder of Hugging Face: what it says of the weights that lie beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekern.errors import CheckpointError

CONFIG = "config.json"
# Where it says how weights are packed: that of most libraries, of MLX, and of older compressed-tensors.
_OF_QUANTISATION = ("quantization_config", "quantization", "compression_config")


# Whether the head over the vocabulary is the embedding, in the configurations of transformers.
TIE = "tie_word_embeddings"


def with_tying(config: Mapping[str, Any], is_tied: bool) -> dict[str, Any]:
    """Return a configuration that says whether head and embedding are tied, wherever it is said.

    >>> with_tying({"text_config": {"tie_word_embeddings": True}}, False)
    {'text_config': {'tie_word_embeddings': False}, 'tie_word_embeddings': False}
    """
    parts = {name: {**part, TIE: is_tied} for name, part in config.items() if isinstance(part, Mapping) and TIE in part}
    return {**config, **parts, TIE: is_tied}


def read_configuration(folder: Path) -> Mapping[str, Any]:
    """Return config.json of a folder; empty where there is none.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    path = folder / CONFIG
    return read_json_object(path) if path.exists() else {}


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the content of a file of configuration.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    try:
        if path.exists() and not path.is_file():  # Reading a pipe would wait for ever.
            raise TypeError("not a file")
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise TypeError("not a JSON object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a usable configuration ({type(error).__name__}: {error})") from error
    return content


def configuration_of_result(
    config: Mapping[str, Any], *, dtype: str | None, is_tied: bool | None = None
) -> dict[str, Any]:
    """Return config.json as it is true of floating-point weights that were made from those it describes.

    Parts of it that describe a part of the model, such as `text_config`, are changed likewise.

    Args:
        config: that of the weights' base.
        dtype: dtype of all floating-point tensors that are written; None where each has the base's.
        is_tied: whether embedding and head are one tensor in the result; None for what the base's says.

    >>> configuration_of_result({"torch_dtype": "float32", "quantization_config": {}}, dtype="bfloat16")
    {'torch_dtype': 'bfloat16'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            if key not in _OF_QUANTISATION:
                found[key] = configuration_of_result(value, dtype=dtype)
        else:
            # transformers writes torch_dtype, and dtype since version 4.56.
            found[key] = dtype if key in ("dtype", "torch_dtype") and dtype and isinstance(value, str) else value
    return found if is_tied is None else with_tying(found, is_tied)
