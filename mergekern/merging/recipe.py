"""What a method does, said once: its options, and how tensors and matrices are merged under them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import xxhash

from mergekern.errors import OptionError
from mergekern.kernels.combine import Consensus, Rule
from mergekern.kernels.combine import reference as combine_reference
from mergekern.kernels.trim import reference as trim_reference
from mergekern.merging.matrices import Matrices

Scope = Literal["tensor", "model"]


@dataclass(frozen=True)
class Trim:
    """Trimming by magnitude: the share that is kept, or the share that is dropped.

    Of d values, `keep` keeps the ⌊keep·d⌋ largest, at least one, and those that equal the last of them; `drop` drops
    the ⌊drop·d⌋ smallest, and those that equal the last of them.
    """

    keep: float | None = None
    drop: float = 0.0

    def rank(self, count: int) -> int | None:
        """Return k, where the k-th largest magnitude is the threshold; None where everything is kept."""
        if self.keep is not None:
            return max(1, int(self.keep * count))
        dropped = int(self.drop * count)
        return count - dropped + 1 if dropped else None

    def threshold(self, kth: float) -> float:
        """Return the least magnitude kept, given the k-th largest."""
        return kth if self.keep is not None else float(np.nextafter(kth, np.inf))


@dataclass(frozen=True)
class Recipe:
    """A merge, element by element: trim or drop, agree, rescale.

    Attributes:
        consensus: see `mergekern.kernels.combine`.
        factor: of the consensus.
        trim: by magnitude; None trims nothing.
        scope: whether trim and elect look at each tensor alone or at the whole model.
        drop: probability of the random masks; 0 drops nothing.
        seed: of the masks.
        share, needed: of "agree".
    """

    consensus: Consensus
    factor: float = 1.0
    trim: Trim | None = None
    scope: Scope = "tensor"
    drop: float = 0.0
    seed: int = 0
    share: float = 0.0
    needed: int = 1

    def rule(
        self, weights: Sequence[float], thresholds: Sequence[float] | None, keys: Sequence[int], majority: int = 1
    ) -> Rule:
        """Return the rule of one tensor, with every number known."""
        return Rule(
            self.consensus, tuple(weights), self.factor, None if thresholds is None else tuple(thresholds),
            tuple(keys) if self.drop else None, self.drop, majority, self.share, self.needed,
        )  # fmt: skip


def mask_key(seed: int, name: str, content: str) -> int:
    """Return the key of a random mask: of the seed, the tensor's name, and the content hash of the model's tensor.

    Keyed by content, a mask belongs to a model wherever it stands in the list and whatever it is called; two models
    that are equal in a tensor get the same mask.
    """
    return xxhash.xxh3_64_intdigest(f"{seed}\0{name}\0{content}".encode())


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        name: how it is chosen.
        paper: where it is from.
        summary: one line.
        defaults: its options.
        elements: options -> how tensors are merged element by element.
        matrix: how a matrix is merged, (matrices, weights, options) -> merged task matrix; None: element by element.
        any_weight: whether weights may be negative, or all zero.
    """

    name: str
    paper: str
    summary: str
    defaults: Mapping[str, Any]
    elements: Callable[..., Recipe]
    matrix: Callable[..., np.ndarray] | None = None
    any_weight: bool = False
    checks: Mapping[str, Callable[[str, Any], None]] = field(default_factory=dict)

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, checked.

        Raises:
            OptionError: a value that is out of range.
        """
        resolved = {**self.defaults, **{name: plain(value) for name, value in options.items()}}
        for name, check in self.checks.items():
            check(name, resolved[name])
        return resolved


def merge_elements(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], recipe: Recipe, weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Merge one tensor by a recipe: the oracle of what the kernels do, in float64.

    Args:
        base: any shape and float dtype.
        deltas: tuned − base of each model, of the same shape.
        recipe: of the method.
        weights: one for each model; 1 by default.

    Returns:
        The merged tensor, float64.
    """
    flat = [delta.to(torch.float64).reshape(-1) for delta in deltas]
    thresholds = None
    k = recipe.trim.rank(base.numel()) if recipe.trim else None
    if recipe.trim and k is not None:
        thresholds = [recipe.trim.threshold(trim_reference.kth_largest(None, delta, k)) for delta in flat]
    keys = [mask_key(recipe.seed, "", xxhash.xxh3_128_hexdigest(delta.numpy())) for delta in flat]
    zero = torch.zeros(base.numel(), dtype=torch.float64)
    weights = weights or [1.0] * len(flat)
    merged, tally = combine_reference.combine(zero, flat, recipe.rule(weights, thresholds, keys))
    if tally.undecided and tally.signs < 0:
        merged, _ = combine_reference.combine(zero, flat, recipe.rule(weights, thresholds, keys, majority=-1))
    return base.to(torch.float64) + torch.from_numpy(merged).view(base.shape)


def merge_matrix(
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    method: Method,
    weights: Sequence[float] | None,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """Merge one tensor by a method of matrices; others than matrices element by element. Float64."""
    if base.dim() != 2 or method.matrix is None:
        return merge_elements(base, deltas, method.elements(**options), weights)
    matrices = Matrices([delta.to(torch.float64).numpy() for delta in deltas])
    merged = method.matrix(matrices, weights or [1.0] * len(deltas), **options)
    return base.to(torch.float64) + torch.from_numpy(merged)


def plain(value: Any) -> Any:
    """Return a NumPy scalar, or a tensor of no dimension, as a number of Python; anything else as it is.

    >>> plain(np.int64(3)), plain("random")
    (3, 'random')
    """
    is_scalar = isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.dim() == 0)
    return value.item() if is_scalar else value


def number(low: float, high: float = np.inf, *, open_low: bool = False, open_high: bool = False) -> Callable:
    """Return a check that an option is a number of a range."""

    def check(name: str, value: Any) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        if not (is_number and (low < value or (value == low and not open_low))
                and (value < high or (value == high and not open_high))):  # fmt: skip
            upper = "" if high == np.inf else f" and {'below' if open_high else 'at most'} {high:g}"
            lower = "a number" if low == -np.inf else f"{'above' if open_low else 'at least'} {low:g}"
            raise OptionError(f"{name} must be {lower}{upper}, not {value!r}")

    return check


def one_of(*allowed: Any) -> Callable[[str, Any], None]:
    """Return a check that an option is one of a few values."""

    def check(name: str, value: Any) -> None:
        if value not in allowed or type(value) not in {type(a) for a in allowed}:
            raise OptionError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")

    return check


def integer(low: int, optional: bool = False) -> Callable[[str, Any], None]:
    """Return a check that an option is a whole number, or None where that is allowed."""

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise OptionError(f"{name} must be a whole number of at least {low}, not {value!r}")

    return check
