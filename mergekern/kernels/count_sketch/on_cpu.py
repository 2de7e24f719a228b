"""`count_sketch` on the CPU: one chunk at a time, for all models at once, since they share the map."""

from __future__ import annotations

import numpy as np
import xxhash

# The smallest size of a sketch, for which the signs of one chunk fill one word.
LEAST = 64
# Bits of one number of the generator.
_WORD = 64


class CountSketch:
    """The random linear map of one tensor.

    Args:
        size: S, the number of elements of a sketch; a power of two, at least LEAST.
        seed: seed of all maps.
        name: name of the tensor.

    >>> out = np.zeros((1, 64))
    >>> CountSketch(64, 0, "w").add(out, 0, np.ones((1, 100)))
    >>> out.shape, float(out.sum()) in range(-100, 101)
    ((1, 64), True)
    """

    def __init__(self, size: int, seed: int, name: str) -> None:
        self._size = size
        self._key = xxhash.xxh3_128_intdigest(f"{seed}\0{name}".encode())
        self._steps = np.arange(size, dtype=np.uint64)

    def add(self, sketches: np.ndarray, start: int, values: np.ndarray) -> None:
        """Add elements [start, start + L) of task vectors, (N, L) float64, to their sketches, (N, S) float64."""
        stop = start + values.shape[1]
        padded = np.zeros_like(sketches)
        for chunk in range(start // self._size, -(-stop // self._size)):
            sources, signs = self._chunk(chunk)
            first, last = max(start, chunk * self._size), min(stop, (chunk + 1) * self._size)
            part = values[:, first - start : last - start]
            if part.shape[1] < self._size:
                padded[:] = 0.0
                padded[:, first - chunk * self._size : last - chunk * self._size] = part
                part = padded
            taken = np.take(part, sources, axis=1)
            taken *= signs
            sketches += taken

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each place of the sketch, the position in the chunk that is added to it, and the sign."""
        # Blocks of the generator are numbered by the low 64 bits of the counter.
        words = np.random.Philox(counter=chunk << 64, key=self._key).random_raw(self._size // _WORD + 2)
        factor, offset = words[-2] | np.uint64(1), words[-1]
        sources = (self._steps * factor + offset) & np.uint64(self._size - 1)
        bits = np.unpackbits(words[:-2].astype("<u8").view(np.uint8))
        return sources.astype(np.intp), 1.0 - 2.0 * bits
