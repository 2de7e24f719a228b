"""The combinations of LoRA adapters by name. Literals alone: help and completion read them without torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

from mergekern.errors import OptionError, did_you_mean

# What a combination works on: A and B each by itself, all factors stacked, or the products ΔW.
Of = Literal["factors", "stack", "products"]
MajoritySign = Literal["total", "frequency"]
MAJORITY_SIGNS: tuple[MajoritySign, ...] = ("total", "frequency")
# What becomes of tensors that adapters hold whole, and that differ.
SavedWhole = Literal["error", "average", "skip"]
SAVED_WHOLE: tuple[SavedWhole, ...] = ("error", "average", "skip")


class Combination(NamedTuple):
    """One way to make an adapter of several.

    Attributes:
        formula: the result, with W_i = s_i·B_i·A_i and weights w_i.
        of: what it works on. Those of factors need equal ranks.
        options: the options of `merge_adapters` that it takes.
        is_exact: whether ΔW = Σ w_i W_i, up to the rounding of what is stored.
    """

    formula: str
    of: Of
    options: tuple[str, ...] = ()
    is_exact: bool = False

    @property
    def is_truncated(self) -> bool:
        """Whether the result is the best approximation of a rank."""
        return "svd_rank" in self.options


COMBINATIONS = {
    "svd": Combination("best approximation of rank r to Σ w·W", "stack", ("svd_rank",)),
    "cat": Combination("Σ w·W, of rank Σ r", "stack", is_exact=True),
    "linear": Combination("(Σ √|w·s|·B)·(Σ ±√|w·s|·A)", "factors"),
    "ties": Combination("as linear, of trimmed A and B; mean of those of the elected sign", "factors",
                        ("density", "majority_sign")),
    "ties_svd": Combination("rank r of: W trimmed; mean of those of the elected sign", "products",
                            ("density", "majority_sign", "svd_rank")),
    "dare_linear": Combination("as linear, of A and B thinned at random", "factors", ("density", "seed")),
    "dare_linear_svd": Combination("rank r of: Σ w·W, thinned at random", "products", ("density", "seed", "svd_rank")),
    "dare_ties": Combination("as ties, thinned at random instead of trimmed", "factors",
                             ("density", "majority_sign", "seed")),
    "dare_ties_svd": Combination("as ties_svd, thinned at random instead of trimmed", "products",
                                 ("density", "majority_sign", "seed", "svd_rank")),
    "magnitude_prune": Combination("as linear, of trimmed A and B", "factors", ("density",)),
    "magnitude_prune_svd": Combination("rank r of: Σ w·W, trimmed", "products", ("density", "svd_rank")),
}  # fmt: skip


def find_combination(name: str) -> Combination:
    """Return a combination.

    Raises:
        OptionError: there is none of this name; the nearest is said.

    >>> find_combination("cats")
    Traceback (most recent call last):
    mergekern.errors.OptionError: unknown combination 'cats' (did you mean 'cat'?); known: svd, cat, linear, ties, \
ties_svd, dare_linear, dare_linear_svd, dare_ties, dare_ties_svd, magnitude_prune, magnitude_prune_svd
    """
    if name not in COMBINATIONS:
        nearest = did_you_mean(name, COMBINATIONS)
        raise OptionError(f"unknown combination {name!r}{nearest}; known: {', '.join(COMBINATIONS)}")
    return COMBINATIONS[name]
