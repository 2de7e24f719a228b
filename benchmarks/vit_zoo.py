"""Make checkpoints of CLIP ViT-B/16 shape (86 M parameters) to measure on.

Each task vector is a low-rank part that all models share, a low-rank part of its own, and noise, as fine-tuned
weights have: matrices are of full rank with a decaying head. Deterministic for a seed on one machine.

    python benchmarks/vit_zoo.py FOLDER --models 20
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import nn

WIDTH, DEPTH, PATCH, TOKENS, OUTPUT = 768, 12, 16, 197, 512
HEAD_WIDTH, IMAGE = 64, 224
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


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised tokens (batch, tokens, width) and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class VisionTransformer(nn.Module):
    """The encoder that has the tensors of `vit_shapes`: images (batch, 3, 224, 224) to features (batch, 512).

    >>> with torch.device("meta"):
    ...     encoder = VisionTransformer(64, 1)
    >>> {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()} == vit_shapes(64, 1)
    True
    """

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(TOKENS, width))
        self.proj = nn.Parameter(torch.zeros(width, OUTPUT))
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        blocks = nn.Sequential(*(Block(width, width // HEAD_WIDTH) for _ in range(depth)))
        self.transformer = nn.ModuleDict({"resblocks": blocks})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        tokens = self.transformer["resblocks"](self.ln_pre(tokens + self.positional_embedding))
        return self.ln_post(tokens[:, 0]) @ self.proj


def make_tasks(models: Iterable[str], samples: int, classes: int = 10) -> dict[str, tuple]:
    """Return random images (samples, 3, 224, 224), labels and a head for each model.

    >>> make_tasks(["a"], 2)["a"][0].shape
    torch.Size([2, 3, 224, 224])
    """
    tasks = {}
    for index, name in enumerate(models):
        draw = torch.Generator().manual_seed(index)
        head = torch.randn(classes, OUTPUT, generator=draw), torch.zeros(classes)
        images = torch.randn(samples, 3, IMAGE, IMAGE, generator=draw)
        tasks[name] = (images, torch.randint(classes, (samples,), generator=draw), head)
    return tasks


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
