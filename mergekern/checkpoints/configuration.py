"""config.json of a folder of Hugging Face: what it says of the weights that lie beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekern.errors import CheckpointError

CONFIG = "config.json"


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
    try:
        if path.exists() and not path.is_file():  # Reading a pipe would wait for ever.
            raise TypeError("not a file")
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise TypeError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a usable configuration ({type(error).__name__}: {error})") from error
    return config
