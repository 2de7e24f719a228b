"""a·b + c, rounded once."""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np

Values = np.ndarray[Any, Any]

_SPLITTER = np.float64(2**27 + 1)
# Beyond these the parts of a product overflow, or lose bits below the smallest numbers.
_LEAST, _MOST = 1e-250, 1e250
_library = ctypes.CDLL(ctypes.util.find_library("m"))
_library.fma.argtypes, _library.fma.restype = [ctypes.c_double] * 3, ctypes.c_double


def fma(a: Values, b: Values, c: Values) -> Values:
    """Return a·b + c, rounded once to the arguments' type, float32 or float64.

    >>> float(fma(np.float32([1 + 2**-12]), np.float32([1 - 2**-12]), np.float32([-1]))[0]) == -(2**-24)
    True
    """
    with np.errstate(all="ignore"):
        return _single(a, b, c) if a.dtype == np.float32 else _double(a, b, c)


def _single(a: Values, b: Values, c: Values) -> Values:
    # A product of two float32 is a float64; a sum rounded to odd can be rounded again.
    total = _odd_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
    return total.astype(np.float32)


def _double(a: Values, b: Values, c: Values) -> Values:
    """Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Computers 57 (2008), figure 4."""
    product = a * b
    sizes = [np.abs(each) for each in (a, b, c, product)]
    ordinary = np.logical_and.reduce([(size == 0) | ((size > _LEAST) & (size < _MOST)) for size in sizes])
    high, low = _two_sum(c, _product_error(a, b, product))
    top, rest = _two_sum(product, high)
    found = top + _odd_sum(rest, low)
    # A sum of zero has the sign that IEEE gives to the sum of the product and c.
    found = np.where(ordinary & (found == 0), product + c, found)
    for index in np.nonzero(~ordinary)[0]:
        found[index] = _library.fma(float(a[index]), float(b[index]), float(c[index]))
    return found


def _two_sum(a: Values, b: Values) -> tuple[Values, Values]:
    """Return a + b rounded, and what rounding took (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _product_error(a: Values, b: Values, product: Values) -> Values:
    """Return a·b − product, exactly (Dekker)."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _halves(a: Values) -> tuple[Values, Values]:
    scaled = _SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


def _odd_sum(a: Values, b: Values) -> Values:
    """Return a + b rounded to odd: where it is not exact, that neighbour whose last bit is one."""
    total, error = _two_sum(a, b)
    is_even = (total.view(np.uint64) & np.uint64(1)) == 0
    inexact = np.isfinite(total) & (error != 0)
    towards = np.copysign(np.inf, error)
    return np.where(inexact & is_even, np.nextafter(total, towards), total)
