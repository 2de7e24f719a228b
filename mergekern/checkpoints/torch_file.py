"""Torch files: loaded without executing pickled code, and searched for the state dict that they hold.

Trainers save a state dict alone, or among other things: {"model": …, "optimizer": …, "epoch": 3}. It is found by what
it is, a mapping from names to tensors, and not by what it is called.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mergekern.checkpoints.sources import TORCH_SUFFIXES
from mergekern.errors import CheckpointError

# Members of an archive may be compressed. What they inflate to may be so many bytes, or so many times the file's size.
_INFLATED, _INFLATION = 64 << 20, 20
_LOCAL_HEADER = struct.Struct("<4s2xHH")
_DEPTH = 8


def split_key(path: Path) -> tuple[Path, str | None]:
    """Return the file and the key of a path such as "run.ckpt:ema"; no key where there is none, or such a file exists.

    >>> split_key(Path("no/run.ckpt"))
    (PosixPath('no/run.ckpt'), None)
    """
    text = str(path)
    if ":" in path.name and not path.exists():
        for suffix in TORCH_SUFFIXES:
            file, found, key = text.partition(f"{suffix}:")
            if found and key and Path(file + suffix).is_file():
                return Path(file + suffix), key
    return path, None


def load_torch_file(path: Path, key: str | None = None) -> tuple[Mapping[Any, Any], list[str]]:
    """Return the state dict in a torch file, and what is to be said of where it was found.

    Args:
        path: a zip archive as torch.save writes it.
        key: where in the file the state dict lies, as "ema" or "ema.model"; None to find it.

    Raises:
        CheckpointError: the file is damaged, or holds code; there is no state dict in it, or there are several.
    """
    try:
        is_compressed = _check_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=not is_compressed)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path}: torch.load(weights_only=True) refused it: {_objection(error)}. If the file is whole, load it "
            "where you trust it and save its state dict as safetensors; mergekern never executes pickled code"
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a state dict (name -> tensor)")
    return (_at(loaded, key, path), []) if key is not None else _state_dict(loaded, path)


def _check_archive(path: Path) -> bool:
    """Tell whether members of an archive are compressed, once its directory is found true and of sane sizes."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                f"{path}: not a torch zip archive (an old or foreign pickle, or a damaged file); "
                "load it where you trust it and save it again as safetensors"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except zipfile.BadZipFile as error:
            raise zipfile.BadZipFile(f"no central directory of an archive is at its end ({error})") from error
        size, names = path.stat().st_size, {member.filename for member in members}
        for member in members:
            file.seek(member.header_offset)
            magic, flags, method = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            is_stored = member.compress_type == zipfile.ZIP_STORED
            if (
                len(names) < len(members)
                or (magic, method) != (b"PK\x03\x04", member.compress_type)
                or member.header_offset + member.compress_size > size
                or (is_stored and member.compress_size != member.file_size)
                or (flags | member.flag_bits) & 1
            ):
                raise zipfile.BadZipFile(f"the archive's directory does not tell the truth of {member.filename!r}")
    compressed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    inflated = sum(member.file_size for member in compressed)
    if inflated > max(_INFLATED, _INFLATION * size):
        raise CheckpointError(
            f"{path}: its compressed members would inflate to {inflated:,} bytes from a file of {size:,}; no "
            "checkpoint does. If you trust it, save it again without compression"
        )
    return bool(compressed)


def _objection(error: Exception) -> str:
    """Return what torch.load found wrong, without its advice to execute the pickle after all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line]
    return f"{type(error).__name__}: {(telling or lines or [''])[0].split('. ')[0].rstrip('.')[:300]}"


def _state_dict(loaded: Mapping[Any, Any], path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    found: dict[int, tuple[str, Mapping[Any, Any]]] = {}
    for key, mapping in _state_dicts(loaded, ""):
        found.setdefault(id(mapping), (key, mapping))
    if not found:
        return loaded, []
    if len(found) == 1:
        key, mapping = next(iter(found.values()))
        return mapping, [f"the state dict was found in the file under {key!r}"] if key else []
    keys = [key or "." for key, _ in found.values()]
    shown = ", ".join(f"{path.name}:{key}" for key in keys[:12]) + (f" and {len(keys) - 12} more" if keys[12:] else "")
    raise CheckpointError(f"{path}: holds {len(keys)} state dicts; give the one that is meant: {shown}")


def _state_dicts(mapping: Mapping[Any, Any], key: str, depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the mappings from names to weights, with the keys that lead to them; states of optimizers are none."""
    if "param_groups" in mapping or not all(isinstance(name, str) for name in mapping) or "exp_avg" in mapping:
        return
    if any(_is_weight(value) for value in mapping.values()):
        yield key, mapping
    if depth:
        for name, value in mapping.items():
            if isinstance(value, Mapping):
                yield from _state_dicts(value, f"{key}.{name}" if key else name, depth - 1)


def _is_weight(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and not (value.dtype == torch.uint8 and value.dim() == 1)


def _at(loaded: Mapping[Any, Any], key: str, path: Path) -> Mapping[Any, Any]:
    """Return the mapping that lies under a key; names within it may hold dots themselves."""
    if key == ".":
        return loaded
    if isinstance(loaded.get(key), Mapping):
        return loaded[key]
    for end, character in enumerate(key):
        if character == "." and isinstance(inner := loaded.get(key[:end]), Mapping):
            return _at(inner, key[end + 1 :], path)
    names = [str(name) for name, value in loaded.items() if isinstance(value, Mapping)]
    raise CheckpointError(f"{path}: holds no state dict under {key!r}; there is {', '.join(names[:12]) or 'none'}")
