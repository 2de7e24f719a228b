"""BLAS and LAPACK as SciPy ships them, called without the interpreter lock.

SciPy's own wrappers hold the lock, so that two threads take turns (measured on two cores: two `dsytrd` of 768 in
125 ms, one in 58). The same routines, taken from the table that SciPy exports for Cython, run side by side
through ctypes, which releases it.

Arrays are float64 and C-contiguous; a Fortran routine sees the transpose. Sizes are checked by the callers.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg.cython_blas
import scipy.linalg.cython_lapack
from threadpoolctl import ThreadpoolController


def _routine(module: object, name: str, arguments: int) -> Callable[..., None]:
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = module.__pyx_capi__[name]  # type: ignore[attr-defined]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


_dgemm = _routine(scipy.linalg.cython_blas, "dgemm", 13)
_dsyrk = _routine(scipy.linalg.cython_blas, "dsyrk", 10)
_dsytrd = _routine(scipy.linalg.cython_lapack, "dsytrd", 10)
_dsterf = _routine(scipy.linalg.cython_lapack, "dsterf", 4)
_dstein = _routine(scipy.linalg.cython_lapack, "dstein", 13)
_dormtr = _routine(scipy.linalg.cython_lapack, "dormtr", 13)
_dgesdd = _routine(scipy.linalg.cython_lapack, "dgesdd", 14)


def _int(value: int) -> object:
    return ctypes.byref(ctypes.c_int(value))


def _double(value: float) -> object:
    return ctypes.byref(ctypes.c_double(value))


def _at(array: np.ndarray) -> int:
    return array.ctypes.data


def add_gram(block: np.ndarray, gram: np.ndarray, of_rows: bool) -> None:
    """Add block·blockᵀ (of_rows) or blockᵀ·block to `gram`, in its upper triangle only."""
    rows, columns = block.shape
    size, depth = (rows, columns) if of_rows else (columns, rows)
    # The lower triangle of Fortran is the upper one here.
    _dsyrk(
        b"L", b"T" if of_rows else b"N", _int(size), _int(depth), _double(1.0), _at(block), _int(columns),
        _double(1.0), _at(gram), _int(size),
    )  # fmt: skip


def project(block: np.ndarray, vectors: np.ndarray, out: np.ndarray, start: int, of_rows: bool) -> None:
    """Write vectors·block (of_rows) or vectors·blockᵀ, for vectors (p, s), to out[:, start : start + width]."""
    rows, columns = block.shape
    count, size = vectors.shape
    width = columns if of_rows else rows
    _dgemm(
        b"N" if of_rows else b"T", b"N", _int(width), _int(count), _int(size), _double(1.0), _at(block),
        _int(columns), _at(vectors), _int(size), _double(0.0), _at(out) + 8 * start, _int(out.shape[1]),
    )  # fmt: skip


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b."""
    out = np.empty((a.shape[0], b.shape[1]))
    _dgemm(
        b"N", b"N", _int(b.shape[1]), _int(a.shape[0]), _int(a.shape[1]), _double(1.0), _at(b), _int(b.shape[1]),
        _at(a), _int(a.shape[1]), _double(0.0), _at(out), _int(b.shape[1]),
    )  # fmt: skip
    return out


def tridiagonalise(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reduce a symmetric matrix (upper triangle given) to tridiagonal form.

    Returns (diagonal, off-diagonal, reflector scales); `gram` is overwritten by the reflectors.
    """
    n = len(gram)
    diagonal, off_diagonal, scales = np.empty(n), np.empty(max(n - 1, 1)), np.empty(max(n - 1, 1))
    work, info = np.empty(64 * n), ctypes.c_int()
    _dsytrd(
        b"L", _int(n), _at(gram), _int(n), _at(diagonal), _at(off_diagonal), _at(scales), _at(work),
        _int(len(work)), ctypes.byref(info),
    )  # fmt: skip
    return diagonal, off_diagonal[: n - 1], scales


def tridiagonal_values(diagonal: np.ndarray, off_diagonal: np.ndarray) -> np.ndarray:
    """Return all eigenvalues, ascending. Raises numpy.linalg.LinAlgError if the iteration does not converge."""
    values, off, info = diagonal.copy(), np.append(off_diagonal, 0.0), ctypes.c_int()
    _dsterf(_int(len(values)), _at(values), _at(off), ctypes.byref(info))
    if info.value:
        raise np.linalg.LinAlgError("tridiagonal eigenvalues did not converge")
    return values


def tridiagonal_vectors(diagonal: np.ndarray, off_diagonal: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the eigenvectors, as rows, that belong to some of the eigenvalues, given ascending.

    By inverse iteration; where that fails (reported by LAPACK, or seen in residual or orthogonality), by a full
    decomposition.
    """
    n, count = len(diagonal), len(values)
    off = np.append(off_diagonal, 0.0)
    vectors = np.empty((count, n))
    block, split = np.ones(count, dtype=np.int32), np.full(n, n, dtype=np.int32)
    work, integers, failed, info = np.empty(5 * n), np.empty(n, np.int32), np.empty(count, np.int32), ctypes.c_int()
    _dstein(
        _int(n), _at(diagonal), _at(off), _int(count), _at(values), _at(block), _at(split), _at(vectors), _int(n),
        _at(work), _at(integers), _at(failed), ctypes.byref(info),
    )  # fmt: skip
    scale = np.abs(diagonal).max() + 2 * np.abs(off).max()
    residual = vectors * (diagonal - values[:, None])
    residual[:, 1:] += vectors[:, :-1] * off_diagonal
    residual[:, :-1] += vectors[:, 1:] * off_diagonal
    gram = np.zeros((count, count))
    add_gram(vectors, gram, of_rows=True)
    unorthogonal = np.abs(np.triu(gram) - np.eye(count)).max()
    if info.value or not (np.abs(residual).max() <= 1e-13 * scale and unorthogonal <= 1e-10):
        every, all_vectors = scipy.linalg.eigh_tridiagonal(diagonal, off_diagonal)
        return np.ascontiguousarray(all_vectors.T[np.searchsorted(every, values).clip(0, n - 1)])
    return vectors


def back_transform(reflectors: np.ndarray, scales: np.ndarray, vectors: np.ndarray) -> None:
    """Turn eigenvectors of the tridiagonal form (rows) into those of the matrix it came from, in place."""
    count, n = vectors.shape
    work, info = np.empty(64 * max(count, 1)), ctypes.c_int()
    _dormtr(
        b"L", b"L", b"N", _int(n), _int(count), _at(reflectors), _int(n), _at(scales), _at(vectors), _int(n),
        _at(work), _int(len(work)), ctypes.byref(info),
    )  # fmt: skip


def thin_svd(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (left (p, p), values (p,), right (p, l)) of a (p, l) matrix with p ≤ l; `rows` is overwritten.

    Raises numpy.linalg.LinAlgError if the iteration does not converge.
    """
    p, length = rows.shape
    values, right, left = np.empty(p), np.empty((p, length)), np.empty((p, p))
    info, size, integers = ctypes.c_int(), np.empty(1), np.empty(8 * p, np.int32)

    def call(work: np.ndarray, size: int) -> None:
        # Fortran sees the (l, p) transpose, whose left vectors are the right ones here.
        _dgesdd(
            b"S", _int(length), _int(p), _at(rows), _int(length), _at(values), _at(right), _int(length), _at(left),
            _int(p), _at(work), _int(size), _at(integers), ctypes.byref(info),
        )  # fmt: skip

    call(size, -1)
    work = np.empty(int(size[0]))
    call(work, len(work))
    if info.value:
        raise np.linalg.LinAlgError("singular values did not converge")
    return left, values, right


_limit_lock = threading.Lock()
_limit_users = 0
_limit: contextlib.ExitStack = contextlib.ExitStack()


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS to one thread per caller while inside, for the whole process; restored when the last user leaves.

    One matrix a thread is 1.5 times faster here than one matrix on two threads, and its bits do not depend
    on the number of threads.
    """
    global _limit_users
    with _limit_lock:
        if _limit_users == 0:
            _limit.enter_context(ThreadpoolController().limit(limits=1, user_api="blas"))
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                _limit.close()
