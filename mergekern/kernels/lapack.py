"""BLAS and LAPACK as SciPy ships them, called without the interpreter lock.

SciPy's own wrappers hold the lock, so that threads run one after the other (measured on two cores: two `dsytrd` of size
768 take 125 ms, one takes 58 ms). SciPy exports the same routines in a table for Cython. Called through ctypes, which
releases the lock, they run in parallel.

Arrays are float64 (of `product` also float32) and C-contiguous, so that a Fortran routine sees the transpose. Callers
check sizes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

_ARGUMENTS = {
    "sgemm": 13,
    "dgemm": 13,
    "dsyrk": 10,
    "dsytrd": 10,
    "dsterf": 4,
    "dstein": 13,
    "dormtr": 13,
    "dgeqrt": 9,
    "dgemqrt": 14,
    "dgesdd": 14,
    "dstedc": 11,
}

# Columns of a block of reflectors.
_REFLECTORS = 32


@functools.cache
def _exported() -> dict[str, Any]:
    """Return the routines that SciPy exports.

    SciPy is imported at first use: that takes 0.2 s, and most merges need none.
    """
    import scipy.linalg.cython_blas
    import scipy.linalg.cython_lapack

    _single_threaded_blas.limit_new_libraries()
    return scipy.linalg.cython_blas.__pyx_capi__ | scipy.linalg.cython_lapack.__pyx_capi__


def _routine(name: str) -> Callable[..., None]:
    exported = _exported()
    if getattr(_this_thread, "is_limited_without_scipy", False):
        _limit_this_thread()
    return _function(name, exported[name])


@functools.cache
def _function(name: str, capsule: Any) -> Callable[..., None]:
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * _ARGUMENTS[name])(address)


def _int(value: int) -> object:
    return ctypes.byref(ctypes.c_int(value))


def _double(value: float) -> object:
    return ctypes.byref(ctypes.c_double(value))


def _at(array: np.ndarray) -> int:
    return array.ctypes.data


def add_gram(block: np.ndarray, gram: np.ndarray, of_rows: bool) -> None:
    """Add block·blockᵀ (of_rows) or blockᵀ·block to the upper triangle of the first rows and columns of `gram`."""
    rows, columns = block.shape
    size, depth = (rows, columns) if of_rows else (columns, rows)
    # The lower triangle in Fortran is the upper triangle here.
    _routine("dsyrk")(
        b"L", b"T" if of_rows else b"N", _int(size), _int(depth), _double(1.0), _at(block), _int(columns),
        _double(1.0), _at(gram), _int(gram.shape[1]),
    )  # fmt: skip


def project(block: np.ndarray, vectors: np.ndarray, out: np.ndarray, start: int, of_rows: bool) -> None:
    """Write vectors·block (of_rows) or vectors·blockᵀ, for vectors (p, s), to out[:, start : start + width]."""
    rows, columns = block.shape
    count, size = vectors.shape
    width = columns if of_rows else rows
    _routine("dgemm")(
        b"N" if of_rows else b"T", b"N", _int(width), _int(count), _int(size), _double(1.0), _at(block),
        _int(columns), _at(vectors), _int(size), _double(0.0), _at(out) + 8 * start, _int(out.shape[1]),
    )  # fmt: skip


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b."""
    out = np.empty((a.shape[0], b.shape[1]))
    _routine("dgemm")(
        b"N", b"N", _int(b.shape[1]), _int(a.shape[0]), _int(a.shape[1]), _double(1.0), _at(b), _int(b.shape[1]),
        _at(a), _int(a.shape[1]), _double(0.0), _at(out), _int(b.shape[1]),
    )  # fmt: skip
    return out


def product(a: np.ndarray, b: np.ndarray, *, transpose: bool) -> np.ndarray:
    """Return a @ b, or a @ b.T (transpose), of two matrices of one dtype, float32 or float64."""
    name, number = ("sgemm", ctypes.c_float) if a.dtype == np.float32 else ("dgemm", ctypes.c_double)
    (rows, depth), columns = a.shape, b.shape[0 if transpose else 1]
    out = np.empty((rows, columns), dtype=a.dtype)
    one, zero = (ctypes.byref(number(value)) for value in (1.0, 0.0))
    _routine(name)(
        b"T" if transpose else b"N", b"N", _int(columns), _int(rows), _int(depth), one, _at(b), _int(b.shape[1]),
        _at(a), _int(depth), zero, _at(out), _int(columns),
    )  # fmt: skip
    return out


def tridiagonalise(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reduce a symmetric matrix (upper triangle given) to tridiagonal form.

    Returns (diagonal, off-diagonal, reflector scales); `gram` is overwritten by the reflectors.
    """
    n = len(gram)
    diagonal, off_diagonal, scales = np.empty(n), np.empty(max(n - 1, 1)), np.empty(max(n - 1, 1))
    work, info = np.empty(64 * n), ctypes.c_int()
    _routine("dsytrd")(
        b"L", _int(n), _at(gram), _int(n), _at(diagonal), _at(off_diagonal), _at(scales), _at(work),
        _int(len(work)), ctypes.byref(info),
    )  # fmt: skip
    return diagonal, off_diagonal[: n - 1], scales


def tridiagonal_values(diagonal: np.ndarray, off_diagonal: np.ndarray) -> np.ndarray:
    """Return all eigenvalues, ascending. Raises numpy.linalg.LinAlgError if the iteration does not converge."""
    values, off, info = diagonal.copy(), np.append(off_diagonal, 0.0), ctypes.c_int()
    _routine("dsterf")(_int(len(values)), _at(values), _at(off), ctypes.byref(info))
    if info.value:
        raise np.linalg.LinAlgError("tridiagonal eigenvalues did not converge")
    return values


def tridiagonal_vectors(diagonal: np.ndarray, off_diagonal: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return eigenvectors for some of the eigenvalues (ascending), as rows.

    They come from inverse iteration. If it fails (reported by LAPACK, or detected in residuals or orthogonality), they
    come from a full decomposition, as the vectors of the nearest eigenvalues.
    """
    n, count = len(diagonal), len(values)
    off, some = np.append(off_diagonal, 0.0), np.ascontiguousarray(values)
    vectors = np.empty((count, n))
    block, split = np.ones(count, dtype=np.int32), np.full(n, n, dtype=np.int32)
    work, integers, failed, info = np.empty(5 * n), np.empty(n, np.int32), np.empty(count, np.int32), ctypes.c_int()
    _routine("dstein")(
        _int(n), _at(diagonal), _at(off), _int(count), _at(some), _at(block), _at(split), _at(vectors), _int(n),
        _at(work), _at(integers), _at(failed), ctypes.byref(info),
    )  # fmt: skip
    scale = np.abs(diagonal).max() + 2 * np.abs(off).max()
    residual = vectors * (diagonal - some[:, None])
    residual[:, 1:] += vectors[:, :-1] * off_diagonal
    residual[:, :-1] += vectors[:, 1:] * off_diagonal
    gram = np.zeros((count, count))
    add_gram(vectors, gram, of_rows=True)
    unorthogonal = np.abs(np.triu(gram) - np.eye(count)).max()
    if info.value or not (np.abs(residual).max() <= 1e-13 * scale and unorthogonal <= 1e-10):
        import scipy.linalg

        every, all_vectors = scipy.linalg.eigh_tridiagonal(diagonal, off_diagonal)
        return np.ascontiguousarray(all_vectors.T[_nearest(every, some)])
    return vectors


def tridiagonal_eigen(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all eigenvalues, ascending, and their vectors as rows, by divide and conquer.

    Raises numpy.linalg.LinAlgError if the iteration does not converge.
    """
    n = len(diagonal)
    values, off, vectors = diagonal.copy(), np.append(off_diagonal, 0.0), np.empty((n, n))
    work, integers, info = np.empty(1 + 4 * n + n * n), np.empty(3 + 5 * n, np.int32), ctypes.c_int()
    _routine("dstedc")(
        b"I", _int(n), _at(values), _at(off), _at(vectors), _int(n), _at(work), _int(len(work)), _at(integers),
        _int(len(integers)), ctypes.byref(info),
    )  # fmt: skip
    if info.value:
        raise np.linalg.LinAlgError("tridiagonal eigenvectors did not converge")
    return values, vectors


def _nearest(every: np.ndarray, some: np.ndarray) -> list[int]:
    """Return distinct positions in `every` of the values nearest to `some`; both are ascending.

    >>> _nearest(np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.9]))
    [0, 1, 3]
    """
    positions: list[int] = []
    for index, value in enumerate(some):
        first = positions[-1] + 1 if positions else 0
        last = len(every) - (len(some) - index)
        positions.append(first + int(np.abs(every[first : last + 1] - value).argmin()))
    return positions


def back_transform(reflectors: np.ndarray, scales: np.ndarray, vectors: np.ndarray) -> None:
    """Turn eigenvectors of the tridiagonal form (rows) into those of the original matrix, in place."""
    count, n = vectors.shape
    work, info = np.empty(64 * max(count, 1)), ctypes.c_int()
    _routine("dormtr")(
        b"L", b"L", b"N", _int(n), _int(count), _at(reflectors), _int(n), _at(scales), _at(vectors), _int(n),
        _at(work), _int(len(work)), ctypes.byref(info),
    )  # fmt: skip


def qr(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factorise rowsᵀ (l, p) = Q·T, T upper triangular; return T (min(l, p), p) and the factors of the reflectors.

    `rows` (p, l) is overwritten by the reflectors, which `multiply_by_q` takes. Blocks of reflectors are always applied
    as matrix products; `dgeqrf` and `dormqr` apply few reflectors one at a time. Measured for both steps on one thread,
    l = 4096: 0.33 ms instead of 0.62 for p = 16, and 3.1 ms instead of 15 for p = 64.
    """
    p, length = rows.shape
    count = min(p, length)
    block = min(_REFLECTORS, count)
    factors, work, info = np.empty((count, block)), np.empty(block * p), ctypes.c_int()
    _routine("dgeqrt")(
        _int(length), _int(p), _int(block), _at(rows), _int(length), _at(factors), _int(block), _at(work),
        ctypes.byref(info),
    )  # fmt: skip
    return np.triu(rows[:, :count].T), factors


def multiply_by_q(reflectors: np.ndarray, factors: np.ndarray, vectors: np.ndarray) -> None:
    """Replace each row x of `vectors` by Q·x, Q from `qr`."""
    count, length = vectors.shape
    reflections, block = factors.shape
    work, info = np.empty(block * max(count, 1)), ctypes.c_int()
    _routine("dgemqrt")(
        b"L", b"N", _int(length), _int(count), _int(reflections), _int(block), _at(reflectors), _int(length),
        _at(factors), _int(block), _at(vectors), _int(length), _at(work), ctypes.byref(info),
    )  # fmt: skip


def thin_svd(rows: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (L (p, p), values (p,), R (p, l)) of a (p, l) matrix with p ≤ l: rows = Lᵀ·diag(values)·R.

    R is written to `right`; `rows` is overwritten.

    Raises numpy.linalg.LinAlgError if the iteration does not converge.
    """
    p, length = rows.shape
    values, left = np.empty(p), np.empty((p, p))
    info, size, integers = ctypes.c_int(), np.empty(1), np.empty(8 * p, np.int32)

    def call(work: np.ndarray, size: int) -> None:
        # Fortran sees the (l, p) transpose, whose left vectors are the right ones here.
        _routine("dgesdd")(
            b"S", _int(length), _int(p), _at(rows), _int(length), _at(values), _at(right), _int(length), _at(left),
            _int(p), _at(work), _int(size), _at(integers), ctypes.byref(info),
        )  # fmt: skip

    call(size, -1)
    work = np.empty(int(size[0]))
    call(work, len(work))
    if info.value:
        raise np.linalg.LinAlgError("singular values did not converge")
    return left.T.copy(), values, right


# Address space that one thread needs: a buffer of OpenBLAS (32 MB), a stack (8 MB) and an arena of malloc (128 MB while
# it is created).
_THREAD_BYTES = 192 << 20


class _SingleThreadedBlas:
    """Limits BLAS to one thread per caller, in the whole process, while at least one caller is inside.

    A dedicated thread sets and lifts the limit: threadpoolctl lets only the thread that set a limit lift it, and
    overlapping runs end in any order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limits = contextlib.ExitStack()
                self._holder = ThreadPoolExecutor(1, thread_name_prefix="mergekern-blas")
                self._holder.submit(self._limit).result()
            self._users += 1

    def limit_new_libraries(self) -> None:
        """Limit libraries that were loaded since the limit was set, if it is."""
        with self._lock:
            if self._users:
                self._holder.submit(self._limit).result()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._holder.submit(self._limits.close).result()
                self._holder.shutdown()

    def _limit(self) -> None:
        self._limits.enter_context(ThreadpoolController().limit(limits=1, user_api="blas"))


_single_threaded_blas = _SingleThreadedBlas()
_this_thread = threading.local()


def _limit_this_thread() -> None:
    # If BLAS uses OpenMP, each thread has a limit of its own. Otherwise this has no effect.
    ThreadpoolController().limit(limits=1, user_api="blas")
    _this_thread.is_limited_without_scipy = not _exported.cache_info().currsize


def _require(size: int) -> None:
    """Raise MemoryError unless the process can allocate `size` more bytes.

    If the system refuses a buffer to OpenBLAS, OpenBLAS retries forever.
    """
    try:
        mmap.mmap(-1, size).close()
    except OSError as error:
        raise MemoryError(
            f"{size >> 20} MB for the threads of BLAS beside the data; use fewer threads, or raise ulimit -v"
        ) from error


@contextlib.contextmanager
def single_threaded_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads in which BLAS is single-threaded. On an error, tasks that have not started are dropped.

    One matrix per thread is 1.5 times faster than one matrix on two threads (measured), and the bits do not depend on
    the number of threads.

    Raises:
        MemoryError: the process cannot allocate the memory that BLAS needs beside its data.

    >>> with single_threaded_pool(2) as pool:
    ...     list(pool.map(abs, [-1, 2]))
    [1, 2]
    """
    _require(threads * _THREAD_BYTES)
    with _single_threaded_blas:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="mergekern", initializer=_limit_this_thread)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
