"""A made-up zoo of LoRA adapters of Llama-2-7B: PEFT folders of random factors, bfloat16, partly shared.

The factors of every model are (own + shared)/√2, so that tasks overlap; singular values fall from 1 to 1/10.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, WIDTH, INNER, RANK, ALPHA = 32, 4096, 11008, 16, 32
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def make_zoo(folder: Path, models: int, rank: int = RANK, layers: int = LAYERS) -> None:
    """Write the adapters model_00, model_01, … to a folder; those that are there stay."""
    strengths = torch.logspace(0, -1, rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "target_modules": [m.split(".")[1] for m in SHAPES]}
    for model in range(models):
        path = folder / f"model_{model:02d}"
        if (path / "adapter_config.json").is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        own, shared = torch.Generator().manual_seed(1 + model), torch.Generator().manual_seed(0)
        tensors = {}
        for layer in range(layers):
            for module, (rows, columns) in SHAPES.items():
                name = f"base_model.model.model.layers.{layer}.{module}"
                for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                    values = torch.randn(shape, generator=own) + torch.randn(shape, generator=shared)
                    scale = strengths[:, None] if side == "A" else strengths.new_tensor(1e-3)
                    tensors[f"{name}.lora_{side}.weight"] = (values * scale / 2**0.5).bfloat16()
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(config))
