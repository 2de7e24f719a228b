"""Leading eigenpairs of a symmetric positive semi-definite matrix, in float64, on the calling thread.

The matrix is reduced to tridiagonal form (`tridiagonal`). Divide and conquer (LAPACK's `dstedc`) gives all eigenpairs
of that form. At size 768 it takes half the time of `dstemr`, and its vectors are orthogonal to the last bits. Only the
requested vectors are transformed back.
"""

from __future__ import annotations

import numpy as np

from mergekern.kernels import lapack
from mergekern.kernels.native import extension
from mergekern.kernels.tridiagonal import LapackTridiagonal, NativeTridiagonal, Tridiagonal

# Below this size NumPy's own solver is as fast.
_SMALL = 48


def leading_eigen(gram: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` largest eigenvalues, descending, and their vectors as rows.

    Args:
        gram: (n, n), symmetric; its upper triangle is read.
        count: number of pairs; all by default.

    >>> values, vectors = leading_eigen(np.diag([1.0, 3.0, 2.0]), 2)
    >>> values, np.abs(vectors)
    (array([3., 2.]), array([[0., 1., 0.],
           [0., 0., 1.]]))
    """
    size = len(gram)
    count = size if count is None else min(count, size)
    if size < _SMALL:
        values, columns = np.linalg.eigh(gram, UPLO="U")
        return values[::-1][:count].copy(), np.ascontiguousarray(columns.T[::-1][:count])
    kind: type[Tridiagonal] = LapackTridiagonal if extension is None else NativeTridiagonal
    matrix = kind.zeros(size)
    matrix[:size, :size] = np.triu(gram)
    form = kind(matrix, size)
    values, vectors = lapack.tridiagonal_eigen(form.diagonal, form.off_diagonal)
    vectors = np.ascontiguousarray(vectors[::-1][:count])
    form.back_transform(vectors)
    return values[::-1][:count].copy(), vectors
