"""`trim` on the CPU: by a window around the value where one block has all, else by radix select.

The C++ kernel counts; NumPy where the extension was not built, which always selects by radix.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mergekern.kernels.native import address, extension
from mergekern.kernels.trim import DIGITS, Blocks

# The most values that are collected instead of counted again. The limit is low before the first pass, since counting
# reduces the values to a few per cent with one read. It is 32 MB later.
_FEW = 1 << 14
_MANY = 1 << 22
# Values of which a sample guesses a window around the k-th largest, and half the window's width in standard deviations
# of the sample's rank: 3 % of the values or less lie within, and one read is enough.
_SAMPLE, _DEVIATIONS = 1 << 14, 4.0
# Elements of a block of the NumPy path: 8 MB of float64.
_NUMPY_BLOCK = 1 << 20


def kth_largest(blocks: Blocks, count: int, k: int, threads: int = 1) -> float:
    """Return the k-th largest magnitude of `count` values; see the package's docstring.

    Args:
        blocks: returns (base or None, tuned) of all blocks, flat and contiguous.
        count: number of values in all blocks together.
        k: from 1 to count.
        threads: threads of the C++ kernel; the result does not depend on them.

    >>> kth_largest(lambda: [(None, torch.tensor([1.0, -3.0, 2.0, 3.0]))], 4, 3)
    2.0
    """
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to {count}, not {k}")
    whole = next(iter(blocks()), None)
    if whole is not None and whole[1].numel() == count > _SAMPLE and extension is not None:
        found = _in_window(*whole, k, threads)
        if found is not None:
            return found
    del whole
    prefix, above, left = 0, 63, count  # `left` values agree with `prefix` in the bits from `above` on
    for digit, (shift, width) in enumerate(DIGITS):
        if left <= (_MANY if digit else _FEW):
            values = np.concatenate([_collect(b, t, prefix, above, threads) for b, t in blocks()])
            return float(np.partition(values, left - k)[left - k])
        counts = np.zeros(1 << width, dtype=np.int64)
        for base, tuned in blocks():
            counts += _counts(base, tuned, prefix, above, shift, width, threads)
        larger = np.cumsum(counts[::-1])[::-1] - counts  # for each bin, the number of values in higher bins
        at = int(np.flatnonzero((larger < k) & (k <= larger + counts))[0])
        k -= int(larger[at])
        left = int(counts[at])
        prefix, above = prefix << width | at, shift
    return float(np.array(prefix, dtype=np.uint64).view(np.float64))


def most_reads(count: int, in_one_block: bool) -> int:
    """Return how often `kth_largest` reads its values, at most, unless a sample guesses wrong.

    Args:
        count: number of values.
        in_one_block: whether one block has all of them.

    >>> most_reads(1 << 20, in_one_block=True), most_reads(1 << 20, in_one_block=False)
    (1, 3)
    """
    if in_one_block and count > _SAMPLE and extension is not None:
        return 1
    # The first block is read to see whether it has all.
    return 1 + (1 if count <= _FEW else 2 if count <= _MANY else len(DIGITS))


def workspace(count: int) -> int:
    """Return the bytes that `kth_largest` of so many values takes on one thread, beside the blocks.

    >>> workspace(1 << 10) == 8 << 10
    True
    """
    counts, collected = 8 << DIGITS[0][1], 8 * min(count, _MANY)
    return collected if count <= _FEW else counts + collected


def _in_window(base: torch.Tensor | None, tuned: torch.Tensor, k: int, threads: int) -> float | None:
    """Return the k-th largest magnitude by one read of all values; None where a sample guessed the window wrong.

    The result is exact: the values above the window and those that equal its ends are counted.
    """
    count = tuned.numel()
    low, high = _window(base, tuned, k)
    between, above, at_high, at_low = extension.magnitudes_between(
        _address(base), address(tuned), count, low, high, threads
    )
    place = k - above
    if place < 1:
        return None
    if place <= at_high:
        return high
    place -= at_high
    if place <= len(between):
        return float(np.partition(between, len(between) - place)[len(between) - place])
    return low if place - len(between) <= at_low else None


def _window(base: torch.Tensor | None, tuned: torch.Tensor, k: int) -> tuple[float, float]:
    """Return magnitudes below and above the k-th largest, as a sample has it."""
    count = tuned.numel()
    stride = count // _SAMPLE
    places = np.arange(_SAMPLE) * stride + np.random.default_rng(0).integers(stride, size=_SAMPLE)
    at = torch.from_numpy(places)
    values = tuned[at].to(torch.float64).numpy()
    if base is not None:
        values = values - base[at].to(torch.float64).numpy()
    values = np.sort(np.abs(values))
    share = k / count
    middle, margin = _SAMPLE * (1.0 - share), _DEVIATIONS * (_SAMPLE * share * (1.0 - share)) ** 0.5 + 1.0
    lowest, highest = int(middle - margin), int(middle + margin) + 1
    return float(values[lowest]) if lowest >= 0 else 0.0, float(values[highest]) if highest < _SAMPLE else np.inf


def _counts(
    base: torch.Tensor | None, tuned: torch.Tensor, prefix: int, above: int, shift: int, width: int, threads: int
) -> np.ndarray:
    """Return the counts (2^width,) of the values that begin with `prefix`, by their next `width` bits."""
    if extension is not None:
        return extension.magnitude_counts(
            _address(base), address(tuned), tuned.numel(), prefix, above, shift, width, threads
        )
    counts = np.zeros(1 << width, dtype=np.int64)
    for bits in _bits(base, tuned):
        digits = (bits[bits >> np.uint64(above) == prefix] >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        counts += np.bincount(digits.astype(np.int64), minlength=1 << width)
    return counts


def _collect(base: torch.Tensor | None, tuned: torch.Tensor, prefix: int, above: int, threads: int) -> np.ndarray:
    """Return the magnitudes that begin with `prefix`, in any order."""
    if extension is not None:
        return extension.magnitudes(_address(base), address(tuned), tuned.numel(), prefix, above, threads)
    return np.concatenate([bits[bits >> np.uint64(above) == prefix] for bits in _bits(base, tuned)]).view(np.float64)


def _bits(base: torch.Tensor | None, tuned: torch.Tensor) -> Iterator[np.ndarray]:
    for start in range(0, tuned.numel(), _NUMPY_BLOCK):
        block = slice(start, start + _NUMPY_BLOCK)
        delta = tuned[block].to(torch.float64).numpy()
        if base is not None:
            delta = delta - base[block].to(torch.float64).numpy()
        yield np.abs(delta).view(np.uint64)


def _address(base: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if base is None else address(base)
