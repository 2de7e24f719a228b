"""A checkpoint in several files, with an index that says which file holds which tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mergekern.checkpoints.checkpoint import Checkpoint, StoredTensor
from mergekern.errors import CheckpointError


class Sharded(Checkpoint):
    """A checkpoint spread over several files by an index.

    Attributes:
        shards: by file name; they only say what they store, as a scale may lie in another one than its tensor.
    """

    def __init__(self, shards: Mapping[str, Checkpoint], weight_map: Mapping[str, str], name: str, source: str) -> None:
        super().__init__(name, source)
        self.shards = shards
        self.files = {path: state for shard in shards.values() for path, state in shard.files.items()}
        self._home: dict[str, Checkpoint] = {}
        missing: set[str] = set()
        for file, shard in shards.items():
            floats = shard.tensors
            self.order += [key for key in shard.order if weight_map.get(key, file) == file]
            missing |= {key for key, home in weight_map.items() if home == file} - {*floats, *shard.buffers}
            self.buffers += shard.buffers
            self._others |= shard._others
            self._home |= dict.fromkeys(shard.buffers, shard)
            for key, tensor in floats.items():
                # Names that the index does not list, such as those of tied tensors, are where they are found.
                if weight_map.get(key, file) == file:
                    self._home[key] = shard
                    self.tensors[key] = StoredTensor(key, tensor.shape, tensor.dtype, (id(shard), tensor.storage))
        if missing:
            raise CheckpointError(f"{source}: the index lists {sorted(missing)[:5]}, which its shards do not hold")

    def shard_of(self, name: str) -> str:
        """Return the file that holds a tensor."""
        stored = self.tensors[name].name if name in self.tensors else self.stored_name(name)
        return next(file for file, shard in self.shards.items() if shard is self._home[stored])

    def _read_range(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        return self._home[tensor.name]._read_range(tensor, start, stop)

    def _read_columns(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        return self._home[tensor.name]._read_columns(tensor, start, stop)

    def read_buffer(self, name: str) -> torch.Tensor:
        stored = self._stored_names.get(name, name)
        return self._home[stored].read_buffer(stored)
