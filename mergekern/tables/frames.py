"""Matrices over models as frames of pairs, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

# pandas, which takes as long to import as all else, is imported where it is used.

INDEX = ["model_a", "model_b"]


def pair_frame(models: Sequence[str], matrices: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return one row for each pair of models, indexed by both names, and one column for each (N, N) matrix.

    >>> pair_frame("ab", {"stable_rank": np.array([[1.0, 1.5], [1.5, 1.0]])}).to_dict("index")
    {('a', 'b'): {'stable_rank': 1.5}}
    """
    import pandas as pd

    i, j = np.triu_indices(len(models), 1)
    names = np.array([*models], dtype=object)
    index = pd.MultiIndex.from_arrays([names[i], names[j]], names=INDEX)
    return pd.DataFrame({name: matrix[i, j] for name, matrix in matrices.items()}, index=index)


def pair_matrices(models: Sequence[str], rows: pd.DataFrame, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Return a symmetric (N, N) float64 matrix for each metric; NaN where no row is of the pair.

    Args:
        models: names, in the order of the matrices.
        rows: one for each pair, with the columns model_a and model_b.
        metrics: columns of `rows`.
    """
    at = {name: index for index, name in enumerate(models)}
    a, b = rows["model_a"].map(at).to_numpy(), rows["model_b"].map(at).to_numpy()
    matrices = {name: np.full((len(models), len(models)), np.nan) for name in metrics}
    for name, matrix in matrices.items():
        matrix[a, b] = matrix[b, a] = rows[name].to_numpy(dtype=np.float64)
    return matrices
