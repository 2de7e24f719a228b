"""What a file or folder that is no model seems to be, in words, with the remedy if there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mergekern.checkpoints.folders import (
    ADAPTER_FILES,
    Weights,
    file_names,
    folder_names,
    is_pointer,
    loose_weights,
    models_inside,
    shards_of_sets,
)
from mergekern.checkpoints.sources import ADAPTER_CONFIG, SUFFIXES
from mergekern.checkpoints.training_state import is_training_state

POINTER = "a Git LFS pointer, whose weights were not downloaded; run `git lfs pull` in its folder"
GGUF = "GGUF files hold quantised weights; give the checkpoint they were made from"
# Files of weights that other programs read, by their suffix.
_FOREIGN = {
    ".gguf": GGUF,
    ".ggml": "GGML files hold quantised weights; give the checkpoint they were made from",
    ".onnx": "weights of ONNX; give the checkpoint they were exported from",
    ".h5": "weights of Keras or TensorFlow; load them and save safetensors",
    ".keras": "weights of Keras or TensorFlow; load them and save safetensors",
    ".pb": "weights of TensorFlow; load them and save safetensors",
    ".tflite": "weights of TensorFlow Lite; give the checkpoint they were made from",
    ".msgpack": "weights of Flax; load them and save safetensors",
    ".npz": "arrays of NumPy; load them and give them by name, or save safetensors",
    ".distcp": "shards of torch.distributed.checkpoint (FSDP); put them together with `accelerate merge-weights`",
}
_DEEPSPEED = "DeepSpeed; put them together with the zero_to_fp32.py beside them"
_SIDE_FILES = {
    "", ".cfg", ".csv", ".gif", ".html", ".ini", ".ipynb", ".jinja", ".jpeg", ".jpg", ".json", ".jsonl", ".lock",
    ".log", ".md", ".model", ".parquet", ".pdf", ".png", ".py", ".rst", ".sh", ".svg", ".tiktoken", ".toml", ".tsv",
    ".txt", ".xml", ".yaml", ".yml",
}  # fmt: skip
# A file of no known kind is worth a word from this size on.
_LARGE = 1 << 20
_TOKENIZER = re.compile(r"tokenizer.*|vocab\..*|merges\.txt|spiece\.model|sentencepiece.*|special_tokens_map\.json")


def describe_file(path: Path) -> str | None:
    """Return what a file of a zoo is that is no model; None for a model, and for side files, which need no word.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.exists():
        return f"a link to {os.readlink(path)}, where nothing is" if path.is_symlink() else None
    if not path.is_file():
        return "a pipe, socket or device, not a file" if path.suffix in SUFFIXES else None
    if is_training_state(path):
        return "state of a training run, or another torch file without weights"
    if path.suffix in _FOREIGN:
        return _FOREIGN[path.suffix]
    if path.suffix in SUFFIXES:
        if shards_of_sets([path.name]):
            return "one shard of a model; put its shards and their index into a folder of their own"
        return POINTER if is_pointer(path) else None
    size = path.stat().st_size
    return None if path.suffix in _SIDE_FILES or size < _LARGE else f"a file of {size >> 20} MB of no known kind"


def pointers(weights: Weights) -> str | None:
    """Return that some files of a model are pointers, and the remedy; None where they are not."""
    files = weights.files if weights.kind != "adapter" else ADAPTER_FILES
    found = [file for file in files if is_pointer(weights.folder / file)]
    return f"{found[0]} in it is {POINTER}" if found else None


def describe_folder(folder: Path) -> str:
    """Return what a folder is in which no model was found.

    Raises:
        OSError: the folder cannot be read.
    """
    files, folders = file_names(folder), folder_names(folder)
    if (folder / "snapshots").is_dir():
        commits = folder_names(folder / "snapshots")
        return (
            f"a model of a cache of the Hugging Face Hub with {len(commits)} commits; give a folder in its snapshots/"
        )
    if "model_index.json" in files:
        return f"a pipeline of diffusers; give its parts one by one{_such_as(folder, models_inside(folder))}"
    return (
        _training_shards(files, folders)
        or _several_weights(folder, files)
        or _models_further_down(folder)
        or _without_weights(files, folders)
    )


def _training_shards(files: set[str], folders: Sequence[str]) -> str | None:
    if any(name.endswith(".distcp") for name in files) or any(
        name.startswith("pytorch_model_fsdp") for name in folders
    ):
        return _FOREIGN[".distcp"]
    if any(re.fullmatch(r"global_step\d+", name) for name in folders) or any(
        name.endswith("_model_states.pt") for name in files
    ):
        return f"shards of {_DEEPSPEED}"
    return None


def _several_weights(folder: Path, files: set[str]) -> str | None:
    for (stem, suffix, count), shards in shards_of_sets(files).items():
        if len(shards) < count:
            return f"{len(shards)} of {count} shards {stem}-…{suffix}; download the others"
    if not files.isdisjoint(ADAPTER_FILES):
        return f"weights of an adapter without {ADAPTER_CONFIG}"
    if len(parts := sorted(name for name in files if re.fullmatch(r"consolidated\.\d\d\.pth", name))) > 1:
        return f"{len(parts)} parts of a model cut for as many devices; give the checkpoint in the form of transformers"
    loose = loose_weights(folder, files)
    if any(is_pointer(folder / name) for name in loose):
        return f"its weights are {POINTER}"
    if len(loose) == 1:
        return f"a folder without configuration, with weights in {loose[0]}; give the path of that file"
    if loose:
        return f"a folder of {len(loose)} files of weights; give their paths{_such_as(folder, loose)}"
    foreign = [_FOREIGN[suffix] for suffix in _FOREIGN if any(name.endswith(suffix) for name in files)]
    return foreign[0] if foreign else None


def _models_further_down(folder: Path) -> str | None:
    inside = models_inside(folder)
    if len(inside) > 1:
        return f"no model itself, but {len(inside)} folders in it are; give their paths{_such_as(folder, inside)}"
    further = [f"{name}/{model}" for name in folder_names(folder) for model in _models_in(folder / name)]
    return f"no model itself, but holds some further down{_such_as(folder, further)}" if further else None


def _models_in(folder: Path) -> list[str]:
    try:
        return models_inside(folder)
    except OSError:
        return []


def _without_weights(files: set[str], folders: Sequence[str]) -> str:
    if any(is_training_state(Path(name)) for name in files):
        return "state of a training run, without a model"
    if any(name.startswith("events.out.") for name in files) or (not files and _are_logs(folders)):
        return "logs of a training run"
    if any(_TOKENIZER.fullmatch(name) for name in files):
        return "a tokenizer without a model"
    if "config.json" in files:
        return "a configuration without weights"
    if not files:
        return f"a folder of folders without weights ({', '.join(folders[:3])})" if folders else "an empty folder"
    more = f" and {len(files) - 2} more" if len(files) > 2 else ""
    return f"no file of weights in it ({', '.join(sorted(files)[:2])}{more})"


def _are_logs(folders: Sequence[str]) -> bool:
    # The Trainer makes a folder such as May31_12-00-00_host for each run.
    return bool(folders) and all(re.match(r"[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d", name) for name in folders)


def _such_as(folder: Path, names: Sequence[str]) -> str:
    return f", such as {folder.name}/{names[0]}" if names else ""
