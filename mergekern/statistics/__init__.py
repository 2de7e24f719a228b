"""Statistics of a zoo: everything that the metrics need, and no weights. This room keeps them; it never measures.

The records, which the metrics read, are names of the room:

- `ZooStatistics`: all statistics of a zoo, in memory; `load` and `save` them, `select` models.
- `LayerStatistics`: one tensor of N models, with its `SpectrumStatistics`, their `SpectrumErrors` where the
  factorisation was a randomised one, and, while these are measured, its `Bases`.
- `FunctionalStatistics`: what needs models run; the kinds are in `FUNCTIONAL`: `ActivationStatistics`,
  `EncoderGradientStatistics`, `InputGradientStatistics`, `ActivationKernelStatistics`.

On disk the statistics of a zoo are a folder of blocks. Rooms that fill or check such a folder import its modules:

- `manifest`: the models and tensors of a folder, and the blocks that have their pairs.
- `keys`, `layer_block`, `assembly`: the key of a block, the block, and the statistics of a tensor put together from
  blocks.
- `store`: the folder as one run reads and writes it, under a lock.
- `verification`: the damaged files of a folder.
- `merges`: what merge probes need, a file of its own for each method.
- `blocks`: the form of all these files.
"""

from mergekern.statistics.functional import (
    FUNCTIONAL,
    ActivationKernelStatistics,
    ActivationStatistics,
    EncoderGradientStatistics,
    FunctionalStatistics,
    InputGradientStatistics,
)
from mergekern.statistics.layers import Bases, LayerStatistics, SpectrumErrors, SpectrumStatistics
from mergekern.statistics.zoo import ZooStatistics

__all__ = [
    "FUNCTIONAL",
    "ActivationKernelStatistics",
    "ActivationStatistics",
    "Bases",
    "EncoderGradientStatistics",
    "FunctionalStatistics",
    "InputGradientStatistics",
    "LayerStatistics",
    "SpectrumErrors",
    "SpectrumStatistics",
    "ZooStatistics",
]
