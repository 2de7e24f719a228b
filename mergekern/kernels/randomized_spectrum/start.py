"""Ω: random signs that depend on a tensor's name alone, and are the same numbers on every backend."""

from __future__ import annotations

import numpy as np
import xxhash

from mergekern.kernels.randomized_spectrum import SEED


class Start:
    """The random signs of one tensor, a new draw each time that they are asked for."""

    def __init__(self, name: str, size: int) -> None:
        self._key = xxhash.xxh3_128_intdigest(f"{SEED}\0{name}".encode())
        self._size, self._draws = size, 0

    def signs(self, count: int) -> np.ndarray:
        """Return (count, size) of ±1."""
        # Blocks of the generator are numbered by the low 64 bits of the counter.
        generator = np.random.Philox(counter=self._draws << 64, key=self._key)
        self._draws += 1
        words = generator.random_raw(-(-count * self._size // 64))
        bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: count * self._size]
        return 1.0 - 2.0 * bits.reshape(count, self._size)
