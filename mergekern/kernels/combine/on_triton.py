"""`combine` by Triton. A tile of each model is read once, or twice if the consensus needs the sum first.

The operations and their order are those of the oracle, without fused multiply-adds, so that the bits are equal. Counts
are added atomically: sums of integers do not depend on the order.

The second read of a tile hits the cache of its multiprocessor: 8 models of float32 take 32 KB.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from mergekern.kernels.combine import Rule, check
from mergekern.kernels.device_inputs import ALIGNMENT, LOADED, addresses, in_one_dtype, to_device

# Elements of a tile. A thread has 8, which are two loads of 16 bytes for float32.
TILE = 1024
WARPS = 4
# Positions of the counts in the tally.
SIGNS = tl.constexpr(0)
UNDECIDED = tl.constexpr(1)
NON_FINITE = tl.constexpr(2)


def combine(
    base: torch.Tensor | None, tuned: Sequence[torch.Tensor], rule: Rule, out: torch.Tensor, start: int = 0
) -> torch.Tensor:
    """Write the merged elements to `out` ((D,) float32 or float64). Return the tally, without waiting for the device.

    If storage dtypes differ, tensors are first copied to float32 or float64.

    Args:
        base: (D,), contiguous; None for zero.
        tuned: N × (D,), contiguous.
        rule: how the task vectors are merged.
        out: receives the result, (D,) float32 or float64.
        start: index of the first element in the tensor, for masks.

    Returns:
        (3,) int64 on the device: the fields of `Tally`.
    """
    check(base, tuned, out)
    stored = in_one_dtype([base, *tuned], LOADED)
    some = stored[-1]
    assert some is not None
    models = len(tuned)
    thresholds, limits = rule.thresholds or (0.0,) * models, rule.limits or (np.inf,) * models
    keys = (*(rule.keys or (0,) * models), *(rule.dropped_below or (0,) * models))
    pointers = np.array(addresses(stored), dtype=np.int64)
    numbers = np.array([
        rule.factor, rule.total_weight, rule.majority, rule.share, *rule.weights, *thresholds, *limits, *rule.counts,
        *(rule.ballots or rule.weights), *(rule.alone or (1.0,) * models), rule.floor, rule.spread,
    ])  # fmt: skip
    tables = [pointers, numbers.view(np.int64), np.array(keys, dtype=np.uint64).view(np.int64), np.zeros(3, np.int64)]
    pointers_there, numbers_there, keys_there, tally = to_device(tables, out.device)
    aligned = not (pointers % ALIGNMENT).any()
    whole = out.numel() // TILE
    # An incomplete last tile needs a mask, which prevents wide loads, so that it gets a launch of its own.
    for first_tile, tiles, is_whole in ((0, whole, True), (whole, int(out.numel() > whole * TILE), False)):
        if tiles:
            with torch.cuda.device_of(out):
                _combine[(tiles,)](
                    pointers_there,
                    numbers_there.view(torch.float64),
                    keys_there,
                    out,
                    tally,
                    first_tile,
                    out.numel(),
                    start,
                    models,
                    rule.needed,
                    STORAGE=LOADED[some.dtype],
                    ALIGNED=aligned,
                    WHOLE=is_whole,
                    CONSENSUS=rule.consensus,
                    MASKED=rule.keys is not None,
                    LIMITED=rule.limits is not None,
                    COUNTED=rule.by_count,
                    BALLOTS=rule.ballots is not None and rule.elects,
                    FLOOR=rule.floor > 0,
                    SPREAD=rule.spread != 0,
                    FROM_ZERO=base is None,
                    TILE=TILE,
                    num_warps=WARPS,
                    enable_fp_fusion=False,
                )
    return tally


@triton.jit(do_not_specialize=["first_tile", "count", "start", "models", "needed"])
def _combine(
    addresses,
    numbers,
    keys,
    out,
    tally,
    first_tile,
    count,
    start,
    models,
    needed,
    STORAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
    CONSENSUS: tl.constexpr,
    MASKED: tl.constexpr,
    LIMITED: tl.constexpr,
    COUNTED: tl.constexpr,
    BALLOTS: tl.constexpr,
    FLOOR: tl.constexpr,
    SPREAD: tl.constexpr,
    FROM_ZERO: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write base + factor·consensus of one tile, and add its counts to the tally."""
    first = (first_tile + tl.program_id(0)).to(tl.int64) * TILE
    columns = tl.arange(0, TILE)
    inside = tl.full((TILE,), True, tl.int1) if WHOLE else first + columns < count
    index = (first + columns + start).to(tl.uint64)
    base = tl.full((TILE,), 0.0, tl.float64)
    if not FROM_ZERO:
        base = _values(addresses, 0, first, columns, inside, STORAGE, ALIGNED)
    chosen = tl.full((TILE,), True, tl.int1)
    if SPREAD:
        variance = _variance(addresses, base, models, first, columns, inside, STORAGE, ALIGNED, TILE)
        chosen = variance >= tl.load(numbers + 5 + 6 * models)
    total, votes, kept, non_finite, holders, held_weight, alone = _sums(
        addresses, numbers, keys, models, base, chosen, index, first, columns, inside,
        STORAGE, ALIGNED, CONSENSUS, MASKED, LIMITED, COUNTED, BALLOTS, TILE,
    )  # fmt: skip
    if CONSENSUS == "mean":
        merged = total / tl.load(numbers + 1)
    elif CONSENSUS == "elect" or CONSENSUS == "elect_sum" or CONSENSUS == "elect_max":
        sign = tl.where(votes > 0.0, 1.0, tl.where(votes < 0.0, -1.0, tl.load(numbers + 2)))
        merged = _elected(
            addresses, numbers, keys, models, base, chosen, index, first, columns, inside, sign,
            STORAGE, ALIGNED, CONSENSUS, MASKED, LIMITED, FLOOR, TILE,
        )  # fmt: skip
    elif CONSENSUS == "held":
        merged = total * tl.where(holders == 1, alone, 1.0) / tl.where(held_weight > 0.0, held_weight, 1.0)
    elif CONSENSUS == "agree":
        claims = _claims(
            addresses, numbers, keys, models, base, chosen, index, first, columns, inside, total,
            STORAGE, ALIGNED, MASKED, LIMITED, TILE,
        )  # fmt: skip
        merged = tl.where(claims >= needed, total, 0.0)
    else:
        merged = total
    result = base + tl.load(numbers) * merged
    tl.store(out + first + columns, result.to(out.dtype.element_ty), mask=inside)
    _add_to_tally(tally, votes, kept, non_finite, CONSENSUS)


@triton.jit
def _sums(
    addresses, numbers, keys, models, base, chosen, index, first, columns, inside,
    STORAGE: tl.constexpr, ALIGNED: tl.constexpr, CONSENSUS: tl.constexpr, MASKED: tl.constexpr,
    LIMITED: tl.constexpr, COUNTED: tl.constexpr, BALLOTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return sums over the models of one tile, by one read: of the parts, of the votes for a sign, and who is in them.

    The others are: whether any part is not zero, how many elements are not finite, how many models hold an element, the
    sum of their weights, and of their factors as the only one.
    """
    counted = tl.full((TILE,), 0, tl.int32)
    total = tl.full((TILE,), 0.0, tl.float64)
    ballots = tl.full((TILE,), 0.0, tl.float64)
    held_weight = tl.full((TILE,), 0.0, tl.float64)
    alone = tl.full((TILE,), 0.0, tl.float64)
    holders = tl.full((TILE,), 0, tl.int32)
    non_finite = tl.full((TILE,), 0, tl.int32)
    kept = tl.full((TILE,), False, tl.int1)
    for model in range(0, models):
        delta = _values(addresses, 1 + model, first, columns, inside, STORAGE, ALIGNED) - base
        non_finite += tl.where(tl.abs(delta) <= 1.7976931348623157e308, 0, 1)
        own = _kept(delta, numbers, keys, model, models, index, chosen, MASKED, LIMITED)
        part = own * tl.load(numbers + 4 + model)
        kept |= part != 0.0
        total += part
        if COUNTED:
            counted += tl.where(part > 0.0, 1, 0) - tl.where(part < 0.0, 1, 0)
        if BALLOTS:
            ballots += own * tl.load(numbers + 4 + 4 * models + model)
        if CONSENSUS == "held":
            holds = own != 0.0
            holders += tl.where(holds, 1, 0)
            held_weight += tl.where(holds, tl.load(numbers + 4 + 3 * models + model), 0.0)
            alone += tl.where(holds, tl.load(numbers + 4 + 5 * models + model), 0.0)
    votes = total
    if COUNTED:
        votes = counted.to(tl.float64)
    if BALLOTS:
        votes = ballots
    return total, votes, kept, non_finite, holders, held_weight, alone


@triton.jit
def _elected(
    addresses, numbers, keys, models, base, chosen, index, first, columns, inside, sign,
    STORAGE: tl.constexpr, ALIGNED: tl.constexpr, CONSENSUS: tl.constexpr, MASKED: tl.constexpr,
    LIMITED: tl.constexpr, FLOOR: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the mean, the sum or the largest of the parts that have the elected sign."""
    merged = tl.full((TILE,), 0.0, tl.float64)
    weight = tl.full((TILE,), 0.0, tl.float64)
    for model in range(0, models):
        delta = _values(addresses, 1 + model, first, columns, inside, STORAGE, ALIGNED) - base
        part = _kept(delta, numbers, keys, model, models, index, chosen, MASKED, LIMITED)
        part *= tl.load(numbers + 4 + model)
        agrees = part * sign > 0.0
        if CONSENSUS == "elect_max":
            merged = tl.where(part * sign > merged, part * sign, merged)
        else:
            merged += tl.where(agrees, part, 0.0)
            weight += tl.where(agrees, tl.load(numbers + 4 + 3 * models + model), 0.0)
    if CONSENSUS == "elect_max":
        merged = merged * sign
    elif CONSENSUS == "elect":
        divisor = tl.where(tl.abs(weight) >= 1e-8, weight, 1.0)
        if FLOOR:
            floor = tl.load(numbers + 4 + 6 * models)
            divisor = tl.where(weight > floor, weight, floor)
        merged = merged / divisor
    return merged


@triton.jit
def _claims(
    addresses, numbers, keys, models, base, chosen, index, first, columns, inside, total,
    STORAGE: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr, LIMITED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return how many models claim each element: their part exceeds a share of what the others add up to."""
    share = tl.load(numbers + 3)
    claims = tl.full((TILE,), 0, tl.int32)
    for model in range(0, models):
        delta = _values(addresses, 1 + model, first, columns, inside, STORAGE, ALIGNED) - base
        part = _kept(delta, numbers, keys, model, models, index, chosen, MASKED, LIMITED)
        part *= tl.load(numbers + 4 + model)
        claims += tl.where(tl.abs(part) > share * tl.abs(total - part), 1, 0)
    return claims


@triton.jit
def _add_to_tally(tally, votes, kept, non_finite, CONSENSUS: tl.constexpr):
    """Add the counts of a tile. Elements beyond the tensor have sums of zero, and are not counted."""
    signs = tl.where(votes > 0.0, 1, 0) - tl.where(votes < 0.0, 1, 0)
    tl.atomic_add(tally + SIGNS, tl.sum(signs).to(tl.int64), sem="relaxed")
    tl.atomic_add(tally + NON_FINITE, tl.sum(non_finite).to(tl.int64), sem="relaxed")
    if CONSENSUS == "elect" or CONSENSUS == "elect_sum" or CONSENSUS == "elect_max":
        undecided = tl.where((votes == 0.0) & kept, 1, 0)
        tl.atomic_add(tally + UNDECIDED, tl.sum(undecided).to(tl.int64), sem="relaxed")


@triton.jit
def _values(addresses, which, first, columns, inside, STORAGE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a tile of one tensor in float64; `which` is the position of its address."""
    pointer = tl.load(addresses + which).to(tl.pointer_type(STORAGE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    values = tl.load(pointer + tl.multiple_of(first, 16) + columns, mask=inside, other=0.0)
    return values.to(tl.float32).to(tl.float64) if tl.float64 != STORAGE else values


@triton.jit
def _variance(
    addresses, base, models, first, columns, inside, STORAGE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr
):
    """Return the variance of a tile of the task vectors over the models."""
    mean = tl.full((TILE,), 0.0, tl.float64)
    for model in range(0, models):
        mean += _values(addresses, 1 + model, first, columns, inside, STORAGE, ALIGNED) - base
    mean = mean / models.to(tl.float64)
    variance = tl.full((TILE,), 0.0, tl.float64)
    for model in range(0, models):
        apart = _values(addresses, 1 + model, first, columns, inside, STORAGE, ALIGNED) - base - mean
        variance += apart * apart
    return variance / models.to(tl.float64)


@triton.jit
def _kept(delta, numbers, keys, model, models, index, chosen, MASKED: tl.constexpr, LIMITED: tl.constexpr):
    """Return τ where it is chosen, between threshold and limit, and not dropped by the mask, else 0."""
    part = tl.where(chosen & (tl.abs(delta) >= tl.load(numbers + 4 + models + model)), delta, 0.0)
    if LIMITED:
        part = tl.where(tl.abs(part) <= tl.load(numbers + 4 + 2 * models + model), part, 0.0)
    if MASKED:
        z = tl.load(keys + model).to(tl.uint64, bitcast=True) + (index + 1) * 0x9E3779B97F4A7C15
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB
        z = (z ^ (z >> 31)) >> 11
        part = tl.where(z.to(tl.int64) < tl.load(keys + models + model), 0.0, part)
    return part
