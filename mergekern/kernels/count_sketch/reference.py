"""The float64 oracle of `count_sketch`: the map as a matrix."""

from __future__ import annotations

import numpy as np
import xxhash


def matrix(size: int, count: int, seed: int, name: str) -> np.ndarray:
    """Return the (S, count) map of one tensor. Each column has one ±1, and so has each row of a chunk of S columns.

    >>> np.abs(matrix(64, 10, 0, "w")).sum(0)
    array([1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    key = xxhash.xxh3_128_intdigest(f"{seed}\0{name}".encode())
    out = np.zeros((size, count))
    for chunk in range(-(-count // size)):
        words = [int(word) for word in np.random.Philox(counter=chunk << 64, key=key).random_raw(size // 64 + 2)]
        for place in range(size):
            element = chunk * size + ((words[-2] | 1) * place + words[-1]) % size
            if element < count:
                # The highest bit of each byte first, the lowest byte of each word first.
                byte, bit = divmod(place, 8)
                out[place, element] = 1 - 2 * (words[byte // 8] >> (8 * (byte % 8) + 7 - bit) & 1)
    return out
