"""NuSLERP: spherical interpolation of two models or task vectors, whole or by rows and columns, as mergekit has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from mergekern.merging.mergekit_names import WEIGHT, Mergekit, Parameter
from mergekern.merging.method import Method, merge_tensor
from mergekern.merging.option_checks import one_of
from mergekern.merging.slerp import coefficients
from mergekern.merging.span import Along, Vectors, merge_in_span
from mergekern.merging.whole_tensor import Blockwise, WeightedSum, WholeTensor

DEFAULTS = {"of": "models", "along": "tensor"}
# Up to this sin² θ the interpolation is linear: it is rounding.
PARALLEL = 1e-16


def tensor(tensor: WholeTensor, weights: Sequence[float], of: Vectors, along: Along) -> WeightedSum | Blockwise:
    """Return what is done to each element."""
    return merge_in_span(tensor, weights, partial(coefficients, parallel=PARALLEL), of, along)


def nuslerp(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    of: Vectors = "models",
    along: Along = "tensor",
) -> torch.Tensor:
    """Return the spherical interpolation of two models at the share of their weights; one tensor, float64.

    As `slerp`, with t = w₂/(w₁+w₂), and linear only where sin² θ ≤ 1e-16. `of="deltas"` interpolates task vectors and
    adds the result to the base. `along="rows"` or `"columns"` interpolates each row or column of a matrix by itself;
    vectors are always whole.

    >>> deltas = [torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])]
    >>> nuslerp(torch.zeros(2, 2), deltas, along="rows")
    tensor([[0.7071, 0.7071],
            [2.0000, 0.0000]], dtype=torch.float64)
    """
    return merge_tensor(base, deltas, METHOD, weights, {"of": of, "along": along})


METHOD = Method(
    "nuslerp", "mergekit", "slerp by weights, of models or task vectors, whole or by rows or columns", DEFAULTS,
    tensor=tensor, most=2, without_base=lambda of, along: of == "models",
    checks={"of": one_of("models", "deltas"), "along": one_of("tensor", "rows", "columns")},
    mergekit=Mergekit(
        "nuslerp",
        (
            WEIGHT,
            # Together they say `along`: flatten the tensor; else row_wise, which in mergekit means columns; else rows.
            Parameter("nuslerp_flatten", "along", True, read=lambda flatten: "tensor" if flatten else "rows",
                      write=lambda along: along == "tensor"),
            Parameter("nuslerp_row_wise", "along", False, read=lambda columns: "columns" if columns else None,
                      write=lambda along: along == "columns"),
        ),
        base="optional",
    ),
)  # fmt: skip
