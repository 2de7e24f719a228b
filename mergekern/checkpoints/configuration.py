"""config.json of a folder of Hugging Face: what it says of the weights that lie beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekern.errors import CheckpointError

CONFIG = "config.json"


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
