"""float8 tensors and their scales.

An 8-bit tensor `W` without a companion stands for its stored values. With a companion `W_scale` or
`W_scale_inv` (the names used by compressed-tensors and by DeepSeek) it stands for `W · scale`, in float32;
in both conventions the companion *multiplies*. The scale may be one number, one per row, one per column,
or one per block of 128×128 (or of whatever size divides the shape evenly).
"""

from __future__ import annotations

import torch

from mergekern.errors import CheckpointError


class ScaleGrid:
    """The scale of every element of a tensor, from its companion.

    >>> grid = ScaleGrid(torch.tensor([[2.0], [3.0]]), (2, 4), "w_scale")
    >>> grid.at(torch.tensor([0, 1]), torch.tensor([3, 0]))
    tensor([[2., 2.],
            [3., 3.]])
    """

    def __init__(self, scale: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
        rows, width = (shape[0], shape[-1]) if len(shape) == 2 else (1, max(1, shape[-1] if shape else 1))
        if len(shape) > 2 and scale.numel() != 1:
            raise CheckpointError(f"{name}: a scale of a {len(shape)}-D tensor must be one number")
        if scale.dim() < 2 or scale.numel() == 1:
            scale = scale.reshape(-1, 1) if scale.numel() == rows else scale.reshape(1, -1)
        self.values = scale.to(torch.float32)
        try:
            self.block = tuple(_block(*sizes) for sizes in zip((rows, width), scale.shape, strict=True))
        except ValueError:
            raise CheckpointError(
                f"{name}: a scale of shape {tuple(scale.shape)} does not fit a tensor of shape {shape}; expected "
                "one number, one per row, one per column, or one per 128×128 block"
            ) from None

    def at(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the scales where these rows and columns cross."""
        last_row, last_column = self.values.shape[0] - 1, self.values.shape[1] - 1
        of_rows = self.values[(rows // self.block[0]).clamp(max=last_row)]
        return of_rows[:, (columns // self.block[1]).clamp(max=last_column)]


def _block(size: int, blocks: int) -> int:
    if blocks == 1:
        return max(size, 1)
    if blocks == -(-size // 128):
        return 128
    if blocks and size % blocks == 0:
        return size // blocks
    raise ValueError
