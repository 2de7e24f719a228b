"""A merge method: its name, options and rules; and what it does to one tensor in memory, the oracle of the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import xxhash

from mergekern.errors import OptionError
from mergekern.kernels.combine import Tally
from mergekern.kernels.combine import reference as combine_reference
from mergekern.kernels.trim import reference as trim_reference
from mergekern.merging.elementwise import Elementwise, mask_key
from mergekern.merging.matrices import Matrices
from mergekern.merging.mergekit_names import Mergekit
from mergekern.merging.option_checks import Check, plain
from mergekern.merging.whole_tensor import Combination, TensorInMemory, lost_norms, merge_in_memory


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        name: how it is chosen.
        paper: where it is from.
        summary: its rule, in one line.
        defaults: option -> value where it is not given.
        elements: options -> how tensors are merged element by element; None where `tensor` merges all of them.
        matrix: how a matrix is merged, (matrices, weights, **options) -> merged task matrix; None: element by element.
        tensor: how a tensor is merged that must be looked at as a whole first, (whole tensor, weights, **options) ->
            what is done to its elements; None: as `elements` and `matrix` say.
        any_weight: whether weights may be negative, or all zero; or a function of the options that tells.
        least, most: how many models it merges; most of None: any number.
        without_base: options -> whether it needs no base; None: it always needs one.
        weigh: (weights, options) -> weights of the models in their order, where an option decides them; None: as given.
        per_model: names of the options of which each model may have its own value.
        checks: option -> what raises OptionError for a value that is out of range.
        mergekit: the method as mergekit has it; None where it has no such method.
        needs: what runs of the models on samples must give, see `gathered`; None where weights are enough.
    """

    name: str
    paper: str
    summary: str
    defaults: Mapping[str, Any]
    elements: Callable[..., Elementwise] | None = None
    matrix: Callable[..., Any] | None = None
    tensor: Callable[..., Combination] | None = None
    any_weight: bool | Callable[..., bool] = False
    least: int = 2
    most: int | None = None
    without_base: Callable[..., bool] | None = None
    weigh: Callable[..., Sequence[float]] | None = None
    per_model: tuple[str, ...] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)
    mergekit: Mergekit | None = None
    needs: Literal["inputs", "fisher"] | None = None

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, checked. Where each model may have its own value, a mapping or a tuple has them.

        Raises:
            OptionError: a value that is out of range.
        """
        resolved = {**self.defaults, **{name: plain(value) for name, value in options.items()}}
        for name in self.per_model:
            if isinstance(resolved[name], Mapping):
                resolved[name] = {str(model): plain(value) for model, value in resolved[name].items()}
            elif isinstance(resolved[name], list | tuple):
                resolved[name] = tuple(map(plain, resolved[name]))
        for name, check in self.checks.items():
            value = resolved[name]
            own = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
            for each in own if name in self.per_model else (value,):
                check(name, each)
        return resolved

    def takes_any_weight(self, options: Mapping[str, Any]) -> bool:
        """Tell whether weights may be negative, or all zero, by all of its options."""
        return self.any_weight(**options) if callable(self.any_weight) else self.any_weight

    def is_without_base(self, options: Mapping[str, Any]) -> bool:
        """Tell whether it merges models without a base, by all of its options."""
        return self.without_base is not None and self.without_base(**options)

    def merges(self, models: int) -> bool:
        """Tell whether it merges groups of this many models."""
        return self.least <= models and (self.most is None or models <= self.most)

    def check_count(self, models: int) -> None:
        """Raise OptionError unless it merges groups of this many models."""
        if not self.merges(models):
            words = {1: "one model", 2: "two models"}
            wanted = words.get(self.least, f"{self.least} models")
            wanted = f"{wanted} or more" if self.most is None else wanted
            raise OptionError(
                f"{self.name} merges {wanted}{'' if self.without_base else ' with the base'}, not {models}"
            )


def merge_elements(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], elementwise: Elementwise, weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Merge one tensor element by element: the oracle of what the kernels do, in float64.

    Args:
        base: any shape and float dtype.
        deltas: tuned − base of each model, of the same shape.
        elementwise: what the method does to each element.
        weights: one for each model; 1 by default.

    Returns:
        The merged tensor, float64.
    """
    flat = [delta.to(torch.float64).reshape(-1) for delta in deltas]
    thresholds, limits = None, None
    if elementwise.trim is not None:
        thresholds, limits = [], []
        for trim, delta in zip(elementwise.trims(len(flat)), flat, strict=True):
            least, most = trim.rank(base.numel()), trim.limit_rank(base.numel())
            thresholds.append(trim.threshold(trim_reference.kth_largest(None, delta, least)) if least else 0.0)
            limits.append(trim_reference.kth_largest(None, delta, most) if most else np.inf)
    keys = [mask_key(elementwise.seed, "", xxhash.xxh3_128_hexdigest(delta.numpy())) for delta in flat]
    weights = weights or [1.0] * len(flat)
    multipliers = None
    if elementwise.keeps_norm:
        rule = elementwise.rule(weights, thresholds, keys, 1, limits)
        multipliers = lost_norms(TensorInMemory(base, deltas), rule)

    def merged(majority: int) -> tuple[np.ndarray, Tally]:
        rule = elementwise.rule(weights, thresholds, keys, majority, limits, multipliers)
        return combine_reference.combine(None, flat, rule)

    found, tally = merged(1)
    if tally.undecided and tally.signs < 0:
        found, _ = merged(-1)
    return base.to(torch.float64) + torch.from_numpy(found).view(base.shape)


def merge_tensor(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], method: Method, weights: Sequence[float] | None,
    options: Mapping[str, Any],
) -> torch.Tensor:  # fmt: skip
    """Merge one tensor by a method, as a whole or as a matrix where it has such a rule, else element by element.

    Args:
        base, deltas, weights: as for `merge_elements`.
        method: how the tensor is merged.
        options: all options of the method.

    Returns:
        The merged tensor, float64.
    """
    if method.tensor is not None:
        combination = method.tensor(TensorInMemory(base, deltas), weights or [1.0] * len(deltas), **options)
        return merge_in_memory(base, deltas, combination)
    if base.dim() != 2 or method.matrix is None:
        assert method.elements is not None
        return merge_elements(base, deltas, method.elements(**options), weights)
    matrices = Matrices([delta.to(torch.float64).numpy() for delta in deltas])
    merged = method.matrix(matrices, weights or [1.0] * len(deltas), **options)
    return base.to(torch.float64) + torch.from_numpy(merged)
