"""Tells what a trainer saves beside a model (optimizer, schedule, random numbers, arguments) from a model."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path

# As transformers, accelerate and DeepSpeed name them.
_NAMES = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states|training_args|dl_state_dict|custom_checkpoint)"
    r"([_-]\d+)*\.(pt|pth|bin|pkl)|.*_optim_states\.pt"
)
_TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
# Bytes of a pickle that are looked at; a model of ten thousand tensors has about that many.
_LOOKED_AT = 2 << 20
_INTEGERS = {f"{kind}Storage" for kind in ("Byte", "Char", "Short", "Int", "Long", "Bool")}
# What numbers, integer tensors and random states are made of.
_PLAIN = re.compile(r"collections\.|torch\._utils\.|torch\.\w+Storage|torch\.Size|numpy\.|_codecs\.|__builtin__\.set")


def is_training_state(path: Path) -> bool:
    """Tell whether a file is known by its name, or as a torch file by its content, to be no model.

    No tensor is read and no pickle is executed. By content they are optimizers' states, the arguments of a trainer, and
    files without a floating-point tensor.

    >>> [is_training_state(Path(name)) for name in ("rng_state_0.pth", "training_args.bin", "mnist.pt")]
    [True, True, False]
    """
    if _NAMES.fullmatch(path.name):
        return True
    return path.suffix in _TORCH_FILES and path.is_file() and _holds_state(path)


def _holds_state(path: Path) -> bool:
    """Tell what a torch file holds from its pickle; False where that cannot be told, so that opening it says why."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(entry) as file:
                pickle = file.read(_LOOKED_AT)
    except (OSError, StopIteration, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError):
        return False
    strings: list[str] = []
    is_plain, is_state = True, False
    try:
        for operation, argument, _ in pickletools.genops(io.BytesIO(pickle)):
            names = []
            if operation.name in ("BINUNICODE", "SHORT_BINUNICODE"):
                strings.append(str(argument))
            elif operation.name == "EMPTY_DICT" and strings == ["state"]:
                is_state = True
            elif operation.name == "GLOBAL":
                names = [str(argument).replace(" ", ".")]
            elif operation.name == "STACK_GLOBAL":
                names = [".".join(strings[-2:])]
            for name in names:
                if name.endswith("TrainingArguments"):
                    return True
                is_plain &= _PLAIN.match(name) is not None
                if name.endswith("Storage") and name.split(".")[-1] not in _INTEGERS:
                    is_plain = False
            if not (is_plain or is_state):
                return False
    except Exception:  # The pickle is cut or damaged.
        return False
    return is_plain or "param_groups" in strings
