"""A checkpoint in memory: a state dict or arrays by name; and torch files, which are loaded as one.

Nothing here executes pickled code: torch files are loaded with `weights_only=True`, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergekern.checkpoints.checkpoint import Checkpoint, StoredTensor
from mergekern.errors import CheckpointError


def load_torch_file(path: Path) -> Mapping[str, Any]:
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
        return self._values[self._stored_buffers.get(name, name)].cpu().clone(memory_format=torch.contiguous_format)

    def resident(self, name: str, device: torch.device) -> torch.Tensor | None:
        tensor = self.tensors[name]
        values = self._values[tensor.name]
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
