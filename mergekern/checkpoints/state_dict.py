"""A checkpoint in memory, or mapped by torch: a state dict or arrays by name."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mergekern._internal.mapping import guard
from mergekern.checkpoints.checkpoint import Checkpoint, StoredTensor
from mergekern.errors import CheckpointError


class StateDict(Checkpoint):
    """A checkpoint in memory (or mapped by torch): a mapping name -> tensor or array."""

    def __init__(self, mapping: Mapping[str, Any], name: str, source: str) -> None:
        super().__init__(name, source)
        self._values: dict[str, torch.Tensor] = {}
        tensors, others = _without_other_entries(mapping)
        if others:
            shown = ", ".join(map(repr, others[:3])) + (f" and {len(others) - 3} more" if others[3:] else "")
            verb = "entry that is no tensor takes" if len(others) == 1 else "entries that are no tensors take"
            self.notes.append(f"{len(others)} {verb} no part: {shown}")
        for key, value in tensors.items():
            tensor = _as_tensor(key, value, source)
            self._values[key] = tensor
            storage = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else key
            self._add(key, tuple(tensor.shape), tensor.dtype, storage)

    def guard_mapped_files(self) -> None:
        """Guard reads of tensors that torch has mapped against files that are cut short."""
        storages = (tensor.untyped_storage() for tensor in self._values.values())
        for storage in {storage.data_ptr(): storage for storage in storages}.values():
            guard(storage)

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
        return self._values[self._stored_names.get(name, name)].cpu().clone(memory_format=torch.contiguous_format)

    def resident(self, name: str, device: torch.device) -> torch.Tensor | None:
        tensor = self.tensors[name]
        values = self._values[tensor.name]
        is_there = device.type != "cpu" and values.device == device
        return values if is_there and values.is_contiguous() and tensor.read_dtype == tensor.dtype else None


def _on_cpu(values: torch.Tensor) -> torch.Tensor:
    if values.device.type != "cuda":
        return values.cpu()
    # Pinned memory, which torch keeps for the next time, takes copies at the rate of the bus.
    out = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    return out.copy_(values)


_TENSORS = (torch.Tensor, np.ndarray, np.generic)


class _Writeable:
    """A read-only array, such as a mapped file, as one that torch takes without a warning; nothing here writes to it.

    Filtering the warning instead would change the filters of all threads.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # keeps its memory alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _without_other_entries(mapping: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], list[Any]]:
    """Return the entries that are to be tensors, and the names of those that are clearly none, as epoch and _metadata.

    Where nothing is a tensor, all are returned, so that the error names one.
    """
    others = [key for key, value in mapping.items() if not isinstance(value, _TENSORS) and _holds_no_tensor(value)]
    if len(others) == len(mapping):
        return mapping, []
    left_out = set(others)
    return {key: value for key, value in mapping.items() if key not in left_out}, others


def _holds_no_tensor(value: Any, depth: int = 4) -> bool:
    """Tell whether a value is a number, a text, bytes or the like, or holds such things alone."""
    if isinstance(value, Mapping):
        return depth > 0 and all(_holds_no_tensor(item, depth - 1) for item in value.values())
    if isinstance(value, list | tuple | set):
        return depth > 0 and all(_holds_no_tensor(item, depth - 1) for item in value)
    return value is None or isinstance(
        value, bool | int | float | str | bytes | io.BytesIO | torch.dtype | torch.device
    )


def _as_tensor(key: Any, value: Any, source: str) -> torch.Tensor:
    if not isinstance(key, str):
        raise CheckpointError(f"{source}: tensor names must be strings, not {key!r}")
    try:
        return _converted(key, value, source)
    except CheckpointError:
        raise
    except Exception as error:  # A pickle may give a tensor any attribute, and a subclass may do anything.
        raise CheckpointError(f"{source}: {key!r} cannot be read ({type(error).__name__}: {error})") from error


def _converted(key: str, value: Any, source: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            raise CheckpointError(
                f"{source}: {key!r} is a sparse, nested, quantised or meta tensor, which is not supported"
            )
        kind = type(value)
        if hasattr(kind, "__tensor_flatten__") or kind.__torch_dispatch__ != torch.Tensor.__torch_dispatch__:
            raise CheckpointError(
                f"{source}: {key!r} is a {kind.__name__}, a tensor of another kind inside; give plain tensors "
                "(dequantize() of a quantised one, full_tensor() of a distributed one)"
            )
        return torch.Tensor.detach(value)
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
