"""The plain implementations of merges by singular vectors, to compare against: a full SVD wherever the rule has one.

They follow the rules literally, in float32 as research code does, and share no code with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """Return U·Vᵀ."""
    try:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        # Some stacks of directions are so nearly dependent that the float32 SVD does not converge.
        left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left @ right).to(matrix.dtype)


def truncated(deltas: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return the leading ⌊r/N⌋ singular triplets of each matrix."""
    k = min(deltas[0].shape) // len(deltas)
    svds = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    return [(left[:, :k], values[:k], right[:k]) for left, values, right in svds]


def tsv(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the merged task matrix of TSV."""
    lefts, values, rights = zip(*truncated(deltas), strict=True)
    return polar(torch.cat(lefts, 1)) * torch.cat(values) @ polar(torch.cat(rights))


def isotropic(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the merged task matrix of isotropic merging."""
    total = sum(left * values @ right for left, values, right in truncated(deltas))
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    return values.mean() * left @ right


def isotropic_cts(deltas: Sequence[torch.Tensor], fraction: float = 0.8) -> torch.Tensor:
    """Return the merged task matrix of isotropic merging in common and task-specific subspaces."""
    rank = min(deltas[0].shape)
    own = round((rank - int(rank * fraction)) / len(deltas))
    common = rank - own * len(deltas)
    left, values, right = torch.linalg.svd(sum(deltas), full_matrices=False)
    parts = [(left[:, :common], values[:common], right[:common])]
    for delta in deltas:
        rest = delta - left[:, :common] @ (left[:, :common].T @ delta)
        own_left, own_values, own_right = torch.linalg.svd(rest, full_matrices=False)
        parts.append((own_left[:, :own], own_values[:own], own_right[:own]))
    lefts, spectra, rights = zip(*parts, strict=True)
    return torch.cat(spectra).mean() * polar(torch.cat(lefts, 1)) @ polar(torch.cat(rights))


def merge(models: Sequence[Path], base: Path, method: str, output: Path) -> None:
    """Merge checkpoints in float32, one tensor after the other; tensors that are not matrices are averaged."""
    rule = {"tsv": tsv, "isotropic": isotropic, "isotropic_cts": isotropic_cts}[method]
    origin, tuned = load_file(base), [load_file(path) for path in models]
    merged = {}
    for name, tensor in origin.items():
        deltas = [model[name] - tensor for model in tuned]
        merged[name] = tensor + (rule(deltas) if tensor.dim() == 2 else sum(deltas) / len(deltas))
    save_file(merged, output)
