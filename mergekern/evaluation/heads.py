"""Whose heads merges have when they are measured: by default each task's own, where the heads of models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import xxhash

from mergekern._internal.notes import show
from mergekern._internal.text import listed
from mergekern.checkpoints import Zoo, open_zoo
from mergekern.checkpoints.notes import skipped_names
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import MismatchError, OptionError
from mergekern.merging.notes import heads_of_other_labels
from mergekern.merging.owners import EACH, owners_of, patterns_of

# Heads are tensors as all others.
MERGED = "merged"


def open_with_heads(
    checkpoints: Any, base: Any, *, heads: str | None, head_tensors: str | Sequence[str] | None,
    on_mismatch: OnMismatch, io: IO, rename: Mapping[str, str] | None,
) -> tuple[Zoo, str | None]:  # fmt: skip
    """Open a zoo, and decide whose heads its merges have.

    Args:
        checkpoints: as for `merge`; or a `Zoo`, in which heads are told apart or not.
        heads: "each", "base", the name of a model or "merged". None stands for "each" where the heads of models do not
            match, or have labels that differ, and for "merged" elsewhere.
        base, head_tensors, on_mismatch, io, rename: as for `merge`.

    Returns:
        The zoo, and heads as `Plans` takes them. Where None became "each", a note says so.

    Raises:
        OptionError: heads are to be told apart, and there are none.
        MergekernError: as for `merge`.
    """
    if heads is None and head_tensors:
        heads = EACH
    patterns = patterns_of(None if heads == MERGED else heads, head_tensors)
    if isinstance(checkpoints, Zoo):
        if patterns is not None and not checkpoints.heads:
            raise OptionError("heads: the zoo that is given does not tell them apart; open it with heads=()")
        return checkpoints, (heads or EACH) if checkpoints.heads else None
    opened = partial(open_zoo, checkpoints, base, on_mismatch=on_mismatch, io=io, rename=rename)
    if heads == MERGED:
        return opened(), None
    if heads is not None:
        zoo = opened(heads=patterns)
        owners_of(heads, zoo, ())
        return zoo, heads
    try:
        zoo = opened()
    except MismatchError:
        told_apart = _told_apart(opened)
        if told_apart is None:
            raise
        return _said(told_apart, sorted(told_apart.heads), match=False), EACH
    differ = {*heads_of_other_labels(zoo)[0], *(name for names in skipped_names(zoo) for name in names)}
    told_apart = _told_apart(opened) if differ else None
    if told_apart is not None and (found := sorted(differ & told_apart.heads)):
        return _said(told_apart, found, match=not zoo.skipped), EACH
    return zoo, None


def _told_apart(opened: partial[Zoo]) -> Zoo | None:
    """Return the zoo with its heads told apart; None where there are none, or bodies do not match either."""
    try:
        return opened(heads=())
    except (MismatchError, OptionError):
        return None


def _said(zoo: Zoo, differ: Sequence[str], match: bool) -> Zoo:
    """Say that each task is measured with its own head, and return the zoo; `match`: whether they could be merged."""
    note = (
        f"heads of the models differ ({len(differ):,}): {listed(differ)}; they are not merged, and each model's task "
        'is measured with its own (heads="each")'
    )
    show([], [f'{note}; heads="merged" (--heads merged) merges them' if match else note])
    return zoo


def without_heads(zoo: Zoo) -> Zoo:
    """Return a zoo that says of its heads that they take no part, for metrics.

    >>> import numpy as np
    >>> models = {name: {"body.w": np.ones((2, 2)), "head.w": np.ones((n, 2))} for n, name in enumerate("ab", 3)}
    >>> zoo = open_zoo(models, {"body.w": np.zeros((2, 2))}, heads=())
    >>> without_heads(zoo).left_out
    ('heads, which take no part in metrics (1): head.w',)
    """
    if not zoo.heads:
        return zoo
    note = f"heads, which take no part in metrics ({len(zoo.heads):,}): {listed(sorted(zoo.heads))}"
    return replace(zoo, left_out=(*zoo.left_out, note))


def hash_of_heads(zoo: Zoo) -> str:
    """Return a hash of all tensors of the heads of a zoo, in every checkpoint."""
    hasher = xxhash.xxh3_128()
    for checkpoint in zoo.checkpoints:
        for name in sorted(zoo.heads.intersection(checkpoint.tensors)):
            values = checkpoint.read(name).contiguous()
            hasher.update(f"{checkpoint.name}\0{name}\0{values.dtype}\0{tuple(values.shape)}\0".encode())
            hasher.update(values.reshape(-1).view(torch.uint8).numpy())
    return f"xxh3_128:{hasher.hexdigest()}"
