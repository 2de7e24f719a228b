"""What a measurement will take: bytes that are read, and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mergekern.checkpoints import Checkpoint, LayerStream, Zoo, ZooTensor
from mergekern.kernels.low_rank import on_cpu as low_rank_on_cpu
from mergekern.kernels.randomized_spectrum import on_cpu as randomized_spectrum_on_cpu
from mergekern.kernels.spectrum import on_cpu as spectrum_on_cpu
from mergekern.kernels.trim import on_cpu as trim_on_cpu
from mergekern.measurement.coordinates import FACTORED_ELEMENTS
from mergekern.measurement.options import MeasureOptions


@dataclass(frozen=True)
class Cost:
    """What a measurement will take.

    Attributes:
        bytes_read: bytes of weights read; tensors larger than the budget are read several times.
        peak_memory: estimate of the bytes allocated at once, beside mapped files and the interpreter itself.
    """

    bytes_read: int
    peak_memory: int


def estimate_cost(zoo: Zoo, options: MeasureOptions | None = None) -> Cost:
    """Return what measuring a zoo will take, without reading its weights.

    >>> from mergekern.checkpoints import open_zoo
    >>> models = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}
    >>> estimate_cost(open_zoo(models, base={"w": torch.zeros(2)})).bytes_read
    24
    """
    options = options or MeasureOptions()
    budget = LayerStream(zoo, options.max_memory).max_memory
    threads = torch.get_num_threads()
    total = held = working = 0
    for tensor in zoo.tensors:
        size, changes = zoo.nbytes(tensor), zoo.changes(tensor)
        whole = changes.count("whole")
        is_split = size > budget
        # Split tensors are read once to hash them, once for the Gram matrix, and twice for each spectrum.
        total += size * (2 if is_split else 1)
        widened = any(c.tensors[n].read_dtype != c.tensors[n].dtype for c, n in _stored(zoo, tensor))
        if options.io == "pread" or is_split or widened:
            held += size
        if "factors" in changes:
            ranks = [c.factors(n).left.shape[1] for c, n in _stored(zoo, tensor) if c.change(n) == "factors"]
            flat = (tensor.shape[0], math.prod(tensor.shape[1:]))
            working = max(working, threads * low_rank_on_cpu.workspace(ranks, flat, budget // (2 * threads)))
        of_coordinates = 0
        if "coordinates" in options.extras:
            count = math.prod(tensor.shape)
            of_coordinates = threads * trim_on_cpu.workspace(count)
            if "factors" in changes:
                of_coordinates += threads * len(zoo.models) * 8 * min(count, FACTORED_ELEMENTS)
            elif is_split:
                total += size + _bytes_of_thresholds(zoo, tensor, budget)
            working = max(working, of_coordinates)
        if options.with_spectrum and tensor.is_matrix and whole:
            shape = (tensor.shape[0], tensor.shape[1])
            if is_split:
                base_size = zoo.base.tensors[tensor.names[0]].nbytes
                total += _passes(options) * (size - base_size + whole * base_size)
            # The vectors of one layer, their stack, and those of the layer that is ahead.
            vectors = 3 * 4 * whole * min(options.top_k, *shape) * (shape[0] + 2 * shape[1])
            working = max(working, threads * _workspace(shape, options) + vectors + of_coordinates)
    return Cost(total, min(held, budget) + working)


def _passes(options: MeasureOptions) -> int:
    """Return how often a factorisation reads a matrix that is not held, at most."""
    if options.svd == "exact":
        return 2
    in_float64 = randomized_spectrum_on_cpu.PASSES_IN_FLOAT64
    return randomized_spectrum_on_cpu.most_passes(options.top_k, options.spectrum_k) + in_float64 + 1


def _bytes_of_thresholds(zoo: Zoo, tensor: ZooTensor, budget: int) -> int:
    """Return how much finding what trimming keeps reads of a tensor that is not held, at most: a model at a time."""
    base, *tuned = (checkpoint.tensors[name].nbytes for checkpoint, name in _stored(zoo, tensor))
    count = math.prod(tensor.shape)
    return sum(trim_on_cpu.most_reads(count, base + own <= budget) * (base + own) for own in tuned)


def _workspace(shape: tuple[int, int], options: MeasureOptions) -> int:
    if options.svd == "exact":
        return spectrum_on_cpu.workspace(shape, options.top_k)
    return randomized_spectrum_on_cpu.workspace(shape, options.top_k, options.spectrum_k)


def _stored(zoo: Zoo, tensor: ZooTensor) -> Iterable[tuple[Checkpoint, str]]:
    return zip(zoo.checkpoints, tensor.names, strict=True)
