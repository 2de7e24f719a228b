"""The fewest bytes and operations of a case, by the formulas of mergekern/kernels/*/__init__.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

TOP_K = 10
BACKWARD = 2  # times the products of the pass forwards


class Counts(NamedTuple):
    """Bytes read and float64 operations."""

    bytes: int
    flops: int


def gram(models: int, elements: int, itemsize: int) -> Counts:
    """Return the counts of one tensor of a base and N models.

    >>> gram(2, 10, 4)
    Counts(bytes=120, flops=60)
    """
    return Counts((models + 1) * elements * itemsize, models * (models + 1) * elements)


def spectrum(shape: tuple[int, int], itemsize: int) -> Counts:
    """Return the counts of one matrix: its Gram matrix and the tridiagonal form of that; the rest is of lower order.

    >>> spectrum((6, 3), 4)
    Counts(bytes=144, flops=90)
    """
    short, long = min(shape), max(shape)
    return Counts(2 * short * long * itemsize, short**2 * long + 4 * short**3 // 3)


def randomized_spectrum(shape: tuple[int, int], itemsize: int, passes: int, vectors: int) -> Counts:
    """Return the counts of one matrix by an iteration of some passes, with some vectors together; products alone.

    >>> randomized_spectrum((6, 3), 4, passes=2, vectors=5)
    Counts(bytes=288, flops=360)
    """
    elements = shape[0] * shape[1]
    return Counts(2 * passes * elements * itemsize, 4 * elements * vectors)


def overlap(models: int, length: int, k: int = TOP_K) -> Counts:
    """Return the counts of N bases of k vectors, float32.

    >>> overlap(2, 100, 1)
    Counts(bytes=800, flops=400)
    """
    return Counts(models * length * k * 4, (models * k) ** 2 * length)


def signs(models: int, elements: int, itemsize: int) -> Counts:
    """Return the counts of the signs of a tensor of a base and N models; an operation on a word is counted as one.

    >>> signs(2, 640, 4)
    Counts(bytes=15360, flops=4050)
    """
    words = 7 * models * (models + 1) // 2 * -(-elements // 64)
    return Counts(2 * (models + 1) * elements * itemsize, words + models * (models + 1) * elements)


def interference(models: int, shape: tuple[int, int], k: int = TOP_K) -> Counts:
    """Return the counts of N models' k leading triplets of one matrix.

    >>> interference(2, (10, 5), 1)
    Counts(bytes=120, flops=68)
    """
    sides = sum(shape)
    return Counts(models * sides * k * 4, models**2 * k**2 * (sides + 2 * k))


def compute_all(base: Mapping[str, torch.Tensor], models: int) -> Counts:
    """Return the counts of all metrics of a zoo whose models are like `base`: each weight is read once.

    >>> compute_all({"bias": torch.zeros(10)}, 2) == gram(2, 10, 4)
    True
    """
    flops = 0
    for tensor in base.values():
        flops += gram(models, tensor.numel(), tensor.itemsize).flops
        if tensor.dim() == 2:
            rows, columns = tensor.shape
            k = min(TOP_K, rows, columns)
            flops += models * spectrum((rows, columns), tensor.itemsize).flops
            flops += overlap(models, rows, k).flops + 2 * overlap(models, columns, k).flops
    return Counts((models + 1) * sum(tensor.nbytes for tensor in base.values()), flops)


def merge(base: Mapping[str, torch.Tensor], models: int) -> Counts:
    """Return the counts of a merge, element by element, of models that are like `base`: read once, written once.

    >>> merge({"bias": torch.zeros(10)}, 2)
    Counts(bytes=160, flops=120)
    """
    size = sum(tensor.nbytes for tensor in base.values())
    return Counts((models + 2) * size, 6 * models * sum(tensor.numel() for tensor in base.values()))


def adapters(shapes: Iterable[tuple[int, int]], layers: int, models: int, rank: int, itemsize: int) -> Counts:
    """Return the counts of all metrics of LoRA adapters: QR factorisations, and the products of all pairs' vectors.

    Args:
        shapes: shapes of the matrices of one layer.
        layers, models: their numbers.
        rank, itemsize: rank of the factors, and bytes of an element.

    >>> adapters([(3, 2)], layers=1, models=2, rank=1, itemsize=4)
    Counts(bytes=40, flops=100)
    """
    sides = layers * sum(map(sum, shapes))
    return Counts(models * rank * sides * itemsize, 8 * models * rank**2 * sides + (models * rank) ** 2 * sides)


def probes(base: Mapping[str, torch.Tensor], models: int, tasks: int, tokens: int, samples: int) -> Counts:
    """Return the counts of all activation and gradient metrics of transformers like `base`.

    Each model runs forwards on the samples of all tasks, and forwards and backwards on its own. Only the products with
    matrices of the blocks are counted; a float32 operation as half a float64 one, which the rates are of.

    Args:
        base: tensors of the base; every token passes through each matrix of its blocks.
        models: number of models that run.
        tasks: number of tasks whose samples activations are averaged over.
        tokens: number of tokens in one sample.
        samples: number of samples of one task.

    >>> probes({"resblocks.0.weight": torch.zeros(3, 2)}, 2, 2, 5, 10)
    Counts(bytes=96, flops=3000)
    """
    matrices = sum(t.numel() for name, t in base.items() if "resblocks" in name and t.dim() == 2)
    runs = models * (tasks * samples + (1 + BACKWARD) * samples)
    return Counts(2 * models * sum(tensor.nbytes for tensor in base.values()), runs * tokens * matrices)
