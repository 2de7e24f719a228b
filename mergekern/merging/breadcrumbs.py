"""Model Breadcrumbs: Davari and Belilovsky, arXiv 2312.06795; and its composition with TIES."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from mergekern.merging.elementwise import Elementwise, PerModel, Rescale, Trim
from mergekern.merging.mergekit_names import (
    DENSITY,
    GAMMA,
    INT8_MASK,
    LAMBDA,
    RESCALED,
    UNNORMALIZED,
    WEIGHT,
    Mergekit,
)
from mergekern.merging.method import Method, merge_elements
from mergekern.merging.option_checks import number, one_of
from mergekern.merging.ties import ELECTED, Aggregate

DEFAULTS = {"density": 0.9, "gamma": 0.01, "scale": 0.3, "rescale": "none", "aggregate": "sum"}


def _trims(density: PerModel, gamma: PerModel) -> Trim | tuple[Trim, ...]:
    if not isinstance(density, tuple) and not isinstance(gamma, tuple):
        return Trim(keep=density, outliers=gamma)
    models = len(density if isinstance(density, tuple) else gamma)  # type: ignore[arg-type]
    densities, gammas = (value if isinstance(value, tuple) else (value,) * models for value in (density, gamma))
    return tuple(Trim(keep=keep, outliers=above) for keep, above in zip(densities, gammas, strict=True))


def elements(
    density: PerModel, gamma: PerModel, scale: float, rescale: Rescale, aggregate: Literal["mean", "sum"]
) -> Elementwise:
    """Return what is done to each element: trim on both sides × sum or mean × rescale."""
    return Elementwise(aggregate, scale, _trims(density, gamma), keeps_norm=rescale == "norm")


def elements_of_ties(
    density: PerModel, gamma: PerModel, scale: float, rescale: Rescale, aggregate: Aggregate
) -> Elementwise:
    """Return what is done to each element: trim on both sides × elect × rescale."""
    return Elementwise(ELECTED[aggregate], scale, _trims(density, gamma), keeps_norm=rescale == "norm")


def breadcrumbs(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    density: PerModel = 0.9,
    gamma: PerModel = 0.01,
    scale: float = 0.3,
    rescale: Rescale = "none",
    aggregate: Literal["mean", "sum"] = "sum",
) -> torch.Tensor:
    """Return θ₀ + scale·Σ τ of one tensor, float64, each τ without its outliers and its smallest elements.

    Of d elements by magnitude the ⌊gamma·d⌋ largest are dropped, the ⌊density·d⌋ next are kept, at least one, and the
    rest is dropped. Where density + gamma > 1 fewer outliers are dropped; what equals the last element that is kept is
    kept too. `rescale="norm"` brings the sum of magnitudes of each τ back to what it was.

    >>> deltas = [torch.tensor([9.0, 1.0, -2.0, 3.0]), torch.tensor([2.0, -8.0, 0.5, 0.0])]
    >>> breadcrumbs(torch.zeros(4), deltas, density=0.5, gamma=0.25, scale=1.0)
    tensor([ 2.0000,  0.0000, -1.5000,  3.0000], dtype=torch.float64)
    """
    return merge_elements(base, deltas, elements(density, gamma, scale, rescale, aggregate), weights)


_CHECKS = {
    "density": number(0, 1, open_low=True), "gamma": number(0, 1, open_high=True), "scale": number(-np.inf),
    "rescale": one_of("norm", "none"),
}  # fmt: skip
_PARAMETERS = (WEIGHT, DENSITY, GAMMA, RESCALED, UNNORMALIZED, INT8_MASK, LAMBDA)
METHOD = Method(
    "breadcrumbs", "arXiv 2312.06795", "θ₀ + scale·Σ τ, each τ without its largest and smallest elements", DEFAULTS,
    elements, any_weight=lambda aggregate, **_: aggregate != "mean", least=1, per_model=("density", "gamma"),
    checks={**_CHECKS, "aggregate": one_of("mean", "sum")}, mergekit=Mergekit("breadcrumbs", _PARAMETERS),
)  # fmt: skip
BREADCRUMBS_TIES = Method(
    "breadcrumbs_ties", "arXiv 2312.06795 with 2306.01708", "TIES of τ trimmed by Breadcrumbs", DEFAULTS,
    elements_of_ties, any_weight=lambda aggregate, **_: aggregate != "mean", least=1, per_model=("density", "gamma"),
    checks={**_CHECKS, "aggregate": one_of("mean", "sum", "max")}, mergekit=Mergekit("breadcrumbs_ties", _PARAMETERS),
)  # fmt: skip
