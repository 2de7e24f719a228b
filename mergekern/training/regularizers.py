"""Regularizers for models that are to be merged: each is one term to add to the loss of any training loop.

    loss = cross_entropy(head(encoder(inputs)), labels)
    loss = loss + 0.1 * regularizers.distance_from_base(encoder, base)
    loss.backward()

θ are the trainable parameters of a model, θ₀ those of its base, τ = θ − θ₀ the task vector and L the loss. Every
function returns a scalar of the parameters' precision (float32 for 16-bit ones) through which gradients flow; tied
parameters count once, frozen ones and buffers not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mergekern._internal.validation import positive_integer
from mergekern.errors import MismatchError, OptionError, did_you_mean

Tensors = Mapping[str, Tensor]


def distance_from_base(model: nn.Module, base: Tensors) -> Tensor:
    """Return ‖θ − θ₀‖², which keeps fine-tuning near the base.

    λ‖θ − θ₀‖² in the loss pulls with 2λ(θ − θ₀): L2-SP of Li, Grandvalet and Davoine (arXiv 1802.01483).

    Args:
        model: the part that is trained and shared with the base: the encoder without its head.
        base: name -> tensor, as `load_file` reads it or `{k: v.clone() for k, v in model.state_dict().items()}` keeps
            it before training; other names are ignored. On the model's device, or it is copied there in every step.

    Raises:
        MismatchError: a trainable parameter has no tensor in the base, or one of another shape.
        OptionError: nothing is trainable; the base shares memory with the model, and would follow it.

    >>> model, base = nn.Linear(2, 1, bias=False), {"weight": torch.zeros(1, 2)}
    >>> model.weight.data[:] = torch.tensor([[3.0, 4.0]])
    >>> distance_from_base(model, base).item()
    25.0
    """
    return _sum_of_squares([delta for _, delta in _task_vector(model, base)])


def gradient_magnitude(loss: Tensor, model: nn.Module) -> Tensor:
    """Return ‖∇_θ L‖², which seeks flat places; its own gradient, 2·H·∇L, comes from a second backward pass.

    Double backpropagation of Drucker and LeCun (1992); as a regularizer of the trajectory, Barrett and Dherin (arXiv
    2009.11162). Call it before `backward`, on the loss itself (unscaled, under mixed precision). The graph of the first
    backward pass is kept for the second.

    Args:
        loss: scalar, from a forward pass of the model.
        model: its trainable parameters are θ; those that the loss does not use have a gradient of zero.

    Raises:
        OptionError: the loss is not a scalar with gradients; nothing is trainable; an operation of the forward pass has
            no second derivative.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> gradient_magnitude(model(torch.tensor([3.0, 4.0])).sum(), model).item()
    25.0
    """
    if loss.numel() != 1 or not loss.requires_grad:
        what = f"{tuple(loss.shape)}, requires_grad={loss.requires_grad}"
        raise OptionError(f"the loss is a scalar through which gradients flow, not {what}")
    parameters = [parameter for _, parameter in _trainable(model)]
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    present = [gradient for gradient in gradients if gradient is not None]
    _check_second_derivative(present)
    return _sum_of_squares(present) if present else loss.new_zeros(())


def subspace_distance(
    model: nn.Module, base: Tensors, subspaces: Tensors, side: Literal["outside", "inside"] = "outside"
) -> Tensor:
    """Return Σ_l ‖τ^l − U_l U_lᵀ τ^l‖_F², the part of the task vector outside given subspaces.

    Models that are all held to the same subspaces, those of their base for instance, change their matrices along the
    same left directions, which is what `subspace_overlap` measures, and which the study (arXiv 2601.22285) finds in
    pairs that merge well. `side="inside"` is the part within, Σ_l ‖U_lᵀ τ^l‖_F²: it keeps a model away from directions
    that others use, as orthogonal gradients do in continual learning (Farajtabar et al., arXiv 1910.07104).

    Args:
        model, base: as for `distance_from_base`.
        subspaces: name of a matrix -> (m, k) orthonormal columns, from `leading_subspaces`; the other parameters are
            left alone.
        side: "outside" or "inside".

    Raises:
        MismatchError: as for `distance_from_base`; a subspace that is not of a trainable matrix, or of other rows.
        OptionError: as for `distance_from_base`; no subspaces, or another side.

    >>> model, base = nn.Linear(1, 2, bias=False), {"weight": torch.zeros(2, 1)}
    >>> model.weight.data[:] = torch.tensor([[3.0], [4.0]])
    >>> subspace_distance(model, base, {"weight": torch.tensor([[1.0], [0.0]])}).item()
    16.0
    >>> subspace_distance(model, base, {"weight": torch.tensor([[1.0], [0.0]])}, "inside").item()
    9.0
    """
    if side not in ("outside", "inside") or not subspaces:
        raise OptionError(
            f"side must be 'outside' or 'inside' of at least one subspace, not {side!r} of {len(subspaces)}"
        )
    parts, used = [], set()
    for names, delta in _task_vector(model, base):
        if (name := _first(names, subspaces)) is None:
            continue
        used.add(name)
        basis = subspaces[name].to(delta)
        if delta.dim() != 2 or basis.dim() != 2 or len(basis) != len(delta):
            raise MismatchError(f"subspace of {name!r}: {tuple(basis.shape)} for a parameter of {tuple(delta.shape)}")
        within = basis.T @ delta
        parts.append(within if side == "inside" else delta - basis @ within)
    if unused := [name for name in subspaces if name not in used]:
        known = [name for names, _ in _trainable(model) for name in names]
        raise MismatchError(f"subspace of {unused[0]!r}: no trainable parameter{did_you_mean(unused[0], known)}")
    return _sum_of_squares(parts)


def leading_subspaces(tensors: Tensors, k: int = 10) -> dict[str, Tensor]:
    """Return the leading left singular vectors of every matrix: name -> (m, min(k, m, n)) orthonormal columns.

    Args:
        tensors: name -> tensor of the base, or of the task vector of another model; only floating-point matrices count.
        k: dimension of the subspaces.

    Raises:
        OptionError: k is below 1.

    >>> leading_subspaces({"w": torch.diag(torch.tensor([1.0, 5.0])), "b": torch.ones(2)}, 1)["w"].abs().tolist()
    [[0.0], [1.0]]
    """
    k = positive_integer("k", k)
    found = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and tensor.is_floating_point():
            left = torch.linalg.svd(tensor.detach().double(), full_matrices=False).U[:, :k]
            found[name] = left.to(torch.promote_types(tensor.dtype, torch.float32))
    return found


def _trainable(model: nn.Module) -> Iterator[tuple[list[str], nn.Parameter]]:
    """Yield each parameter that takes part in training once, with all its names; OptionError if there is none."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    if not names:
        raise OptionError(f"no parameter of the {type(model).__name__} requires a gradient")
    for parameter, every in names.items():
        yield every, parameter


def _task_vector(model: nn.Module, base: Tensors) -> Iterator[tuple[list[str], Tensor]]:
    """Yield the names of each trainable parameter, and θ − θ₀ of it in float32 or wider."""
    for names, parameter in _trainable(model):
        if (name := _first(names, base)) is None:
            raise MismatchError(
                f"parameter {names[0]!r} is not in the base{did_you_mean(names[0], base)}; pass the part of the model "
                "that the base has (the encoder without its head), or freeze what is new"
            )
        start = base[name].detach()
        if start.shape != parameter.shape:
            raise MismatchError(f"parameter {name!r}: {tuple(parameter.shape)}, in the base {tuple(start.shape)}")
        if start.data_ptr() == parameter.data_ptr() and start.numel():
            raise OptionError(
                f"the base's {name!r} shares memory with the model and changes with it; keep a copy, such as "
                "{k: v.clone() for k, v in model.state_dict().items()} before training"
            )
        wide = torch.promote_types(parameter.dtype, torch.float32)
        yield names, parameter.to(wide) - start.to(parameter.device, wide)


def _first(names: list[str], mapping: Tensors) -> str | None:
    return next((name for name in names if name in mapping), None)


def _sum_of_squares(tensors: list[Tensor]) -> Tensor:
    return torch.stack([t.to(torch.promote_types(t.dtype, torch.float32)).square().sum() for t in tensors]).sum()


def _check_second_derivative(gradients: list[Tensor]) -> None:
    """Raise OptionError where `backward` would meet an operation without a second derivative: its error names no cure.

    Autograd puts a node in the graph of the gradients that fails when it is run; fused attention leaves such nodes.
    """
    seen, waiting = set(), [gradient.grad_fn for gradient in gradients]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().endswith("NotImplemented"):
            raise OptionError(
                "an operation of the forward pass has no second derivative (fused attention, for instance: run the "
                "forward pass under torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))"
            )
        waiting += [parent for parent, _ in node.next_functions]
