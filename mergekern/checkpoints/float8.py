"""float8 tensors and their scales.

An 8-bit tensor `W` whose module has no scales stands for its stored values. With a scale it stands for `W · scale`, in
float32; in all conventions the scale *multiplies*. It is found by its name: `W_scale` and `W_scale_inv`
(compressed-tensors, DeepSeek), `scale_weight` (ComfyUI), and whatever else names a scale after the tensor or module.
The scale may be one number, one per row, one per column, or one per block. The sizes of blocks are those that
config.json gives, else 128×128, else those which alone fit the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from mergekern.checkpoints.dtypes import FLOAT8
from mergekern.checkpoints.quantisation import WEIGHTS, Quantisation, leaf_of, owner_of, says_scale
from mergekern.checkpoints.stored import StoredTensor
from mergekern.errors import CheckpointError

_USUAL = 128
_ZEROS = frozenset({"zero", "zeros", "zp", "zps"})
# Words by which a scale is that of what a layer takes or gives, and of no weight.
_ACTIVATIONS = frozenset({
    "input", "inputs", "output", "outputs", "in", "out", "act", "activation", "activations", "q", "k", "v", "kv", "qk",
    "query", "key", "value", "cache", "prob", "probs", "softmax", "bmm",
})  # fmt: skip
_DATA = frozenset({"data", "q"})
_REMEDY = "rename it, or give a dequantised copy"


class Scales(NamedTuple):
    """Which tensors hold the scales of float8 tensors.

    Attributes:
        of: names of float8 tensors -> those of their scales.
        without_part: scales of activations, zero points that are all zero, and markers of the format.
    """

    of: Mapping[str, str]
    without_part: Sequence[str]


def find_scales(
    source: str,
    floats: Mapping[str, StoredTensor],
    others: Mapping[str, StoredTensor],
    quantisation: Quantisation | None,
    is_zero: Callable[[str], bool],
) -> Scales:
    """Return the scales of float8 tensors, found by their names.

    Args:
        source: what errors call the checkpoint.
        floats: the floating-point tensors.
        others: the others.
        quantisation: what the configuration says.
        is_zero: tells whether all values of a floating-point tensor are 0.

    Raises:
        CheckpointError: a float8 tensor seems to have a scale, but which one, or where, is not clear.
    """
    markers = [name for name in floats if leaf_of(name)[1] == ("scaled", "fp", "8")]
    coded = [t for t in floats.values() if t.dtype in FLOAT8 and t.name not in markers]
    if not coded:
        return Scales({}, ())
    scales = [name for name in (*floats, *others) if says_scale(name)]
    by_owner: dict[tuple[str, ...], list[str]] = {}
    for name in scales:
        by_owner.setdefault(owner_of(name), []).append(name)
    found: dict[str, str] = {}
    zeros: list[str] = []
    for tensor in coded:
        if says_scale(tensor.name):
            continue
        words = leaf_of(tensor.name)[1]
        candidates = by_owner.get(owner_of(tensor.name, _DATA if "data" in words else frozenset()), [])
        candidates = [name for name in candidates if not _is_of_activation(name) or _is_named_after(name, tensor.name)]
        offsets = [name for name in candidates if not _ZEROS.isdisjoint(leaf_of(name)[1])]
        for name in offsets:
            if name in others or not is_zero(name):
                raise CheckpointError(f"{source}: {tensor.name!r} has zero points in {name!r}, which are not read")
        zeros += offsets
        scale = _only(source, tensor.name, [name for name in candidates if name not in offsets])
        if scale is not None:
            found[tensor.name] = scale
    for scale in found.values():
        if scale in others:
            raise CheckpointError(f"{source}: the scale {scale!r} holds integers, which is not supported")
        if floats[scale].dtype in FLOAT8:
            raise CheckpointError(f"{source}: the scale {scale!r} is float8 itself, which is not supported; {_REMEDY}")
    _refuse_unscaled(source, [t.name for t in coded if t.name not in found], scales, found, zeros, quantisation)
    taken = {*found.values(), *zeros, *others}
    of_activations = [name for name in scales if name not in taken and _is_of_activation(name)] if found else []
    return Scales(found, [*of_activations, *zeros, *markers])


def _only(source: str, tensor: str, candidates: list[str]) -> str | None:
    """Return the one scale of a tensor: of several the one that has its full name; None if there is none."""
    exact = [name for name in candidates if _is_named_after(name, tensor)]
    candidates = exact or candidates
    if len(candidates) > 1:
        raise CheckpointError(
            f"{source}: {tensor!r} is float8, and each of {', '.join(map(repr, candidates[:4]))} may be its scale; "
            "give a dequantised copy"
        )
    return candidates[0] if candidates else None


def _is_named_after(scale: str, tensor: str) -> bool:
    """Tell whether the name of a scale holds that of a tensor, and not just that of its module."""
    return scale.startswith(tensor) or set(leaf_of(tensor)[1]) <= set(leaf_of(scale)[1])


def _is_of_activation(scale: str) -> bool:
    words = set(leaf_of(scale)[1])
    return not words.isdisjoint(_ACTIVATIONS) and words.isdisjoint(WEIGHTS)


def _refuse_unscaled(
    source: str,
    unscaled: Iterable[str],
    scales: Sequence[str],
    found: Mapping[str, str],
    zeros: Sequence[str],
    quantisation: Quantisation | None,
) -> None:
    """Raise CheckpointError for a float8 tensor that seems to have a scale, though none is found."""
    near: dict[tuple[str, ...], str] = {}  # a scale in each module, or below it
    taken = {*found.values(), *zeros}
    for scale in scales:
        if scale not in taken:
            module = leaf_of(scale)[0]
            near |= {tuple(module[:end]): scale for end in range(len(module), 0, -1)}
            if not module and len(owner_of(scale)) == 0:
                near[()] = scale
    for name in unscaled:
        module, words = leaf_of(name)
        other = near.get(tuple(module)) if not WEIGHTS.isdisjoint(words) else None
        if other is not None:
            raise CheckpointError(
                f"{source}: {name!r} is float8, and whether {other!r} is its scale is unclear; {_REMEDY}"
            )
        if found:
            scaled = next(iter(found))
            raise CheckpointError(
                f"{source}: {name!r} is float8 and has no scale, where {scaled!r} has {found[scaled]!r}; its values "
                "cannot be known: give a dequantised copy"
            )
        if quantisation is not None:
            raise CheckpointError(
                f"{source}: config.json says that weights are quantised by {quantisation.method}, but no scale of the "
                f"float8 tensor {name!r} is found; give a dequantised copy"
            )


class ScaleGrid:
    """The scale of every element of a tensor, from its companion.

    Args:
        scale: one number, one per row, column or block; for a 3-D tensor one number, or blocks of each of its matrices.
        shape: shape of the tensor.
        name: what errors call the scale.
        blocks: rows and columns of blocks, of which one size should fit; empty if they are not known.

    Raises:
        CheckpointError: the scale does not fit the tensor, or blocks of several sizes would.

    >>> grid = ScaleGrid(torch.tensor([[2.0], [3.0]]), (2, 4), "w_scale")
    >>> grid.at(range(0, 2), range(2, 4))
    tensor([[2., 2.],
            [3., 3.]])
    """

    def __init__(
        self, scale: torch.Tensor, shape: tuple[int, ...], name: str, blocks: Sequence[tuple[int, int]] = ()
    ) -> None:
        rows, width = shape[-2] if len(shape) > 1 else 1, max(1, shape[-1] if shape else 1)
        is_stacked = len(shape) == scale.dim() == 3 and scale.numel() > 1 and shape[0] == scale.shape[0]
        if len(shape) > 2 and scale.numel() != 1 and not is_stacked:
            raise CheckpointError(f"{name}: a scale of a {len(shape)}-D tensor must be one number")
        is_list = scale.dim() < 2
        if is_list or scale.numel() == 1:
            scale = scale.reshape(-1, 1) if scale.numel() == rows else scale.reshape(1, -1)
        misfit = f"{name}: a scale of shape {tuple(scale.shape)} does not fit a tensor of shape {shape}"
        try:
            if scale.dim() != (3 if is_stacked else 2) or (is_list and scale.numel() not in (1, rows, width)):
                raise ValueError
            self.block = _block_sizes((rows, width), (scale.shape[-2], scale.shape[-1]), blocks)
        except ValueError:
            raise CheckpointError(
                f"{misfit}; expected one number, one per row, one per column, or one per block (of 128×128, or of the "
                "size that config.json gives)"
            ) from None
        except LookupError as error:
            raise CheckpointError(
                f"{misfit} in one way alone: {error} would. Give their size in config.json, as weight_block_size of "
                "quantization_config"
            ) from None
        # Of a 3-D tensor, the rows of its matrices and those of their grids are counted through.
        self._rows, self._grid = (max(rows, 1) if is_stacked else None), scale.shape[-2]
        self.values = scale.to(torch.float32).reshape(-1, scale.shape[-1])

    def at(self, rows: range, columns: range) -> torch.Tensor:
        """Return the scales where rows and columns cross; rows of a 3-D tensor count through its matrices."""
        row, column = (torch.arange(axis.start, axis.stop, device="cpu") for axis in (rows, columns))
        matrix, row = (row // self._rows, row % self._rows) if self._rows else (0, row)
        of_rows = self.values[matrix * self._grid + (row // self.block[0]).clamp(max=self._grid - 1)]
        return of_rows[:, (column // self.block[1]).clamp(max=self.values.shape[1] - 1)]


def _block_sizes(sizes: tuple[int, int], counts: tuple[int, int], known: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return rows and columns of the blocks of a grid.

    Raises:
        ValueError: no size fits.
        LookupError: several sizes fit.
    """
    fitting = [block for block in known if all(map(_fits, sizes, counts, block))]
    if len(fitting) > 1:
        raise LookupError(f"blocks of {' and '.join(map(str, fitting))}")
    usual = fitting[0] if fitting else (None, None) if known else (_USUAL, _USUAL)
    rows, columns = map(_block, sizes, counts, usual)
    return rows, columns


def _fits(size: int, count: int, edge: int) -> bool:
    return count in (1, size, -(-size // edge))


def _block(size: int, count: int, usual: int | None) -> int:
    if count == 1:
        return max(size, 1)
    if usual and count == -(-size // usual):
        return usual
    if not 0 < count <= size or (smallest := -(-size // count)) > (largest := (size - 1) // (count - 1)):
        raise ValueError
    if smallest < largest:
        raise LookupError(f"blocks of any size from {smallest} to {largest}")
    return smallest
