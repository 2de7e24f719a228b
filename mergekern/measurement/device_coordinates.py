"""Measuring single coordinates on a device: the counterpart of `coordinates`, for the tensors of a batch together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.gram import wanted_pairs
from mergekern.kernels.signs import DeviceSigns
from mergekern.statistics.coordinates import CoordinateStatistics, kept, zero_coordinates


def device_signs(backend: DeviceBackend, layers: Sequence[Sequence[torch.Tensor]]) -> list[DeviceSigns]:
    """Return where task vectors agree in sign, for each layer, on the device, without waiting.

    Args:
        backend: the kernels.
        layers: for each tensor [base, tuned_0, …, tuned_{N−1}], flat and contiguous, on the device.
    """
    found = backend.signs(layers, torch.stack([_thresholds(backend, layer) for layer in layers]))
    return [found.of_layer(layer) for layer in range(len(layers))]


def _thresholds(backend: DeviceBackend, layer: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the smallest magnitude that trimming keeps, of every model, (N,) float64."""
    base, *tuned = layer
    count = base.numel()
    if not count:
        return torch.zeros(len(tuned), dtype=torch.float64, device=base.device)
    return backend.kth_largest(lambda: [(base, tuned)], len(tuned), count, kept(count))


def coordinate_statistics(found: DeviceSigns, split: int) -> CoordinateStatistics:
    """Return the statistics of the coordinates of one tensor, from results on the host; of a split's pairs alone."""
    on_host = found.on_host()
    models = len(on_host.sums)
    if not np.isfinite(on_host.absolute).all():  # see `measurement.coordinates`
        return zero_coordinates(models)
    wanted = wanted_pairs(models, split)
    return CoordinateStatistics(on_host.sums, *(np.where(wanted, matrix, 0.0) for matrix in on_host[1:]))
