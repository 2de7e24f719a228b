"""What every checkpoint offers, whatever its format: names, shapes, dtypes, and reads of parts of a tensor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import xxhash

from mergekern.checkpoints import float8
from mergekern.checkpoints.dtypes import FLOAT_DTYPES, OTHER_DTYPES
from mergekern.checkpoints.quantisation import REMEDY, Quantisation, notes_on_contents, refuse_codes
from mergekern.checkpoints.stored import StoredTensor
from mergekern.errors import CheckpointError

# How a model comes to a tensor of its own: by values of its own, by factors of the difference, or not at all.
Change = Literal["whole", "factors", "none"]
# Elements of a tensor that are hashed at a time.
_HASHED = 1 << 24


class Factors(NamedTuple):
    """A task matrix scale·left·right, left (m, r) and right (r, n), in their storage dtypes."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float


class FileState(NamedTuple):
    """By what a file is recognised: size in bytes, nanoseconds of its last writing and of its last change, and number.

    The time of writing can be set back, as copying tools do; that of change is the system's own.
    """

    size: int
    written: int
    changed: int
    number: int

    @staticmethod
    def from_path(path: Path) -> FileState:
        """Return the state of a file, links followed."""
        found = path.stat()
        return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class Checkpoint(ABC):
    """One model's tensors.

    Attributes:
        name: what errors and tables call it.
        source: where it came from, for messages.
        origin: id and commit of a model of the Hugging Face Hub; None for others.
        location: path, or id and commit, by which it can be opened again from anywhere; None for what is in memory.
        tensors: the floating-point tensors by name, in file order; tied names all appear, with equal `storage`.
        buffers: names of integer, bool and complex tensors, which are not part of any task vector.
        order: names of all tensors as they are stored, tied ones once where the format says so.
        config: config.json of the folder that it lies in; empty where there is none.
        notes: what is said of it in the notes of tables and in the records of merges, one sentence each.
        files: what was opened, with size and time of change, by which a file that is replaced meanwhile is noticed.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.origin: str | None = None
        self.location: str | None = None
        self.tensors: dict[str, StoredTensor] = {}
        self.buffers: list[str] = []
        self.order: list[str] = []
        self.config: Mapping[str, Any] = {}
        self.notes: list[str] = []
        self.files: dict[Path, FileState] = {}
        self._others: dict[str, StoredTensor] = {}  # what `buffers` names
        self._scales: dict[str, StoredTensor] = {}
        self._markers: Sequence[str] = ()
        self._blocks: Sequence[tuple[int, int]] = ()
        self._stored_names: dict[str, str] = {}  # what was renamed -> what it is called in the file

    def rename(self, names: Mapping[str, str]) -> None:
        """Call tensors and buffers by other names from now on: `names` are the new ones, by those so far."""
        self.tensors = {names.get(name, name): tensor for name, tensor in self.tensors.items()}
        changed = {new: self._stored_names.pop(old, old) for old, new in names.items()}
        self._stored_names |= changed
        self.buffers = [names.get(name, name) for name in self.buffers]
        self.order = [names.get(name, name) for name in self.order]

    def stored_name(self, name: str) -> str:
        """Return what a tensor or buffer is called in the file, whatever it was renamed to."""
        return self._stored_names.get(name, name)

    def tie(self, name: str, kept: str) -> None:
        """Let a name mean the same tensor as another one, whatever the file holds under it, and come after it."""
        self.tensors.pop(name, None)
        self.tensors[name] = self.tensors[kept]

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file is not the one that was opened."""
        for path, state in self.files.items():
            try:
                is_same = FileState.from_path(path) == state
            except OSError:
                is_same = False
            if not is_same:
                raise CheckpointError(
                    f"{path}: was changed while {self.name!r} was being read; nothing that was read of it is kept: "
                    "run again when it is finished"
                )

    def content_hash(self) -> str:
        """Return a hash of the names, dtypes, shapes and values of all tensors and buffers."""
        hasher = xxhash.xxh3_128()
        for name, tensor in sorted(self.tensors.items()):
            hasher.update(f"{name}\0{tensor.read_dtype}{tensor.shape}".encode())
            for start in range(0, tensor.count, _HASHED):
                block = self.read_range(name, start, min(start + _HASHED, tensor.count))
                hasher.update(block.view(torch.uint8).numpy())
        for name in sorted(self.buffers):
            values = self.read_buffer(name).contiguous()
            hasher.update(f"{name}\0{values.dtype}{tuple(values.shape)}".encode())
            hasher.update(values.reshape(-1).view(torch.uint8).numpy())
        return hasher.hexdigest()

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The storage dtypes of the floating-point tensors."""
        return frozenset(tensor.dtype for tensor in self.tensors.values())

    def change(self, name: str) -> Change:
        """Tell whether it holds a tensor whole, as factors of the difference to the base, or as the base has it."""
        return "whole"

    def factors(self, name: str) -> Factors:
        """Return the factors of a tensor whose change is "factors"."""
        raise NotImplementedError

    def bytes_of(self, name: str) -> int:
        """Return the bytes that it holds of a tensor."""
        return self.tensors[name].nbytes

    @abstractmethod
    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor as stored: contiguous, 1-D, on the CPU."""

    @property
    def scales(self) -> frozenset[str]:
        """Names of the floating-point tensors that are no weights: scales, and markers, of float8 tensors."""
        return frozenset((*self._scales, *self._markers))

    @property
    def complex_names(self) -> list[str]:
        """Names of the complex tensors, which are among `buffers`."""
        return [name for name, tensor in self._others.items() if tensor.dtype.is_complex]

    @abstractmethod
    def read_buffer(self, name: str) -> torch.Tensor:
        """Return a tensor that is one of `buffers`, on the CPU."""

    def _read_columns(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Return columns [start, stop) of a 2-D tensor as stored."""
        rows, width = tensor.shape
        return torch.stack([self._read_range(tensor, r * width + start, r * width + stop) for r in range(rows)])

    def resident(self, name: str, device: torch.device) -> torch.Tensor | None:
        """Return a whole tensor if it lies on a device other than the CPU as reads would return it; else None."""
        return None

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor in its own shape. The result may share memory with the file: do not write to it."""
        tensor = self.tensors[name]
        return self.read_range(name, 0, tensor.count).view(tensor.shape)

    def read_range(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor, 1-D and contiguous."""
        tensor = self.tensors[name]
        stored = self._read_range(tensor, start, stop)
        if tensor.read_dtype == tensor.dtype:
            return stored
        values = stored.to(torch.float32)
        if tensor.scale:
            values *= self._scales_of_range(tensor, start, stop)
        return values

    def rounded(self, name: str, values: torch.Tensor, start: int) -> torch.Tensor:
        """Return values, elements from `start` on of a flattened tensor, as this checkpoint would hold and read them.

        Args:
            name: tensor of this checkpoint, whose dtype and scales the values are rounded to.
            values: 1-D, of any float dtype.
            start: position of the first of them.
        """
        tensor = self.tensors[name]
        if not tensor.scale:
            return values.to(tensor.dtype).to(tensor.read_dtype)
        scales, limit = self._scales_of_range(tensor, start, start + len(values)), torch.finfo(tensor.dtype).max
        codes = (values.to(torch.float32) / scales).clamp(-limit, limit).to(tensor.dtype)
        return codes.to(torch.float32) * scales

    def read_columns(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return columns [start, stop) of a 2-D tensor."""
        tensor = self.tensors[name]
        stored = self._read_columns(tensor, start, stop)
        if tensor.read_dtype == tensor.dtype:
            return stored
        values = stored.to(torch.float32)
        if tensor.scale:
            values *= self._scale(tensor).at(range(tensor.shape[0]), range(start, stop))
        return values

    def _scale(self, tensor: StoredTensor) -> float8.ScaleGrid:
        assert tensor.scale is not None
        stored = self._scales[tensor.scale]
        values = self._read_range(stored, 0, stored.count).view(stored.shape)
        return float8.ScaleGrid(values, tensor.shape, f"{self.source}: {stored.name!r}", self._blocks)

    def _scales_of_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Return the scale of each of the elements [start, stop) of a flattened tensor."""
        width = math.prod(tensor.shape[-1:]) or 1
        first, last = start // width, -(-stop // width)
        scales = self._scale(tensor).at(range(first, last), range(width)).reshape(-1)
        return scales[start - first * width : stop - first * width]

    def _add(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, storage: Hashable) -> None:
        """Register a tensor as float tensor or buffer; called by the formats while they open."""
        if max(shape, default=0) > torch.iinfo(torch.int64).max:  # A file may declare it where another size is 0.
            raise CheckpointError(f"{self.source}: tensor {name!r} has the impossible shape {shape}")
        if dtype not in (*FLOAT_DTYPES, *OTHER_DTYPES):
            raise CheckpointError(
                f"{self.source}: tensor {name!r} has dtype {dtype}, which is not supported; if it is packed or "
                f"quantised, {REMEDY}"
            )
        self.order.append(name)
        if dtype in FLOAT_DTYPES:
            self.tensors[name] = StoredTensor(name, shape, dtype, storage)
        else:
            self.buffers.append(name)
            self._others[name] = StoredTensor(name, shape, dtype, storage)

    def _finish(self, config: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Say how what was registered is to be read; called once, when all files of the checkpoint are known.

        Args:
            config: config.json of its folder.

        Raises:
            CheckpointError: there are no tensors, or weights cannot be read right.
        """
        if not (self.tensors or self.buffers):
            raise CheckpointError(f"{self.source}: holds no tensors")
        if not self.tensors and (name := next((n for n, t in self._others.items() if t.dtype.is_complex), None)):
            raise CheckpointError(f"{self.source}: tensor {name!r} is complex; only real tensors are supported")
        self.config = config
        quantisation = Quantisation.from_config(config)
        refuse_codes(self.source, self.tensors, self._others, quantisation)
        found = float8.find_scales(self.source, self.tensors, self._others, quantisation, self._is_zero)
        self._blocks = quantisation.blocks if quantisation else ()
        self._scales = {scale: self.tensors[scale] for scale in found.of.values()}
        for name, scale in found.of.items():
            self.tensors[name] = replace(self.tensors[name], scale=scale)
            self._scale(self.tensors[name])
        self._markers = found.without_part
        self.notes += notes_on_contents(self.tensors, self._others, self._markers, quantisation)
        for name in (*self._scales, *self._markers):
            del self.tensors[name]

    def _is_zero(self, name: str) -> bool:
        tensor = self.tensors[name]
        return not self._read_range(tensor, 0, tensor.count).to(torch.float32).any()
