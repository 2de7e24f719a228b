"""Open one checkpoint: safetensors, a Hugging Face folder, a torch file, a mapping or a module.

Nothing here executes pickled code: torch files are loaded with `weights_only=True`, always.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch

from mergekern.checkpoints import adapter, hub
from mergekern.checkpoints.checkpoint import Checkpoint, FileState, StoredTensor
from mergekern.checkpoints.dtypes import COMPLEX_NAMES, FLOAT_NAMES, INTEGER_NAMES
from mergekern.errors import CheckpointError

IO = Literal["mmap", "pread"]
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# dtype in the header of a safetensors file -> ours.
_DTYPES = FLOAT_NAMES | INTEGER_NAMES | COMPLEX_NAMES


def open_checkpoint(source: Any, name: str | None = None, *, io: IO = "mmap") -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        source: a path (`.safetensors`; a Hugging Face folder, sharded or not; a PEFT folder with a LoRA adapter; `.pt`,
            `.pth`, `.bin`, `.ckpt`); where no such path exists, the id of a model on the Hugging Face Hub, "org/name"
            or "org/name@revision"; a mapping name -> tensor or array, or a `torch.nn.Module`.
        name: what to call it; by default the file's stem, or "model".
        io: "mmap" maps files into memory; "pread" reads them into buffers, which is faster on network disks.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, or of a kind that is not supported.

    >>> open_checkpoint({"w": torch.zeros(2, 3), "steps": torch.tensor(7)}).tensors["w"].shape
    (2, 3)
    """
    if isinstance(source, torch.nn.Module):
        return StateDict(source.state_dict(), name or "model", type(source).__name__)
    if isinstance(source, Mapping):
        return StateDict(source, name or "model", name or "mapping")
    if isinstance(source, str | os.PathLike):
        path, origin = Path(source), None
        if _is_on_hub(os.fspath(source)):
            name = name or checkpoint_name(path)
            path, origin = hub.fetch(str(source))
        try:
            checkpoint = _open_path(path, name or checkpoint_name(path), io)
            checkpoint.origin = origin
            checkpoint.location = origin or os.path.abspath(path)
            return checkpoint
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
    raise CheckpointError(
        f"a checkpoint is a path, a mapping name -> tensor, or a torch.nn.Module, not {type(source).__name__}"
    )


def checkpoint_name(path: Path) -> str:
    """Return the name a checkpoint gets from its path: a file's stem, a folder's name.

    >>> checkpoint_name(Path("zoo/mnist.v2.safetensors"))
    'mnist.v2'
    """
    if _is_on_hub(str(path)):
        return str(path).partition("/")[2].replace("/", "-")
    # Links keep their own name: those of a model hub's cache point to folders named by a hash.
    return path.stem if path.suffix in SUFFIXES else Path(os.path.abspath(path)).name


def _is_on_hub(text: str) -> bool:
    return hub.is_hub_id(text) and Path(text).suffix not in SUFFIXES and not os.path.exists(text)


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path looks like a checkpoint, also of a kind that `open_checkpoint` refuses and explains."""
    if path.is_dir():
        return any((path / file).is_file() for file in (*FOLDER_FILES, adapter.CONFIG_FILE))
    return path.suffix in (*SUFFIXES, ".gguf") and path.is_file()


def _open_path(path: Path, name: str, io: IO) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return _open_folder(path, name, io) if path.is_dir() else _open_file(path, name, io)


def _open_file(path: Path, name: str, io: IO) -> Checkpoint:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    state = FileState.of(path)
    checkpoint: Checkpoint
    if path.suffix == ".safetensors":
        checkpoint = SafetensorsFile(path, name, io)
    elif path.suffix in TORCH_SUFFIXES:
        checkpoint = StateDict(_load_torch_file(path), name, str(path))
    else:
        raise _unknown(path)
    checkpoint.files = {path: state}
    return checkpoint


def _unknown(path: Path) -> CheckpointError:
    if path.suffix == ".gguf":
        return CheckpointError(f"{path}: GGUF files hold quantised weights; give the checkpoint they were made from")
    return CheckpointError(f"{path}: unknown suffix; known are {', '.join(SUFFIXES)} and Hugging Face folders")


def _open_folder(folder: Path, name: str, io: IO) -> Checkpoint:
    found = next((folder / file for file in FOLDER_FILES if (folder / file).is_file()), None)
    if found is None:
        if (folder / adapter.CONFIG_FILE).is_file():
            return _open_adapter(folder, name, io)
        raise CheckpointError(f"{folder}: none of {', '.join(FOLDER_FILES)} is in this folder")
    if found.suffix != ".json":
        return _open_file(found, name, io)
    try:
        weight_map = json.loads(found.read_text("utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
        if not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise TypeError("shard names must be plain file names")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{found}: not a usable shard index ({type(error).__name__}: {error})") from error
    return Sharded({file: _open_file(folder / file, name, io) for file in files}, weight_map, name, str(found))


def _open_adapter(folder: Path, name: str, io: IO) -> adapter.Adapter:
    path = folder / adapter.CONFIG_FILE
    found = next((folder / file for file in adapter.WEIGHT_FILES if (folder / file).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: a PEFT adapter without its weights, {' or '.join(adapter.WEIGHT_FILES)}")
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise TypeError("not a JSON object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a usable configuration ({type(error).__name__}: {error})") from error
    return adapter.Adapter(_open_file(found, name, io), config, name, str(folder))


def _load_torch_file(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(
                f"{path}: not a torch zip archive (an old or foreign pickle, or a damaged file); "
                "load it where you trust it and save it again as safetensors"
            )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: torch.load(weights_only=True) refused it: {_objection(error)}. If the file is whole, load it "
            "where you trust it and save its state dict as safetensors; mergekern never executes pickled code"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a state dict (name -> tensor)")
    return loaded


def _objection(error: Exception) -> str:
    """Return what torch.load found wrong, without its advice to execute the pickle after all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line]
    return f"{type(error).__name__}: {(telling or lines or [''])[0].split('. ')[0].rstrip('.')[:300]}"


class StateDict(Checkpoint):
    """A checkpoint in memory (or mapped by torch): a mapping name -> tensor or array."""

    def __init__(self, mapping: Mapping[str, Any], name: str, source: str) -> None:
        super().__init__(name, source)
        self._values: dict[str, torch.Tensor] = {}
        for key, value in mapping.items():
            tensor = _as_tensor(key, value, source)
            self._values[key] = tensor
            storage = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else key
            self._add(key, tuple(tensor.shape), tensor.dtype, storage)
        self._finish()

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        values = self._values[tensor.name]
        if not values.is_contiguous():
            # Only the rows asked for are copied; all of an expanded tensor may be more than memory holds.
            row = tensor.count // values.shape[0]
            first = start // row
            values, start, stop = values[first : -(-stop // row)], start - first * row, stop - first * row
        flat = values.reshape(-1)[start:stop]
        # Views of bytes need a step of one, also of a single element, which torch calls contiguous with any step.
        return _on_cpu(flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format))

    def _read_columns(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        return _on_cpu(self._values[tensor.name][:, start:stop])

    def read_buffer(self, name: str) -> torch.Tensor:
        return self._values[name].cpu().clone(memory_format=torch.contiguous_format)

    def resident(self, name: str, device: torch.device) -> torch.Tensor | None:
        values, tensor = self._values[name], self.tensors[name]
        is_there = device.type != "cpu" and values.device == device
        return values if is_there and values.is_contiguous() and tensor.read_dtype == tensor.dtype else None


def _on_cpu(values: torch.Tensor) -> torch.Tensor:
    if values.device.type != "cuda":
        return values.cpu()
    # Pinned memory, which torch keeps for the next time, takes copies at the rate of the bus.
    out = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return out.copy_(values)


class _Writeable:
    """A read-only array, such as a mapped file, as one that torch takes without a warning; nothing here writes to it.

    Filtering the warning instead would change the filters of all threads.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # keeps its memory alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _as_tensor(key: Any, value: Any, source: str) -> torch.Tensor:
    if not isinstance(key, str):
        raise CheckpointError(f"{source}: tensor names must be strings, not {key!r}")
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            raise CheckpointError(
                f"{source}: {key!r} is a sparse, nested, quantised or meta tensor, which is not supported"
            )
        return value.detach()
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":  # ml_dtypes, which torch does not know
            return torch.from_numpy(np.array(array).view(np.uint16)).view(torch.bfloat16)
        try:
            whole_steps = all(step >= 0 and step % max(array.itemsize, 1) == 0 for step in array.strides)
            if not (array.dtype.isnative and array.flags.aligned and whole_steps):
                array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
            return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writeable(array)))
        except TypeError as error:
            raise CheckpointError(f"{source}: {key!r} has dtype {array.dtype}, which is not supported") from error
    hint = ""
    if isinstance(value, Mapping):
        hint = "; for several models give a mapping name -> checkpoint to `checkpoints`"
    raise CheckpointError(f"{source}: {key!r} is a {type(value).__name__}, not a tensor or array{hint}")


class SafetensorsFile(Checkpoint):
    """A `.safetensors` file, mapped or read piece by piece.

    Attributes:
        metadata: what the header says beside the tensors.
    """

    def __init__(self, path: Path, name: str, io: IO) -> None:
        super().__init__(name, str(path))
        header, self._data_start = _safetensors_header(path)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        in_file_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        self._begin: dict[str, int] = {}
        self._integers: dict[str, StoredTensor] = {}
        for key, entry in in_file_order:
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:
                raise CheckpointError(f"{path}: tensor {key!r} has dtype {entry['dtype']}, which is not supported")
            self._begin[key] = entry["data_offsets"][0]
            self._add(key, tuple(entry["shape"]), dtype, key)
            if not dtype.is_floating_point:
                self._integers[key] = StoredTensor(key, tuple(entry["shape"]), dtype, key)
        # save_model keeps one of a set of tied tensors and declares the other names in the metadata.
        for alias, kept in self.metadata.items():
            if kept in self.tensors and alias not in header:
                tensor = self.tensors[kept]
                self._begin[alias] = self._begin[kept]
                self.tensors[alias] = StoredTensor(alias, tensor.shape, tensor.dtype, tensor.storage)
        size = path.stat().st_size
        self._mapped: torch.Tensor | None = None
        self._descriptor: int | None = None
        if io == "mmap":
            storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
            self._mapped = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
        else:
            self._descriptor = os.open(path, os.O_RDONLY)
        self._finish()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        size = tensor.dtype.itemsize
        begin = self._data_start + self._begin[tensor.name]
        return self._bytes(begin + start * size, begin + stop * size, size).view(tensor.dtype)

    def _read_columns(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        if self._mapped is None:
            return super()._read_columns(tensor, start, stop)
        return self._read_range(tensor, 0, tensor.count).view(tensor.shape)[:, start:stop]

    def read_buffer(self, name: str) -> torch.Tensor:
        tensor = self._integers[name]
        return self._read_range(tensor, 0, tensor.count).view(tensor.shape)

    def _bytes(self, start: int, stop: int, alignment: int) -> torch.Tensor:
        if self._mapped is not None:
            view = self._mapped[start:stop]
            return view if start % alignment == 0 else view.clone()
        assert self._descriptor is not None
        out = torch.empty(stop - start, dtype=torch.uint8)
        buffer = memoryview(out.numpy())
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], start + done)
            if count == 0:
                raise CheckpointError(f"{self.source}: the file ended at byte {start + done}; was it truncated?")
            done += count
        return out


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and the offset of the data. The library checks the file; only then is it parsed here."""
    try:
        with safetensors.safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(length)), 8 + length
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); was it truncated or only partly downloaded?"
        ) from error


class Sharded(Checkpoint):
    """A checkpoint spread over several files by an index.

    Attributes:
        shards: by file name.
    """

    def __init__(self, shards: Mapping[str, Checkpoint], weight_map: Mapping[str, str], name: str, source: str) -> None:
        super().__init__(name, source)
        self.shards = shards
        self.files = {path: state for shard in shards.values() for path, state in shard.files.items()}
        self._home: dict[str, Checkpoint] = {}
        missing: set[str] = set()
        for file, shard in shards.items():
            floats = {**shard.tensors, **shard._scales}
            self.order += [key for key in shard.order if weight_map.get(key, file) == file]
            missing |= {key for key, home in weight_map.items() if home == file} - {*floats, *shard.buffers}
            self.buffers += shard.buffers
            self._home |= dict.fromkeys(shard.buffers, shard)
            for key, tensor in floats.items():
                # Names that the index does not list, such as those of tied tensors, are where they are found.
                if weight_map.get(key, file) == file:
                    self._home[key] = shard
                    self.tensors[key] = StoredTensor(key, tensor.shape, tensor.dtype, (id(shard), tensor.storage))
        if missing:
            raise CheckpointError(f"{source}: the index lists {sorted(missing)[:5]}, which its shards do not hold")
        self._finish()

    def shard_of(self, name: str) -> str:
        """Return the file that holds a tensor."""
        return next(file for file, shard in self.shards.items() if shard is self._home[name])

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        return self._home[tensor.name]._read_range(tensor, start, stop)

    def _read_columns(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        return self._home[tensor.name]._read_columns(tensor, start, stop)

    def read_buffer(self, name: str) -> torch.Tensor:
        return self._home[name].read_buffer(name)
