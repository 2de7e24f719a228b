"""Models of the Hugging Face Hub as checkpoints: "org/name", or "org/name@revision", where no such path exists."""

from __future__ import annotations

import re
from pathlib import Path

from mergekern._internal.extras import needs
from mergekern.errors import CheckpointError

_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
_DESCRIPTIONS = ["*.json", "*.model", "*.txt", "*.jinja"]
# Weights as transformers, PEFT, diffusers and others name them; pickles only where there is no other form of them, and
# never executed.
_WEIGHTS = (
    ["model*.safetensors", "adapter_model.safetensors"], ["pytorch_model*.bin", "adapter_model.bin"],
    ["diffusion_pytorch_model*.safetensors"], ["consolidated*.safetensors"],
)  # fmt: skip
_SUBFOLDERS = ["*/*"]


def is_hub_id(text: str) -> bool:
    """Tell whether a string has the form of a model's id.

    >>> [is_hub_id(text) for text in ("org/name", "org/name@v1.0", "zoo", "./zoo/a", "/zoo/a", "zoo/a/b")]
    [True, True, False, False, False, False]
    """
    return _ID.fullmatch(text) is not None


def fetch(identifier: str) -> tuple[Path, str]:
    """Return the folder of a model in the local cache, downloading what is not there, and its id with the commit.

    Where the Hub cannot be reached, or with HF_HUB_OFFLINE=1, the cache alone is used.

    Raises:
        CheckpointError: there is no such model; it is not in the cache and the Hub cannot be reached; or
            huggingface_hub is not installed.
    """
    found = _ID.fullmatch(identifier)
    assert found is not None
    repository, revision = found["repository"], found["revision"]
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{identifier}: no such file or folder; {needs('a model of the Hugging Face Hub', 'hub', error)}"
        ) from error
    folder = Path()
    try:
        for weights in _WEIGHTS:
            patterns = [*_DESCRIPTIONS, *weights]
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=_SUBFOLDERS)
            )
            revision = folder.name
            if any(any(folder.glob(pattern)) for pattern in weights):
                break
    except Exception as error:
        what = str(error).strip().splitlines()[:1]
        raise CheckpointError(
            f"{identifier}: no such file or folder, and as a model of the Hugging Face Hub it cannot be had "
            f"({type(error).__name__}: {''.join(what)}). Check the name and revision; offline, only what an earlier "
            "download left in the cache is there; private and gated models need `hf auth login`"
        ) from error
    return folder, f"{repository}@{revision}"
