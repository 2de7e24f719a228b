"""Statistics of normalisation layers: every method averages them, for they are not weights.

An extrapolated variance can be negative, and its square root NaN (Jordan et al., "REPAIR", arXiv 2211.08403, has what
merging does to these statistics). A tensor is one by its name alone: the running mean and variance of torch's
normalisation layers, the moving mean and variance of TensorFlow's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from mergekern.checkpoints import Zoo
from mergekern.merging.elementwise import Elementwise

STATISTICS = frozenset({"running_mean", "running_var", "moving_mean", "moving_variance", "moving_var"})
COUNTER = "num_batches_tracked"
# How they are merged: the weighted mean, as weight_average merges.
MEAN = Elementwise("mean")


def is_statistic(name: str) -> bool:
    """Tell whether a tensor is a statistic of a normalisation layer.

    >>> is_statistic("layer1.0.bn2.running_var"), is_statistic("conv1/BatchNorm/moving_variance:0"), is_statistic("w")
    (True, True, False)
    """
    return _last_part(name) in STATISTICS


def averaged_statistics(zoo: Zoo) -> tuple[str, ...]:
    """Return the names of the tensors that every method averages, in file order.

    >>> from mergekern.checkpoints import open_zoo
    >>> state = {"bn.weight": torch.ones(2), "bn.running_var": torch.ones(2)}
    >>> averaged_statistics(open_zoo([state, state], state))
    ('bn.running_var',)
    """
    return tuple(tensor.name for tensor in zoo.tensors if is_statistic(tensor.name))


def averaging_weights(weights: Sequence[float]) -> list[float]:
    """Return weights of a mean: those of the merge, or equal ones where some are negative or all are zero.

    >>> averaging_weights([1.0, 3.0]), averaging_weights([1.0, -1.0])
    ([1.0, 3.0], [1.0, 1.0])
    """
    return list(weights) if min(weights) >= 0 and sum(weights) > 0 else [1.0] * len(weights)


def averaged_counters(zoo: Zoo, models: Sequence[int], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the rounded means of the counters of batches that the statistics were taken over.

    With momentum=None torch weighs the next batch by such a counter; it must be that of the averaged statistics.
    Counters that not all of the models have are left out, and stay those of the base.

    Args:
        zoo: holds the models.
        models: their positions in it.
        weights: one for each model, as `averaging_weights` returns them.
    """
    found = {}
    for name in zoo.base.buffers:
        having = [zoo.models[model] for model in models if name in zoo.models[model].buffers]
        if _last_part(name) != COUNTER or len(having) < len(models):
            continue
        base, *counters = (checkpoint.read_buffer(name) for checkpoint in (zoo.base, *having))
        if all(counter.shape == base.shape for counter in counters):
            counts = zip(*(counter.reshape(-1).tolist() for counter in counters), strict=True)
            means = [_rounded_mean(each, weights) for each in counts]
            found[name] = torch.tensor(means, dtype=base.dtype)
    return found


def _rounded_mean(counts: Sequence[int], weights: Sequence[float]) -> int:
    # Exactly rounded sums, so that the order of the models does not matter.
    total = math.fsum(count * weight for count, weight in zip(counts, weights, strict=True))
    return round(total / math.fsum(weights))


def _last_part(name: str) -> str:
    return re.split(r"[./]", name.removesuffix(":0"))[-1]
