"""A `.safetensors` file as a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import torch

from mergekern._internal.descriptors import KeptDescriptor
from mergekern._internal.mapping import guard
from mergekern.checkpoints.checkpoint import Checkpoint, StoredTensor
from mergekern.checkpoints.dtypes import COMPLEX_NAMES, FLOAT_NAMES, INTEGER_NAMES
from mergekern.checkpoints.quantisation import REMEDY
from mergekern.checkpoints.sources import IO
from mergekern.errors import CheckpointError

# dtype in the header of a safetensors file -> ours.
_DTYPES = FLOAT_NAMES | INTEGER_NAMES | COMPLEX_NAMES


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
        for key, entry in in_file_order:
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:
                raise CheckpointError(
                    f"{path}: tensor {key!r} has dtype {entry['dtype']}, which is not supported; if it is packed or "
                    f"quantised, {REMEDY}"
                )
            self._begin[key] = entry["data_offsets"][0]
            self._add(key, tuple(entry["shape"]), dtype, key)
        # save_model keeps one of a set of tied tensors and declares the other names in the metadata.
        for alias, kept in self.metadata.items():
            if kept in self.tensors and alias not in header:
                tensor = self.tensors[kept]
                self._begin[alias] = self._begin[kept]
                self.tensors[alias] = StoredTensor(alias, tensor.shape, tensor.dtype, tensor.storage)
        size = path.stat().st_size
        self._mapped: torch.Tensor | None = None
        self._descriptor: KeptDescriptor | None = None
        if io == "mmap":
            storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
            guard(storage)  # type: ignore[arg-type]
            self._mapped = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)  # type: ignore[arg-type]
        else:
            self._descriptor = KeptDescriptor(path)

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        size = tensor.dtype.itemsize
        begin = self._data_start + self._begin[tensor.name]
        return self._bytes(begin + start * size, begin + stop * size, size).view(tensor.dtype)

    def _read_columns(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        if self._mapped is None:
            return super()._read_columns(tensor, start, stop)
        return self._read_range(tensor, 0, tensor.count).view(tensor.shape)[:, start:stop]

    def read_buffer(self, name: str) -> torch.Tensor:
        tensor = self._others[self._stored_names.get(name, name)]
        return self._read_range(tensor, 0, tensor.count).view(tensor.shape)

    def _bytes(self, start: int, stop: int, alignment: int) -> torch.Tensor:
        if self._mapped is not None:
            view = self._mapped[start:stop]
            return view if start % alignment == 0 else view.clone()
        assert self._descriptor is not None
        out = torch.empty(stop - start, dtype=torch.uint8, device="cpu")
        buffer = memoryview(out.numpy())
        done = 0
        with self._descriptor.opened() as descriptor:
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done:]], start + done)
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
