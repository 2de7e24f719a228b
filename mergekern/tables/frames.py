"""Matrices over models as frames of pairs, and the keys of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
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


def error_column(metric: str) -> str:
    """Return the name of the column that has the estimated errors of a metric.

    >>> error_column("subspace_overlap")
    'error[subspace_overlap]'
    """
    return f"error[{metric}]"


def pair_keys(models: Sequence[str]) -> list[str]:
    """Return the study's key of each pair, a__b; where two pairs get the same one, the later ones are numbered."""
    keys: dict[str, None] = {}
    for first, second in combinations(models, 2):
        plain = key = f"{first}__{second}"
        number = 1
        while key in keys:
            number += 1
            key = f"{plain}#{number}"
        keys[key] = None
    return list(keys)
