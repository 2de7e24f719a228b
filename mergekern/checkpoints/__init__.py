"""Checkpoints: open one (`formats`), match N to their base (`zoo`), read them a tensor at a time (`stream`)."""

from mergekern.checkpoints.checkpoint import Checkpoint, StoredTensor
from mergekern.checkpoints.opening import open_checkpoint
from mergekern.checkpoints.stream import FactoredLayer, Layer, LayerStream
from mergekern.checkpoints.zoo import Zoo, ZooTensor, open_zoo

__all__ = [
    "Checkpoint", "FactoredLayer", "Layer", "LayerStream", "StoredTensor", "Zoo", "ZooTensor", "open_checkpoint",
    "open_zoo",
]  # fmt: skip
