"""Make checkpoints of CLIP ViT-B/16 shape (86 M parameters) to measure on.

Each task vector is a low-rank part that all models share, a low-rank part of its own, and noise, as fine-tuned
weights have: matrices are of full rank with a decaying head. Deterministic for a seed on one machine.

    python benchmarks/vit_zoo.py FOLDER --models 20
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from safetensors.torch import save_file

WIDTH, DEPTH, PATCH, TOKENS, OUTPUT = 768, 12, 16, 197, 512
SHARED_RANK, OWN_RANK = 16, 32


def vit_shapes(width: int = WIDTH, depth: int = DEPTH) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a CLIP vision transformer, in file order.

    >>> shapes = vit_shapes()
    >>> sum(torch.Size(shape).numel() for shape in shapes.values()) // 10**6
    86
    """
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (TOKENS, width),
        "proj": (width, OUTPUT),
        "conv1.weight": (width, 3, PATCH, PATCH),
        "ln_pre.weight": (width,),
        "ln_pre.bias": (width,),
    }
    for block in range(depth):
        prefix = f"transformer.resblocks.{block}"
        for name, shape in {
            "ln_1": (width,),
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "ln_2": (width,),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }.items():
            separator = "_" if name == "attn.in_proj" else "."
            shapes[f"{prefix}.{name}{separator}weight"] = shape
            shapes[f"{prefix}.{name}{separator}bias"] = shape[:1]
    return shapes | {"ln_post.weight": (width,), "ln_post.bias": (width,)}


def make_model(shapes: dict[str, tuple[int, ...]], model: int | None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the base (model None) or a tuned checkpoint, float32."""
    out = {}
    for index, (name, shape) in enumerate(shapes.items()):
        base = 0.02 * torch.randn(shape, generator=_generator(seed, index, 0))
        if model is None:
            out[name] = base
            continue
        own = _generator(seed, index, 2 + model)
        delta = 0.3 * torch.randn(shape, generator=own)
        if len(shape) == 2:
            delta += 0.8 * _low_rank(shape, SHARED_RANK, _generator(seed, index, 1)) + _low_rank(shape, OWN_RANK, own)
        out[name] = base + 2e-4 * (1 + model / 20) * delta
    return out


def _generator(seed: int, index: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1000 + index) * 10000 + stream)


def _low_rank(shape: tuple[int, ...], rank: int, generator: torch.Generator) -> torch.Tensor:
    strengths = torch.logspace(0, -1, rank)
    left = torch.randn(shape[0], rank, generator=generator) * strengths
    return left @ torch.randn(rank, shape[1], generator=generator) / rank**0.5


def make_zoo(folder: Path, models: int, width: int = WIDTH, depth: int = DEPTH, dtype: str = "float32") -> None:
    """Write base.safetensors and model_00.safetensors, … to a folder; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = vit_shapes(width, depth)
    for model in (None, *range(models)):
        path = folder / ("base.safetensors" if model is None else f"model_{model:02d}.safetensors")
        if not path.exists():
            tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in make_model(shapes, model).items()}
            save_file(tensors, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--models", default=20, show_default=True)
@click.option("--width", default=WIDTH, show_default=True)
@click.option("--depth", default=DEPTH, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
def main(folder: Path, models: int, width: int, depth: int, dtype: str) -> None:
    """Write a base and tuned checkpoints of ViT shape to FOLDER."""
    make_zoo(folder, models, width, depth, dtype)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    click.echo(f"{folder}: {models} models and a base, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
