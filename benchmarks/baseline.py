"""The plain per-pair implementation, to compare against: two task vectors in memory, a full SVD of every matrix.

It follows the formulas literally and shares no code with the package. `pair_metrics` is also what the whole package
is tested against, in float64; benchmarks run it in float32, as research code does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def pair_metrics(
    base: Mapping[str, torch.Tensor],
    first: Mapping[str, torch.Tensor],
    second: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    top_k: int = 10,
    spectrum_k: int = 100,
) -> dict[str, float]:
    """Return the 18 weight metrics of one pair of models, whose tensors are all of full rank.

    >>> base = {"w": torch.zeros(2, 2)}
    >>> metrics = pair_metrics(base, {"w": torch.eye(2)}, {"w": 2 * torch.eye(2)})
    >>> round(metrics["task_vector_cosine_similarity"], 6), round(metrics["task_vector_magnitude_ratio"], 6)
    (1.0, 0.5)
    """
    names = [name for name, tensor in base.items() if tensor.is_floating_point()]
    a = {name: first[name].to(dtype) - base[name].to(dtype) for name in names}
    b = {name: second[name].to(dtype) - base[name].to(dtype) for name in names}
    flat_a = torch.cat([tensor.flatten() for tensor in a.values()])
    flat_b = torch.cat([tensor.flatten() for tensor in b.values()])
    norm_a, norm_b = float(flat_a.norm()), float(flat_b.norm())
    dot = float(flat_a @ flat_b)
    cosine = dot / (norm_a * norm_b)
    rank, stable, gap, ratio = _stack_metrics(flat_a, flat_b)
    layers = [
        (_stack_metrics(a[name].flatten(), b[name].flatten())[0], float(a[name].norm() + b[name].norm()))
        for name in names
        if min(a[name].norm(), b[name].norm()) >= 1e-10
    ]
    layerwise = sum(value * weight for value, weight in layers) / sum(weight for _, weight in layers)
    out = {
        "task_vector_cosine_similarity": cosine,
        "task_vector_l2_distance": float((flat_a - flat_b).norm()),
        "task_vector_dot_product": dot,
        "weight_space_angle": math.degrees(math.acos(max(-1.0, min(1.0, cosine)))),
        "task_vector_magnitude_ratio": min(norm_a, norm_b) / max(norm_a, norm_b),
        "effective_rank": rank,
        "effective_rank_mergeability_score": min(1.0, max(0.0, 2.0 - rank)),
        "stable_rank": stable,
        "spectral_gap": gap,
        "singular_value_ratio": ratio,
        "layerwise_effective_rank": layerwise,
        "layerwise_effective_rank_mergeability_score": min(1.0, max(0.0, 2.0 - layerwise)),
    }
    matrices = [_matrix_metrics(a[name], b[name], top_k, spectrum_k) for name in names if a[name].dim() == 2]
    if matrices:
        out |= {name: sum(m[name] for m in matrices) / len(matrices) for name in matrices[0]}
    return out


def _stack_metrics(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float, float, float]:
    values = torch.linalg.svdvals(torch.stack([a, b]))
    if len(values) < 2:
        values = torch.cat([values, torch.zeros(1, dtype=values.dtype)])
    p = values / values.sum()
    entropy = -sum(float(x * x.log()) for x in p if x > 0)
    s1, s2 = values.tolist()
    return math.exp(entropy), (s1 + s2) ** 2 / (s1**2 + s2**2), (s1 - s2) / s1, s2 / s1


def _matrix_metrics(a: torch.Tensor, b: torch.Tensor, top_k: int, spectrum_k: int) -> dict[str, float]:
    u_a, s_a, v_a = torch.linalg.svd(a, full_matrices=False)
    u_b, s_b, v_b = torch.linalg.svd(b, full_matrices=False)
    k = min(top_k, *a.shape)
    left = float((u_a[:, :k].T @ u_b[:, :k]).norm())
    top = float((v_a[:k] @ v_b[:k].T).norm())
    bottom = float((v_a[-k:] @ v_b[-k:].T).norm())
    return {
        "singular_value_overlap": float(torch.cosine_similarity(s_a[:spectrum_k], s_b[:spectrum_k], dim=0)),
        "subspace_overlap": left / k,
        "right_subspace_overlap_top_k": top / k**0.5,
        "right_subspace_overlap_bottom_k": bottom / k**0.5,
        "interaction_matrix_overlap_top_k": top**2 / k,
        "interaction_matrix_overlap_bottom_k": bottom**2 / k,
    }
