"""Make checkpoints of TinyLlama's shapes (1.1 B parameters in 22 layers, bfloat16) to measure on.

Each task matrix has 200 directions of power-law strength, and noise. Deterministic for a seed on one machine.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, WIDTH, INNER, KEYS, TOKENS = 22, 2048, 5632, 256, 32_000
DIRECTIONS = 200


def llama_shapes(layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Return the tensors of TinyLlama with so many layers, in file order.

    >>> sum(torch.Size(shape).numel() for shape in llama_shapes().values()) // 10**6
    1100
    """
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (KEYS, WIDTH),
            "self_attn.v_proj": (KEYS, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER),
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return {**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (TOKENS, WIDTH)}


def make_zoo(folder: Path, models: int, layers: int = LAYERS) -> None:
    """Write base.safetensors and model_0.safetensors, … to a folder; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in range(-1, models):
        path = folder / ("base.safetensors" if model < 0 else f"model_{model}.safetensors")
        if not path.exists():
            tensors = {
                name: _tensor(shape, 1000 * index, model)
                for index, (name, shape) in enumerate(llama_shapes(layers).items())
            }
            save_file(tensors, path)


def _tensor(shape: tuple[int, ...], seed: int, model: int) -> torch.Tensor:
    """Return a tensor of the base (model −1) or of a tuned checkpoint."""
    base = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if model < 0:
        return base.bfloat16()
    own = torch.Generator().manual_seed(seed + 1 + model)
    delta = 2e-4 * torch.randn(shape, generator=own)
    if len(shape) == 2:
        strengths = torch.arange(1, DIRECTIONS + 1) ** -0.7 / DIRECTIONS
        left, right = (torch.randn(size, DIRECTIONS, generator=own) for size in shape)
        delta += 0.02 * (left * strengths) @ right.T
    return (base.bfloat16() + delta).bfloat16()
