"""`gram` by Triton: all models of many tensors in one launch. Differences exist in registers only.

There are two stages. A program of the first stage processes a chunk of one tensor and writes N × N partial products.
The second stage adds the chunks of each tensor in order. There are no atomic additions, and chunks depend on the size
of the tensor only, so that a tensor's result has the same bits in every run and with any other tensors in the launch.

Up to 16 models form one block. Up to 32 form two blocks of one program, which skips the lower quarter of the products.
With more models every pair of 32 has a program of its own, which reads the base and its own models.

Products, with the error of an inner product relative to Σ|τ_i·τ_j| (`float64` is the default):

- float64: the difference is exact; products and sums are float64, on tensor cores. Error about 1e-16.
- tf32x3: the difference is rounded to float32, three TF32 products replace one in float32, sums are float32 within a
  tile and float64 across tiles. Error at most 1e-6. Only for storage dtypes of at most 32 bits.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import triton
import triton.language as tl

from mergekern.kernels.device_inputs import ALIGNMENT, STORAGE, addresses, in_one_dtype, to_device
from mergekern.kernels.gram import Blocks, Gram, gram_of_blocks

Products = Literal["float64", "tf32x3"]

# Rows of the smallest tensor-core product that Triton generates, and the number of models in a pair of such blocks.
BLOCK = 16
PAIR = 2 * BLOCK
# Columns of a tile: one line of memory for each model. 20 models of float32 or bfloat16 take 160 registers a thread.
# Tiles are narrow where that would spill registers: with loads of single elements, and with operands split in three.
TILE_BYTES = 128
NARROW = 16
# With one warp a program, each fragment of the difference is both operands of a product without leaving its registers.
WARPS = 1
STAGES = 3
# CHUNK is the smallest number of elements of a chunk: writing its products is then 2 % of the bytes. CHUNKS is the
# largest number of chunks of a tensor.
CHUNK = 4096
CHUNKS = 1024
# Elements of a tile of `squared_distances`, and rows and columns of a tile of the second stage: 8 values a thread.
SQUARES_TILE = 1024
SUM_ROWS = 32
SUM_COLUMNS = 32
SUM_WARPS = 4


def inner_products(
    layers: Sequence[Sequence[torch.Tensor | None]], products: Products = "float64", *, absolute: bool = False
) -> torch.Tensor:
    """Return the inner products of the task vectors of L tensors, (L, N, N) float64 on their device, without waiting.

    A layer whose storage dtypes differ is first copied to float32 or float64.

    Args:
        layers: for each tensor [base or None for zero, tuned_0, …, tuned_{N−1}], flat and contiguous.
        products: see the module's docstring.
        absolute: whether each τ is replaced by the absolute values of its elements.
    """
    models = len(layers[0]) - 1
    layers = [in_one_dtype(_checked(layer, models)) for layer in layers]
    device = _tuned(layers[0]).device
    dtypes = [_tuned(layer).dtype for layer in layers]
    if products == "tf32x3" and torch.float64 in dtypes:
        raise ValueError("products='tf32x3' needs storage of at most 32 bits, not float64")
    chunks, first = _chunks([_tuned(layer).numel() for layer in layers])
    pointers = np.array([addresses(layer) for layer in layers], dtype=np.int64)
    aligned = [not remainders.any() for remainders in pointers % ALIGNMENT]
    within, between = _pairs(models)
    # Each combination of storage dtype and alignment needs a launch of its own.
    kinds = list(zip(dtypes, aligned, strict=True))
    groups = {kind: chunks[[kinds[layer] == kind for layer in chunks[:, 0]]] for kind in dict.fromkeys(kinds)}
    on_device = to_device([pointers, first, within, between, *groups.values()], device)
    pointers_there, first_there, within_there, between_there, *groups_there = on_device

    partials = torch.empty((len(chunks), models, models), dtype=torch.float64, device=device)
    launches = itertools.product(zip(groups, groups_there, strict=True), (within_there, between_there))
    with torch.cuda.device_of(partials):
        for ((dtype, wide_loads), group), pairs in launches:
            if len(group) and len(pairs):
                _products[(len(group) * len(pairs),)](
                    group,
                    pointers_there,
                    pairs,
                    partials,
                    models,
                    len(pairs),
                    STORAGE=STORAGE[dtype],
                    ALIGNED=wide_loads,
                    BLOCK=BLOCK if pairs is within_there else PAIR,
                    TILE=TILE_BYTES // dtype.itemsize if wide_loads and products == "float64" else NARROW,
                    REST=NARROW,
                    WITHIN=pairs is within_there,
                    BETWEEN=pairs is between_there or models > BLOCK,
                    EXACT=products == "float64",
                    ABSOLUTE=absolute,
                    num_warps=WARPS,
                    num_stages=STAGES,
                    enable_fp_fusion=True,
                )
    return summed(partials, first_there)


def squared_distances(tuned: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return Σ(tuned_i − tuned_j)² for pairs (i, j) of models of one tensor, (P,) float64 on their device."""
    wide = in_one_dtype(_checked([None, *tuned], len(tuned)))
    some = _tuned(wide)
    pointers = np.array(addresses(wide)[1:], dtype=np.int64)
    chunks, first = _chunks([some.numel()])
    pointer_pairs = pointers[np.array(pairs, dtype=np.int64).reshape(-1, 2)]
    chunks_there, first_there, pairs_there = to_device([chunks, first, pointer_pairs], some.device)
    partials = torch.empty((len(chunks), len(pairs)), dtype=torch.float64, device=some.device)
    if partials.numel():
        with torch.cuda.device_of(partials):
            _squares[(partials.numel(),)](
                chunks_there,
                pairs_there,
                partials,
                len(pairs),
                STORAGE=STORAGE[some.dtype],
                ALIGNED=not (pointers % ALIGNMENT).any(),
                TILE=SQUARES_TILE,
                num_warps=SUM_WARPS,
                enable_fp_fusion=True,
            )
    return summed(partials, first_there)[0]


def gram(blocks: Blocks, threads: int = 1, split: int = 0) -> Gram:
    """Return the Gram of task vectors on a device. The call waits for the device.

    `threads` has no effect, and all pairs are computed for any split.
    """
    return gram_of_blocks(blocks, _add_inner, _add_squared_distances, split)


def _add_inner(base: torch.Tensor | None, tuned: Sequence[torch.Tensor], sums: np.ndarray) -> None:
    sums += inner_products([[base, *tuned]])[0].cpu().numpy()


def _add_squared_distances(tuned: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]], sums: np.ndarray) -> None:
    sums += squared_distances(tuned, pairs).cpu().numpy()


def _checked(layer: Sequence[torch.Tensor | None], models: int) -> Sequence[torch.Tensor | None]:
    if len(layer) != models + 1 or any(tensor is None for tensor in layer[1:]):
        raise ValueError(f"gram needs a base and {models} models of every tensor")
    there = [tensor for tensor in layer if tensor is not None]
    if not all(tensor.is_contiguous() for tensor in there):
        raise ValueError("gram needs contiguous tensors")
    if len({(tensor.numel(), tensor.device) for tensor in there}) > 1:
        raise ValueError("gram needs tensors of one size on one device")
    return layer


def _tuned(layer: Sequence[torch.Tensor | None]) -> torch.Tensor:
    first = layer[1]
    assert first is not None
    return first


def _chunks(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the chunks of layers as rows (layer, start, length, row of the partials), and each layer's first row."""
    rows: list[np.ndarray] = []
    for layer, count in enumerate(counts):
        chunk = max(CHUNK, 1 << (-(-count // CHUNKS) - 1).bit_length())
        starts = np.arange(0, count, chunk)
        rows.append(np.stack([np.full_like(starts, layer), starts, np.minimum(chunk, count - starts)], axis=1))
    first = np.cumsum([0] + [len(some) for some in rows])
    every = np.concatenate(rows)
    return np.column_stack([every, np.arange(len(every))]), first


def _pairs(models: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first models of all pairs of blocks, those that include products within each block, and the others."""
    starts = np.arange(0, models, PAIR)
    i, j = np.triu_indices(len(starts), 1)
    return np.column_stack([starts, starts + BLOCK]), np.column_stack([starts[i], starts[j]])


def summed(partials: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Return the sums of consecutive rows, first[l] to first[l + 1], of the partial results."""
    out = torch.empty((len(first) - 1, *partials.shape[1:]), dtype=torch.float64, device=partials.device)
    width = out[0].numel()
    if out.numel():
        with torch.cuda.device_of(out):
            _sum_chunks[(len(out), triton.cdiv(width, SUM_COLUMNS))](
                partials,
                first,
                out,
                width,
                ROWS=SUM_ROWS,
                COLUMNS=SUM_COLUMNS,
                num_warps=SUM_WARPS,
                enable_fp_fusion=True,
            )
    return out


@triton.jit(do_not_specialize=["models", "pair_count"])
def _products(
    chunks,
    addresses,
    pairs,
    partials,
    models,
    pair_count,
    STORAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    REST: tl.constexpr,
    WITHIN: tl.constexpr,
    BETWEEN: tl.constexpr,
    EXACT: tl.constexpr,
    ABSOLUTE: tl.constexpr,
):
    """Write the products of a pair of blocks of models over one chunk: within each block, between the two, or both."""
    chunk = chunks + 4 * (tl.program_id(0) // pair_count)
    pair = pairs + 2 * (tl.program_id(0) % pair_count)
    start = tl.multiple_of(tl.load(chunk + 1), 16)
    length = tl.load(chunk + 2)
    layer = addresses + tl.load(chunk) * (models + 1)
    left_models = tl.load(pair) + tl.arange(0, BLOCK)
    right_models = tl.load(pair + 1) + tl.arange(0, BLOCK)
    base_address = tl.load(layer)
    base = _from(base_address, start, STORAGE, ALIGNED)
    left = _from(tl.load(layer + 1 + left_models, mask=left_models < models, other=0), start, STORAGE, ALIGNED)
    right = _from(tl.load(layer + 1 + right_models, mask=right_models < models, other=0), start, STORAGE, ALIGNED)
    has_left = (left_models < models)[:, None]
    has_right = (right_models < models)[:, None]
    left_left = tl.full((BLOCK, BLOCK), 0.0, tl.float64)
    left_right = tl.full((BLOCK, BLOCK), 0.0, tl.float64)
    right_right = tl.full((BLOCK, BLOCK), 0.0, tl.float64)
    # Whole tiles have no mask along the columns, which would prevent wide loads. The remainder comes last, in narrow
    # tiles, which need few registers.
    whole = (length // TILE).to(tl.int32)
    columns = tl.arange(0, TILE)
    has_base = tl.full((TILE,), base_address, tl.int64) != 0
    for tile in range(0, whole):
        left_left, left_right, right_right = _add_tile(
            left_left, left_right, right_right, left, right, base, columns, tile * TILE, has_left, has_right, has_base,
            WITHIN, BETWEEN, EXACT, ABSOLUTE,
        )  # fmt: skip
    narrow = tl.arange(0, REST)
    for done in tl.range(whole * TILE, length.to(tl.int32), REST, num_stages=1):
        inside = done + narrow < length
        left_left, left_right, right_right = _add_tile(
            left_left, left_right, right_right, left, right, base, narrow, done, has_left & inside[None, :],
            has_right & inside[None, :], inside & (tl.full((REST,), base_address, tl.int64) != 0),
            WITHIN, BETWEEN, EXACT, ABSOLUTE,
        )  # fmt: skip
    out = partials + tl.load(chunk + 3) * models * models
    if WITHIN:
        _store(out, left_left, left_models, left_models, models)
    if WITHIN and BETWEEN:
        _store(out, right_right, right_models, right_models, models)
    if BETWEEN:
        _store(out, left_right, left_models, right_models, models)


@triton.jit
def _from(address, start, STORAGE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return pointers to elements from `start` on, of tensors at addresses."""
    pointer = address.to(tl.pointer_type(STORAGE)) + start
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _add_tile(
    left_left, left_right, right_right, left, right, base, columns, first, has_left, has_right, has_base,
    WITHIN: tl.constexpr, BETWEEN: tl.constexpr, EXACT: tl.constexpr, ABSOLUTE: tl.constexpr,
):  # fmt: skip
    """Return the sums plus the products of one tile, the columns of which begin at `first`."""
    WIDE: tl.constexpr = tl.float64 if EXACT else tl.float32
    PRECISION: tl.constexpr = "ieee" if EXACT else "tf32x3"
    subtracted = tl.load(base + columns + first, mask=has_base, other=0.0).to(WIDE)[None, :]
    a = tl.load(left[:, None] + columns[None, :] + first, mask=has_left, other=0.0).to(WIDE) - subtracted
    if ABSOLUTE:
        a = tl.abs(a)
    if WITHIN:
        left_left += tl.dot(a, tl.trans(a), input_precision=PRECISION, out_dtype=WIDE).to(tl.float64)
    if BETWEEN:
        b = tl.load(right[:, None] + columns[None, :] + first, mask=has_right, other=0.0).to(WIDE) - subtracted
        if ABSOLUTE:
            b = tl.abs(b)
        left_right += tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=WIDE).to(tl.float64)
        if WITHIN:
            right_right += tl.dot(b, tl.trans(b), input_precision=PRECISION, out_dtype=WIDE).to(tl.float64)
    return left_left, left_right, right_right


@triton.jit
def _store(out, total, i, j, models):
    """Store products of models i and j, i ≤ j, on both sides of the diagonal."""
    i = i[:, None]
    j = j[None, :]
    here = (i <= j) & (j < models)
    tl.store(out + i * models + j, total, mask=here)
    tl.store(out + j * models + i, total, mask=here)


@triton.jit(do_not_specialize=["pair_count"])
def _squares(chunks, pairs, partials, pair_count, STORAGE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):
    """Write the squared distance of one pair of models, given by two addresses, over one chunk."""
    chunk = chunks + 4 * (tl.program_id(0) // pair_count)
    pair = tl.program_id(0) % pair_count
    start = tl.multiple_of(tl.load(chunk + 1), 16)
    length = tl.load(chunk + 2)
    one = tl.load(pairs + 2 * pair).to(tl.pointer_type(STORAGE)) + start
    other = tl.load(pairs + 2 * pair + 1).to(tl.pointer_type(STORAGE)) + start
    if ALIGNED:
        one = tl.multiple_of(one, 16)
        other = tl.multiple_of(other, 16)
    columns = tl.arange(0, TILE)
    one = one + columns
    other = other + columns
    total = tl.full((TILE,), 0.0, tl.float64)
    whole = (length // TILE).to(tl.int32)
    for _ in range(0, whole):
        difference = tl.load(one).to(tl.float64) - tl.load(other).to(tl.float64)
        total += difference * difference
        one += TILE
        other += TILE
    inside = columns < length - whole.to(tl.int64) * TILE
    difference = tl.load(one, mask=inside, other=0.0).to(tl.float64)
    difference -= tl.load(other, mask=inside, other=0.0).to(tl.float64)
    total += difference * difference
    tl.store(partials + tl.load(chunk + 3) * pair_count + pair, tl.sum(total))


@triton.jit(do_not_specialize=["width"])
def _sum_chunks(partials, first, out, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write the sums of rows first[l] to first[l + 1] of partials (rows, width), `ROWS` at a time."""
    layer = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.arange(0, ROWS)[:, None]
    begin = tl.load(first + layer)
    end = tl.load(first + layer + 1)
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
    for row in range(begin, end, ROWS):
        inside = (row + rows < end) & (columns < width)
        total += tl.load(partials + (row + rows) * width + columns, mask=inside, other=0.0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(out + layer.to(tl.int64) * width + columns, tl.sum(total, axis=0), mask=columns < width)
