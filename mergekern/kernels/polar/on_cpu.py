"""`polar` on the CPU: the inverse root of the Gram matrix of the short side, from its eigenvectors, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekern.kernels.eigen import leading_eigen
from mergekern.kernels.spectrum import RANK_TOLERANCE

# A float64 Gram matrix has σ² with an error of 1e-16·σ₁², and so σ with a relative error of 1e-16·(σ₁/σ)². Values above
# this share of the largest have a relative error below 1e-8.
RESOLVED = 1e-4
# Cosines below this count as zero in the inverse root of two blocks, since adding their squares to 1 has no effect in
# float64.
_NO_COSINE = 1e-8
# Largest part of a direction of unit length that may lie within the first of two blocks, where it should be orthogonal
# to it: the error of a polar factor then stays below that of RESOLVED.
_MOST_WITHIN = 1e-9


def polar(matrix: np.ndarray) -> np.ndarray:
    """Return the orthogonal factor, (m, n) float64.

    >>> polar(np.array([[0.0, -2.0], [0.0, 0.0]]))
    array([[ 0., -1.],
           [ 0.,  0.]])
    """
    if matrix.shape[0] < matrix.shape[1]:
        return inverse_root(matrix.T) @ matrix
    return matrix @ inverse_root(matrix)


def polar_product(left: Sequence[np.ndarray], weights: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """Return polar([L_1 … L_N])·diag(w_1 … w_N)·polar([R_1 … R_N])ᵀ.

    The roots have the size of the number of columns. There is one product over the longer side.

    Args:
        left, right: blocks (m, k_i) and (n, k_i), each with orthonormal columns.
        weights: blocks (k_i,).

    >>> polar_product([np.array([[0.0], [1.0]])], [np.array([3.0])], [np.array([[1.0], [0.0]])])
    array([[0., 0.],
           [3., 0.]])
    """
    columns, rows, spectrum = np.hstack(left), np.hstack(right).T, np.concatenate(weights)
    of_left, of_right = inverse_root_of_blocks(left), inverse_root_of_blocks(right)
    # Each root is multiplied first with the blocks that it makes orthonormal: a root can have a norm of 1e7.
    if columns.shape[0] <= rows.shape[1]:
        return (((columns @ of_left) * spectrum) @ of_right) @ rows
    return columns @ ((of_left * spectrum) @ (of_right @ rows))


def inverse_root(columns: np.ndarray) -> np.ndarray:
    """Return R = (XᵀX)^(−1/2) of X (m, p), for which X·R is the orthogonal factor of X. Null directions map to zero."""
    values, vectors = resolved_eigen(columns)
    rank = int((values > RANK_TOLERANCE * values.max(initial=0.0)).sum())
    half = vectors[:rank] / np.sqrt(values[:rank, None])
    return half.T @ half


def inverse_root_of_blocks(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return R = (XᵀX)^(−1/2) of X = [X_1 … X_N]. The columns of each block must be orthonormal."""
    return _inverse_root_of_pair(*blocks) if len(blocks) == 2 else inverse_root(np.hstack(blocks))


def _inverse_root_of_pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return R for two blocks, from the singular values c of C = X_1ᵀX_2, which are cosines of principal angles.

    The Gram matrix [[I, C], [Cᵀ, I]] has the eigenvalues 1 ± c, so that a problem of half the size gives its root.
    Cosines do not resolve small angles. Where there are some, the singular values of X_2 − X_1·C do, which are sines.
    """
    cosines = first.T @ second
    squares, vectors = leading_eigen(cosines.T @ cosines)
    squares = np.clip(squares, 0.0, 1.0)
    c = np.sqrt(squares)
    below = (1.0 - squares) / (1.0 + c)  # 1 − c without cancellation
    if (below >= RESOLVED**2).all():
        return _root_of_angles(cosines, vectors, c, below)
    apart = second - first @ cosines
    sines, vectors = resolved_eigen(apart)
    c = np.linalg.norm(cosines @ vectors.T, axis=0)
    below = sines**2 / (1.0 + c)
    is_small = (below < RESOLVED**2) & (below > RANK_TOLERANCE**2)
    small = apart @ vectors[is_small].T
    below[is_small] = np.square(small).sum(axis=0) / (1.0 + c[is_small])
    # The root multiplies a small direction by below^(−1/2), and so what of the direction lies within X_1, which is
    # rounding: X_1 is not quite orthonormal.
    within = np.linalg.norm(first.T @ small, axis=0) / np.sqrt(below[is_small])
    if within.max(initial=0.0) > _MOST_WITHIN:
        return inverse_root(np.hstack([first, second]))
    return _root_of_angles(cosines, vectors, c, below)


def _root_of_angles(cosines: np.ndarray, vectors: np.ndarray, c: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return R for two blocks, from their principal angles.

    Let C = X·diag(c)·Yᵀ, and let even and odd be half the sum and half the difference of (1 + c)^(−1/2) and
    (1 − c)^(−1/2). Then

        R = [[I + X·diag(even − 1)·Xᵀ, X·diag(odd)·Yᵀ], [Y·diag(odd)·Xᵀ, Y·diag(even)·Yᵀ]]

    Args:
        cosines: C.
        vectors: the columns of Y as rows.
        c, below: c and 1 − c.
    """
    plus = (1.0 + c) ** -0.5
    is_null = below <= RANK_TOLERANCE**2 * (1.0 + c.max(initial=0.0))
    minus = np.where(is_null, np.inf, below) ** -0.5
    even, odd = 0.5 * (plus + minus), 0.5 * (plus - minus)
    # Only Y of C = X·diag(c)·Yᵀ is known, and X·diag(c) = C·Y. Hence even − 1 is divided by c², and odd by c. The
    # limits for c = 0 follow from even = 1 + 3/8·c² + …, odd = −1/2·c − …
    has_cosine = c > _NO_COSINE
    safe = np.where(has_cosine, c, 1.0)
    turned = cosines @ vectors.T
    root = np.eye(len(cosines) + len(c))
    k = len(cosines)
    root[:k, :k] += (turned * np.where(has_cosine, (even - 1.0) / safe**2, 0.375)) @ turned.T
    root[:k, k:] = (turned * np.where(has_cosine, odd / safe, -0.5)) @ vectors
    root[k:, :k] = root[:k, k:].T
    root[k:, k:] = (vectors.T * even) @ vectors
    return root


def resolved_eigen(columns: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` largest singular values of X (m, p), descending, and the right singular vectors as rows.

    The vectors are eigenvectors of the Gram matrix XᵀX. If it does not resolve all of them, X is deflated by the
    resolved (strong) ones, and the remainder, usually a few columns, is decomposed by itself. Values of at most
    RANK_TOLERANCE of the largest are returned as 0.
    """
    gram = columns.T @ columns
    squares, vectors = leading_eigen(gram, count)
    wanted, largest = len(squares), float(np.sqrt(squares.max(initial=0.0)))
    is_strong = squares > (RESOLVED * largest) ** 2
    if is_strong.all():
        return np.sqrt(squares), vectors
    if wanted < len(gram):
        squares, vectors = leading_eigen(gram)
    strong = int(is_strong.sum())
    strong_vectors, weak_vectors = _decoupled(columns, squares[:strong], vectors[:strong], vectors[strong:])
    weak = columns @ weak_vectors.T
    if np.linalg.norm(weak) <= RANK_TOLERANCE * largest:
        rest = np.zeros(len(weak_vectors))
    else:
        rest, turn = resolved_eigen(weak)
        weak_vectors = turn @ weak_vectors
        rest[rest <= RANK_TOLERANCE * largest] = 0.0
    values = np.append(np.sqrt(squares[:strong]), rest)
    return values[:wanted], np.vstack([strong_vectors, weak_vectors])[:wanted]


def _decoupled(
    columns: np.ndarray, squares: np.ndarray, strong: np.ndarray, weak: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return strong and weak right singular vectors (rows) of X, corrected by one first-order step.

    The angle between the two subspaces has an error of 1e-16/RESOLVED² = 1e-8. The step squares this error.

    Args:
        columns: X (m, p).
        squares: squared strong singular values.
        strong, weak: eigenvectors of XᵀX.
    """
    overlaps = ((columns.T @ (columns @ weak.T)).T @ strong.T) / squares
    return strong + overlaps.T @ weak, weak - overlaps @ strong
