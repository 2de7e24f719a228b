"""Checks of the arrays in blocks: a right checksum says that they are as they were written, not that they are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mergekern.statistics.layers import Bases, SpectrumErrors

# How far sums of products may be off, of the largest they could be; a transposed or foreign array is off by much more.
SLACK = 1e-4
ORTHONORMAL = 1e-3


def check_arrays(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], kind: str = "f") -> None:
    """Raise ValueError where an array is missing, or has another shape or kind of numbers, or is not finite.

    >>> check_arrays({"inner": np.zeros((1, 2))}, {"inner": (2, 2)})
    Traceback (most recent call last):
    ValueError: 'inner' has the shape (1, 2), not (2, 2)
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{name!r} is missing")
        if arrays[name].dtype.kind != kind:
            raise ValueError(f"{name!r} holds {arrays[name].dtype}")
        if arrays[name].shape != tuple(shape):
            raise ValueError(f"{name!r} has the shape {arrays[name].shape}, not {tuple(shape)}")
        if kind == "f" and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name!r} holds NaN or infinite values")


def check_gram(inner: np.ndarray, squared_distance: np.ndarray, is_diagonal: bool) -> None:
    """Raise ValueError where (R, C) values are not inner products of vectors, and squared distances between them.

    NaN is no value of a pair, and is not looked at.
    """
    if not is_diagonal:
        if (squared_distance < 0).any():
            raise ValueError("a squared distance is negative")
        return
    squares = np.diagonal(inner)
    if (squares < 0).any():
        raise ValueError("a squared length is negative")
    lengths = np.sqrt(squares)
    slack = SLACK * np.add.outer(lengths, lengths) ** 2
    for name, matrix in (("inner", inner), ("squared_distance", squared_distance)):
        if (np.abs(matrix - matrix.T) > slack).any():
            raise ValueError(f"{name!r} is not symmetric")
    if (squared_distance < -slack).any() or (np.diagonal(squared_distance) > np.diagonal(slack)).any():
        raise ValueError("a squared distance is negative, or not 0 of a model from itself")
    if (np.abs(inner) > np.outer(lengths, lengths) + slack).any():
        raise ValueError("an inner product is larger than the lengths allow")


def check_spectra(values: np.ndarray, rank: np.ndarray, k: int, shape: Sequence[int]) -> None:
    """Raise ValueError where values are no spectra of matrices of this shape, or do not go with the ranks."""
    least = min(shape)
    if not 1 <= k <= least:
        raise ValueError(f"subspaces of dimension {k} of a tensor of shape {tuple(shape)}")
    if values.ndim != 2 or not 1 <= values.shape[1] <= least:
        raise ValueError(f"'values' has the shape {values.shape}, for a tensor of shape {tuple(shape)}")
    if (values < 0).any() or (np.diff(values, axis=1) > SLACK * values[:, :1]).any():
        raise ValueError("singular values are not descending, or negative")
    if (rank < 0).any() or (rank > least).any():
        raise ValueError(f"a rank is not from 0 to {least}, the smaller size of {tuple(shape)}")


def check_errors(errors: SpectrumErrors, values: np.ndarray, k: int) -> None:
    """Raise ValueError where estimated errors are not of these spectra, or no errors: below 0, or sines above 1."""
    check_arrays({"error.values": errors.values}, {"error.values": values.shape})
    check_arrays({"error.vectors": errors.vectors}, {"error.vectors": (len(values), k)})
    if (errors.values < 0).any() or (errors.vectors < 0).any() or (errors.vectors > 1).any():
        raise ValueError("an estimated error is negative, or the sine of an angle above 1")


def check_overlaps(overlaps: Sequence[np.ndarray], largest: int) -> None:
    """Raise ValueError where squared Frobenius norms of products of two bases are not from 0 to their dimension."""
    for matrix in overlaps:
        if (matrix < 0).any() or (matrix > largest * (1 + ORTHONORMAL)).any():
            raise ValueError(f"an overlap is not from 0 to {largest}, the dimension of the subspaces")


def check_bases(bases: Bases, models: int, shape: Sequence[int], k: int | None = None) -> None:
    """Raise ValueError where bases are not of so many models, of this shape and dimension, and orthonormal.

    Args:
        bases: singular vectors, float32.
        models: R.
        shape: (m, n) of the tensor.
        k: dimension of the subspaces; None where it is not known.
    """
    k = bases.left_top.shape[-1] if k is None else k
    rows, columns = shape
    bottom = k if bases.right_bottom.shape[-1:] != (0,) else 0  # randomised factorisations have none
    sides = {"left_top": (models, rows, k), "right_top": (models, columns, k)}
    check_arrays(bases._asdict(), {**sides, "right_bottom": (models, columns, bottom)})
    for name, side in bases._asdict().items():
        products = np.matmul(side.transpose(0, 2, 1), side, dtype=np.float64)
        # Vectors beyond the rank of a product of factors are zeros.
        is_unit = np.diagonal(products, axis1=1, axis2=2) > 0.5
        if (np.abs(products - np.eye(side.shape[-1]) * is_unit[:, :, None]) > ORTHONORMAL).any():
            raise ValueError(f"{name!r} is not orthonormal")
