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


def read_configuration(folder: Path) -> Mapping[str, Any]:
    """Return config.json of a folder; empty where there is none.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise TypeError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a usable configuration ({type(error).__name__}: {error})") from error
    return config


def configuration_of_result(config: Mapping[str, Any], *, dtype: str | None, unties: bool = False) -> dict[str, Any]:
    """Return config.json as it is true of floating-point weights that were made from those it describes.

    Parts of it that describe a part of the model, such as `text_config`, are changed likewise.

    Args:
        config: that of the weights' base.
        dtype: of all floating-point tensors that are written; None where each has the base's.
        unties: whether embedding and head, which the base ties, differ in the result.

    >>> configuration_of_result({"torch_dtype": "float32", "quantization_config": {}}, dtype="bfloat16")
    {'torch_dtype': 'bfloat16'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            if key not in _OF_QUANTISATION:
                is_tied = unties and "tie_word_embeddings" in value
                found[key] = configuration_of_result(value, dtype=dtype, unties=is_tied)
        else:
            # transformers writes torch_dtype, and dtype since version 4.56.
            found[key] = dtype if key in ("dtype", "torch_dtype") and dtype and isinstance(value, str) else value
    return {**found, "tie_word_embeddings": False} if unties else found
