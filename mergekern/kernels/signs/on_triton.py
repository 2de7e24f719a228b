"""`signs` by Triton: all models and all pairs of many tensors, in one launch each for the bits and for the counts.

A program of the first launch packs a tile of one task vector. Its element number `bit`·WORDS + w is the bit `bit` of
word w, so that neighbouring threads read neighbouring elements and each builds its own words in registers. A program of
the second launch counts the pairs of one model with itself and with all models behind it, over a chunk of tiles. Counts
are added atomically: sums of integers do not depend on the order.

Sums are added in the order of the tiles, which depend on the size of the tensor only. `absolute` is `gram` of absolute
values.

Bytes: (N + 1)·D·itemsize, read twice, the base at best once a time for all models; 3·N·D/8 of bits, written once, and
read (N + 1)/2 times from the caches where a chunk of a model, 48 KiB, stays there.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from mergekern.kernels.device_inputs import ALIGNMENT, LOADED, addresses, in_one_dtype, to_device
from mergekern.kernels.gram import on_triton as gram
from mergekern.kernels.signs import COUNTS, DeviceSigns

# Words of 32 bits in a plane of a tile: 4 for each thread, which are loads of 16 bytes for float32.
WORDS = 512
WARPS = 4
# The planes of a model: coordinates that differ from the base, that are below it, that stay after trimming.
PLANES = tl.constexpr(3)
# Most tiles of a chunk. Its counts are added to those of the tensor, which takes little time beside this many tiles.
TILES = 8


def signs(layers: Sequence[Sequence[torch.Tensor | None]], thresholds: torch.Tensor) -> DeviceSigns:
    """Return where the task vectors of L tensors agree in sign, on their device, without waiting.

    A layer whose storage dtypes differ is first copied to float32 or float64.

    Args:
        layers: for each tensor [base or None for zero, tuned_0, …, tuned_{N−1}], flat and contiguous.
        thresholds: (L, N) float64 on the device: a coordinate is kept where |τ| ≥ threshold.
    """
    absolute = gram.inner_products(layers, absolute=True)  # checks the layers, too
    models, device = len(layers[0]) - 1, absolute.device
    if thresholds.shape != (len(layers), models) or thresholds.dtype != torch.float64:
        raise ValueError(f"signs needs a float64 threshold of each of {models} models of {len(layers)} tensors")
    stored = [in_one_dtype(layer, LOADED) for layer in layers]
    some = [tensor for _, tensor, *_ in stored if tensor is not None]
    pointers = np.array([addresses(layer) for layer in stored], dtype=np.int64)
    tiles, first = _tiles([tensor.numel() for tensor in some])
    chunks = _chunks(first)
    # Each combination of storage dtype and alignment needs a launch of its own.
    aligned = [not remainders.any() for remainders in pointers % ALIGNMENT]
    kinds = list(zip([tensor.dtype for tensor in some], aligned, strict=True))
    groups = {kind: tiles[[kinds[layer] == kind for layer in tiles[:, 0]]] for kind in dict.fromkeys(kinds)}
    there = to_device([pointers, first, chunks, *groups.values()], device)
    pointers_there, first_there, chunks_there, *groups_there = there
    planes = torch.empty((len(tiles), models, PLANES.value, WORDS), dtype=torch.int32, device=device)
    partials = torch.empty((len(tiles), models), dtype=torch.float64, device=device)
    counts = torch.zeros((len(layers), COUNTS, models, models), dtype=torch.int64, device=device)
    with torch.cuda.device_of(counts):
        for (dtype, wide_loads), group in zip(groups, groups_there, strict=True):
            if len(group):
                _pack[(len(group) * models,)](
                    group,
                    pointers_there,
                    thresholds.contiguous(),
                    planes,
                    partials,
                    models,
                    STORAGE=LOADED[dtype],
                    ALIGNED=wide_loads,
                    WORDS=WORDS,
                    num_warps=WARPS,
                    enable_fp_fusion=True,
                )
        if len(chunks):
            _count[(len(chunks) * models,)](
                chunks_there, planes, counts, models, WORDS=WORDS, num_warps=WARPS, enable_fp_fusion=True
            )
    return DeviceSigns(gram.summed(partials, first_there), counts, absolute)


def _tiles(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles of layers as rows (layer, start, length, row of the planes), and each layer's first row."""
    tile = 32 * WORDS
    rows = [(layer, at, min(tile, size - at)) for layer, size in enumerate(sizes) for at in range(0, size, tile)]
    first = np.cumsum([0] + [-(-size // tile) for size in sizes])
    return np.array([(*row, at) for at, row in enumerate(rows)], dtype=np.int64).reshape(-1, 4), first


def _chunks(first: np.ndarray) -> np.ndarray:
    """Return the chunks of layers as rows (layer, first row of the planes, end of the rows)."""
    ends = enumerate(itertools.pairwise(first.tolist()))
    rows = [(layer, at, min(at + TILES, end)) for layer, (begin, end) in ends for at in range(begin, end, TILES)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


@triton.jit(do_not_specialize=["models"])
def _pack(
    tiles,
    addresses,
    thresholds,
    planes,
    partials,
    models,
    STORAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Write the bits of one tile of a task vector, and the sum of its elements."""
    tile = tiles + 4 * (tl.program_id(0) // models)
    model = tl.program_id(0) % models
    start = tl.multiple_of(tl.load(tile + 1), 16)
    length = tl.load(tile + 2).to(tl.int32)
    layer = tl.load(tile)
    base_address = tl.load(addresses + layer * (models + 1))
    base = base_address.to(tl.pointer_type(STORAGE)) + start
    tuned = tl.load(addresses + layer * (models + 1) + 1 + model).to(tl.pointer_type(STORAGE)) + start
    if ALIGNED:
        base = tl.multiple_of(base, 16)
        tuned = tl.multiple_of(tuned, 16)
    threshold = tl.load(thresholds + layer * models + model)
    words = tl.arange(0, WORDS)
    has_base = tl.full((WORDS,), base_address, tl.int64) != 0
    everywhere = tl.full((WORDS,), True, tl.int1)
    changed = tl.full((WORDS,), 0, tl.int32)
    negative = tl.full((WORDS,), 0, tl.int32)
    kept = tl.full((WORDS,), 0, tl.int32)
    total = tl.full((WORDS,), 0.0, tl.float64)
    # Whole rows have no mask along the words, which would prevent wide loads.
    whole = length // WORDS
    for bit in range(0, whole):
        delta = _difference(tuned, base, bit * WORDS + words, has_base, everywhere, STORAGE)
        changed, negative, kept = _with_bit(changed, negative, kept, delta, threshold, bit)
        total += delta
    if whole * WORDS < length:
        inside = whole * WORDS + words < length
        delta = _difference(tuned, base, whole * WORDS + words, has_base & inside, inside, STORAGE)
        changed, negative, kept = _with_bit(changed, negative, kept, delta, threshold, whole)
        total += delta
    row = tl.load(tile + 3) * models + model
    out = planes + row * PLANES * WORDS + words
    tl.store(out, changed)
    tl.store(out + WORDS, negative)
    tl.store(out + 2 * WORDS, kept)
    tl.store(partials + row, tl.sum(total))


@triton.jit
def _difference(tuned, base, elements, has_base, inside, STORAGE: tl.constexpr):
    """Return elements of tuned − base in float64, and zeros outside."""
    WIDE: tl.constexpr = tl.float64 if tl.float64 == STORAGE else tl.float32  # to float64 in one step fails for 16 bits
    subtracted = tl.load(base + elements, mask=has_base, other=0.0).to(WIDE).to(tl.float64)
    return tl.load(tuned + elements, mask=inside, other=0.0).to(WIDE).to(tl.float64) - subtracted


@triton.jit
def _with_bit(changed, negative, kept, delta, threshold, bit):
    """Return the planes with one bit of every word set as the elements of a task vector say. NaN sets none."""
    size = tl.abs(delta)
    changed |= tl.where(size > 0.0, 1, 0) << bit
    negative |= tl.where(delta < 0.0, 1, 0) << bit
    kept |= tl.where((size > 0.0) & (size >= threshold), 1, 0) << bit
    return changed, negative, kept


@triton.jit(do_not_specialize=["models"])
def _count(chunks, planes, counts, models, WORDS: tl.constexpr):
    """Add the counts of one model with itself and with each model behind it, over the tiles of a chunk."""
    chunk = chunks + 3 * (tl.program_id(0) // models)
    i = tl.program_id(0) % models
    counts += tl.load(chunk) * 4 * models * models
    first = tl.load(chunk + 1)
    end = tl.load(chunk + 2)
    words = tl.arange(0, WORDS)
    for j in range(i, models):
        shared = tl.full((WORDS,), 0, tl.int32)
        opposite = tl.full((WORDS,), 0, tl.int32)
        kept_shared = tl.full((WORDS,), 0, tl.int32)
        kept_opposite = tl.full((WORDS,), 0, tl.int32)
        for tile in range(first, end):
            one = planes + (tile * models + i) * PLANES * WORDS + words
            other = planes + (tile * models + j) * PLANES * WORDS + words
            both = tl.load(one) & tl.load(other)
            differ = tl.load(one + WORDS) ^ tl.load(other + WORDS)
            kept = tl.load(one + 2 * WORDS) & tl.load(other + 2 * WORDS)
            shared += _ones(both)
            opposite += _ones(both & differ)
            kept_shared += _ones(kept)
            kept_opposite += _ones(kept & differ)
        _add(counts, i, j, models, tl.sum(shared))
        _add(counts + models * models, i, j, models, tl.sum(opposite))
        _add(counts + 2 * models * models, i, j, models, tl.sum(kept_shared))
        _add(counts + 3 * models * models, i, j, models, tl.sum(kept_opposite))


@triton.jit
def _ones(words):
    """Return the number of ones of 32-bit words. The compiler makes one instruction of it."""
    bits = words.to(tl.uint32, bitcast=True)
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _add(counts, i, j, models, count):
    """Add a count of models i and j to a matrix, on both sides of the diagonal."""
    tl.atomic_add(counts + i * models + j, count.to(tl.int64), sem="relaxed")
    tl.atomic_add(counts + j * models + i, count.to(tl.int64), mask=i != j, sem="relaxed")
