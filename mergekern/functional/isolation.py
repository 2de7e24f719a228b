"""Running models so that nothing around them reaches them, and nothing of them is left changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

# functional_call swaps the tensors of a module, which threads may share.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def undisturbed(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Evaluation mode, products in full precision, the same random numbers for every model; then all as it was.

    What a caller has set around it does not reach the models: autocast, inference mode, TF32. Dropout is off; a model
    that draws random numbers all the same draws the same ones in every run.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_full_precision(device))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
            # The other kernels of attention add up in any order.
            stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        try:
            for part, _ in modes:
                part.training = False
            yield
        finally:
            for part, mode in modes:
                part.training = mode


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Give products and convolutions of float32 their own precision, in an order that does not change."""
    backends: Any = torch.backends
    flags: list[tuple[Any, str, Any]] = []
    has_one_name = hasattr(backends, "fp32_precision")  # torch 2.9; earlier there is one flag for each library
    if device.type == "cuda":
        flags = [(backends.cudnn, "deterministic", True), (backends.cudnn, "benchmark", False)]
        if has_one_name:
            parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
            flags += [(part, "fp32_precision", "ieee") for part in parts]
        else:
            flags += [(part, "allow_tf32", False) for part in (backends.cuda.matmul, backends.cudnn)]
    elif has_one_name:
        parts = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
        # "none" is the default, which is full precision.
        flags = [(part, "fp32_precision", "ieee") for part in parts if part.fp32_precision != "none"]
    before = [getattr(part, name) for part, name, _ in flags]
    try:
        for part, name, value in flags:
            setattr(part, name, value)
        yield
    finally:
        for (part, name, _), value in zip(flags, before, strict=True):
            setattr(part, name, value)
