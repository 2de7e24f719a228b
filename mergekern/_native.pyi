"""C++ kernels of mergekern; use them through mergekern.kernels."""

from collections.abc import Sequence

import numpy as np

SEGMENT: int
VECTOR_GROUP: int

def add_gram(
    base: tuple[int, int], tuned: list[tuple[int, int]], count: int, split: int, threads: int, sums: np.ndarray,
    absolute: bool = False,
) -> None: ...  # fmt: skip
def add_sign_counts(
    base: tuple[int, int], tuned: list[tuple[int, int]], count: int, split: int, thresholds: Sequence[float],
    threads: int, counts: np.ndarray, sums: np.ndarray,
) -> None: ...  # fmt: skip
def add_squared_distances(
    tensors: list[tuple[int, int]], pairs: Sequence[Sequence[int]], count: int, threads: int, sums: np.ndarray
) -> None: ...
def difference(
    base: tuple[int, int], base_stride: int, tuned: tuple[int, int], tuned_stride: int, out: np.ndarray
) -> None: ...
def largest_difference(
    base: tuple[int, int], base_stride: int, tuned: tuple[int, int], tuned_stride: int, rows: int, columns: int
) -> float: ...
def add_gram_product(
    base: tuple[int, int], base_stride: int, tuned: tuple[int, int], tuned_stride: int, rows: int, columns: int,
    of_rows: bool, factor: float, weight: float, vectors: np.ndarray, total: np.ndarray, images: np.ndarray | None,
) -> None: ...  # fmt: skip
def padded_size(size: int) -> int: ...
def padded_stride(size: int) -> int: ...
def reflector_count(size: int) -> int: ...
def scratch_count(size: int) -> int: ...
def tridiagonalise(
    matrix: np.ndarray, size: int, reflectors: np.ndarray, scratch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]: ...
def back_transform(reflectors: np.ndarray, vectors: np.ndarray, scratch: np.ndarray) -> None: ...
def tridiagonal_values(diagonal: np.ndarray, off_diagonal: np.ndarray, positions: np.ndarray) -> np.ndarray: ...
def values_below(diagonal: np.ndarray, off_diagonal: np.ndarray, bound: float) -> int: ...
def combine(
    base: tuple[int, int], tuned: list[tuple[int, int]], out: tuple[int, int], count: int, start: int, threads: int,
    consensus: int, weights: Sequence[float], divisors: Sequence[float], total_weight: float, factor: float,
    thresholds: Sequence[float], limits: Sequence[float], keys: Sequence[int], dropped_below: Sequence[int],
    majority: int, share: float, needed: int, by_count: bool,
) -> tuple[int, int, int]: ...  # fmt: skip
def magnitude_counts(
    base: tuple[int, int], tuned: tuple[int, int], count: int, prefix: int, above: int, shift: int, width: int,
    threads: int,
) -> np.ndarray: ...  # fmt: skip
def magnitudes(
    base: tuple[int, int], tuned: tuple[int, int], count: int, prefix: int, above: int, threads: int
) -> np.ndarray: ...
def overlap(bases: np.ndarray, others: np.ndarray | None) -> np.ndarray: ...
def basis_products(bases: np.ndarray, others: np.ndarray) -> np.ndarray: ...
def guard(begin: int, size: int) -> int: ...
def unguard(number: int) -> None: ...
def instruction_set() -> str: ...
