"""Make checkpoints of TinyLlama's shapes (1.1 G parameters with all 22 layers, bfloat16) to measure on.

Deterministic on one machine. Each tensor of a model is the base with noise of a fiftieth of its size, rounded to
bfloat16, as fine-tunes in bfloat16 are: task vectors lie on the grid of the base's exponents, and many elements of them
are equal, or zero. With `--directions`, matrices also change along so many directions of power-law strength, beside the
noise, as those of fine-tunes do.

    python benchmarks/llama_zoo.py FOLDER --models 3 --layers 6
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from safetensors.torch import save_file

WIDTH, INNER, LAYERS, TOKENS, KEYS = 2048, 5632, 22, 32_000, 256


def llama_shapes(layers: int = LAYERS, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    """Return the tensors, in file order; a narrower width shrinks all of them.

    >>> sum(torch.Size(shape).numel() for shape in llama_shapes().values()) // 10**6
    1100
    """
    inner, tokens, keys = (size * width // WIDTH for size in (INNER, TOKENS, KEYS))
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(["lm_head.weight", "model.embed_tokens.weight"], (tokens, width))
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, shape in {
            "input_layernorm": (width,),
            "mlp.down_proj": (width, inner),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "post_attention_layernorm": (width,),
            "self_attn.k_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "self_attn.q_proj": (width, width),
            "self_attn.v_proj": (keys, width),
        }.items():
            shapes[f"{prefix}.{name}.weight"] = shape
    return shapes | {"model.norm.weight": (width,)}


def make_model(
    shapes: dict[str, tuple[int, ...]], model: int | None, dtype: torch.dtype, directions: int = 0
) -> dict[str, torch.Tensor]:
    """Return the base (model None) or a tuned checkpoint."""
    out = {}
    for index, (name, shape) in enumerate(shapes.items()):
        values = 0.02 * torch.randn(shape, generator=_generator(index, 0))
        if model is not None:
            own = _generator(index, 1 + model)
            values += 4e-4 * torch.randn(shape, generator=own)
            if directions and len(shape) == 2:
                strengths = 0.04 * torch.arange(1, directions + 1) ** -0.7 / directions
                left, right = (torch.randn(size, directions, generator=own) for size in shape)
                values += (left * strengths) @ right.T
        out[name] = values.to(dtype)
    return out


def _generator(index: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(index * 1000 + stream)


def make_zoo(
    folder: Path, models: int, layers: int = LAYERS, width: int = WIDTH, dtype: str = "bfloat16", directions: int = 0
) -> None:
    """Write base.safetensors and model_00.safetensors, … to a folder; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in (None, *range(models)):
        path = folder / ("base.safetensors" if model is None else f"model_{model:02d}.safetensors")
        if not path.exists():
            tensors = make_model(llama_shapes(layers, width), model, getattr(torch, dtype), directions)
            save_file(tensors, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--models", default=3, show_default=True)
@click.option("--layers", default=LAYERS, show_default=True)
@click.option("--width", default=WIDTH, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="bfloat16", show_default=True)
@click.option("--directions", default=0, show_default=True)
def main(folder: Path, models: int, layers: int, width: int, dtype: str, directions: int) -> None:
    """Write a base and tuned checkpoints of Llama shape to FOLDER."""
    make_zoo(folder, models, layers, width, dtype, directions)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    click.echo(f"{folder}: {models} models and a base, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
