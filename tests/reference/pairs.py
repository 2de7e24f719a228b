"""The 28 metrics of one pair by plain PyTorch: two task vectors in memory, a full SVD of every matrix.

The formulas are followed literally, and no code is shared with the package. Tests compare the package with them in
float64; benchmarks time them in float32, as research code does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


Sample = torch.Tensor | Mapping[str, torch.Tensor]
FunctionalTask = tuple[Sample, torch.Tensor, torch.nn.Module]


def pair_functional_metrics(
    first: torch.nn.Module,
    second: torch.nn.Module,
    tasks: tuple[FunctionalTask, FunctionalTask],
    samples: Sequence[Sample],
    layer: str,
    input_layer: str | None = None,
    metrics: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the activation and gradient metrics of one pair of models, each metric on its own, as research code does.

    Every metric runs both models again: over the samples of all tasks for an activation metric, over its own task,
    forwards and backwards, for a gradient metric.

    Args:
        first, second: the models, weights loaded.
        tasks: inputs, labels and head of each of the two models.
        samples: the inputs of all tasks.
        layer: name of the module whose output is the activation.
        input_layer: name of the module whose output the input gradient is taken at; None takes it at the inputs.
        metrics: names of the metrics to compute; None computes all.

    >>> model, head = torch.nn.Linear(3, 2), torch.nn.Linear(2, 4)
    >>> task = torch.ones(5, 3), torch.zeros(5, dtype=torch.long), head
    >>> pair_functional_metrics(model, model, (task, task), [task[0]], "")["encoder_gradient_l2_distance"]
    0.0
    """
    compare = {
        "l2_distance": lambda a, b: (a - b).norm(),
        "cosine_similarity": lambda a, b: torch.cosine_similarity(a, b, dim=0, eps=0.0),
        "magnitude_ratio": lambda a, b: min(a.norm(), b.norm()) / max(a.norm(), b.norm()),
        "dot_product": lambda a, b: a @ b,
    }
    out = {}
    for what, names in {
        "activation": tuple(compare),
        "encoder_gradient": ("cosine_similarity", "l2_distance", "dot_product"),
        "input_gradient": ("cosine_similarity", "l2_distance", "dot_product"),
    }.items():
        for name in names:
            if metrics is not None and f"{what}_{name}" not in metrics:
                continue
            vectors = []
            for model, task in zip((first, second), tasks, strict=True):
                if what == "activation":
                    vectors.append(_mean_activation(model, samples, layer))
                else:
                    vectors.append(_gradients(model, task, input_layer)[what == "input_gradient"])
            out[f"{what}_{name}"] = float(compare[name](*vectors))
    return out


def _mean_activation(model: torch.nn.Module, samples: Sequence[Sample], layer: str) -> torch.Tensor:
    model.eval()
    total, count = torch.zeros(()), 0
    for inputs in samples:
        for start in range(0, _length(inputs), 32):
            found: list[torch.Tensor] = []
            handle = model.get_submodule(layer).register_forward_hook(lambda m, a, o, found=found: found.append(o))
            with torch.no_grad():
                _run(model, _rows(inputs, start, 32))
            handle.remove()
            values = found[0].mean(dim=1) if found[0].dim() == 3 else found[0].flatten(1)
            total, count = total + values.sum(dim=0), count + len(values)
    return total / count


def _gradients(
    model: torch.nn.Module, task: FunctionalTask, input_layer: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    model.eval()
    inputs, labels, head = task
    model.zero_grad()
    of_inputs = []
    for start in range(0, len(labels), 8):
        batch = _rows(inputs, start, 8)
        found: list[torch.Tensor] = []
        if input_layer is None:
            assert isinstance(batch, torch.Tensor)
            found.append(batch.clone().requires_grad_())
            features = _run(model, found[0])
        else:
            module = model.get_submodule(input_layer)
            handle = module.register_forward_hook(lambda m, a, o, found=found: found.append(o))
            features = _run(model, batch)
            handle.remove()
            found[0].retain_grad()
        torch.nn.functional.cross_entropy(head(features), labels[start : start + 8]).backward()
        assert found[0].grad is not None
        of_inputs.append(found[0].grad.flatten())
    encoder = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in encoder]) / len(labels), torch.cat(of_inputs)


def _run(model: torch.nn.Module, inputs: Sample) -> torch.Tensor:
    return model(inputs) if isinstance(inputs, torch.Tensor) else model(**inputs)


def _length(inputs: Sample) -> int:
    return len(inputs if isinstance(inputs, torch.Tensor) else next(iter(inputs.values())))


def _rows(inputs: Sample, start: int, count: int) -> Sample:
    if isinstance(inputs, torch.Tensor):
        return inputs[start : start + count]
    return {name: values[start : start + count] for name, values in inputs.items()}
