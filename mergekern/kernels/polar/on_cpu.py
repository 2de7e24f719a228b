"""`polar` on the CPU: the inverse root of the Gram matrix of the short side, from its eigenvectors, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergekern.kernels.eigen import leading_eigen
from mergekern.kernels.spectrum import RANK_TOLERANCE

# A Gram matrix holds σ² to 1e-16·σ₁²: singular values above this share of the largest to 1e-8, those below worse.
RESOLVED = 1e-4


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

    The roots are as small as the number of columns; the longer side is multiplied once.

    Args:
        left, right: blocks (m, k_i) and (n, k_i), each with orthonormal columns.
        weights: blocks (k_i,).

    >>> polar_product([np.array([[0.0], [1.0]])], [np.array([3.0])], [np.array([[1.0], [0.0]])])
    array([[0., 0.],
           [3., 0.]])
    """
    columns, rows, spectrum = np.hstack(left), np.hstack(right).T, np.concatenate(weights)
    of_left, of_right = inverse_root_of_blocks(left), inverse_root_of_blocks(right)
    # One root after the other, each with what it makes orthonormal: both can be as large as 1e7.
    if columns.shape[0] <= rows.shape[1]:
        return (((columns @ of_left) * spectrum) @ of_right) @ rows
    return columns @ ((of_left * spectrum) @ (of_right @ rows))


def inverse_root(columns: np.ndarray) -> np.ndarray:
    """Return R = (XᵀX)^(−1/2) of X (m, p), so that X·R is the orthogonal factor of X; null directions stay at zero."""
    values, vectors = resolved_eigen(columns)
    rank = int((values > RANK_TOLERANCE * values.max(initial=0.0)).sum())
    half = vectors[:rank] / np.sqrt(values[:rank, None])
    return half.T @ half


def inverse_root_of_blocks(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return R = (XᵀX)^(−1/2) of X = [X_1 … X_N], where the columns of each block are orthonormal."""
    return _inverse_root_of_pair(*blocks) if len(blocks) == 2 else inverse_root(np.hstack(blocks))


def _inverse_root_of_pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return R of two blocks, from the singular values c of C = X_1ᵀX_2, the cosines of the angles between them.

    The Gram matrix [[I, C], [Cᵀ, I]] has the eigenvalues 1 ± c, so that a problem of half the size gives its root.
    """
    cosines = first.T @ second
    squares, vectors = leading_eigen(cosines.T @ cosines)
    squares = np.clip(squares, 0.0, 1.0)
    c = np.sqrt(squares)
    above, below = 1.0 + c, (1.0 - squares) / (1.0 + c)
    if ((below > 0.5 * RANK_TOLERANCE**2) & (below < RESOLVED**2)).any():
        return inverse_root(np.hstack([first, second]))
    plus = above**-0.5
    minus = np.where(below > RANK_TOLERANCE**2, below, np.inf) ** -0.5
    even, odd = 0.5 * (plus + minus), 0.5 * (plus - minus)
    # Of C = X·diag(c)·Yᵀ only Y is known; X·diag(c) is C·Y.
    safe = np.where(c > 1e-8, c, 1.0)
    turned = cosines @ vectors.T
    root = np.eye(len(cosines) + len(c))
    k = len(cosines)
    root[:k, :k] += (turned * np.where(c > 1e-8, (even - 1.0) / safe**2, 0.375)) @ turned.T
    root[:k, k:] = (turned * np.where(c > 1e-8, odd / safe, -0.5)) @ vectors
    root[k:, :k] = root[:k, k:].T
    root[k:, k:] = (vectors.T * even) @ vectors
    return root


def resolved_eigen(columns: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` largest singular values of X (m, p), descending, and the right singular vectors as rows.

    They are eigenvectors of the Gram matrix XᵀX. Where it does not resolve all of them, X is deflated by those that it
    does, and what is left, a few columns as a rule, is looked at by itself. What is below RANK_TOLERANCE of the
    largest value counts as 0.
    """
    gram = columns.T @ columns
    squares, vectors = leading_eigen(gram, count)
    largest = float(np.sqrt(squares.max(initial=0.0)))
    is_strong = squares > (RESOLVED * largest) ** 2
    if is_strong.all():
        return np.sqrt(squares), vectors
    count, strong = len(squares), int(is_strong.sum())
    if count < len(gram):
        squares, vectors = leading_eigen(gram)
    values, strong_vectors, weak_vectors = np.sqrt(squares[:strong]), vectors[:strong], vectors[strong:]
    # The angle between strong and weak vectors is off by 1e-16/RESOLVED²; one step of first order corrects it.
    overlaps = ((columns.T @ (columns @ weak_vectors.T)).T @ strong_vectors.T) / squares[:strong]
    weak_vectors, strong_vectors = weak_vectors - overlaps @ strong_vectors, strong_vectors + overlaps.T @ weak_vectors
    weak = columns @ weak_vectors.T
    if np.linalg.norm(weak) <= RANK_TOLERANCE * largest:
        rest, turned = np.zeros(len(weak_vectors)), weak_vectors
    else:
        rest, turn = resolved_eigen(weak)
        turned = turn @ weak_vectors
        rest[rest <= RANK_TOLERANCE * largest] = 0.0
    return np.append(values, rest)[:count], np.vstack([strong_vectors, turned])[:count]
