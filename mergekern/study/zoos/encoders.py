"""Small encoders of four kinds, from a batch of inputs to features (batch, dim).

`--model-fn mergekern.study.zoos.encoders:cnn` builds them for the commands of mergekern.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 8, "patch_size": 2, "dim": 64, "depth": 4, "heads": 4, "mlp_ratio": 4},
    "cnn": {"patch_size": 2, "dim": 64, "depth": 4, "mlp_ratio": 4},
    "mlp": {"image_size": 8, "dim": 96, "depth": 4, "mlp_ratio": 2},
    "text": {"vocabulary": 1000, "length": 48, "dim": 64, "depth": 2, "heads": 4, "mlp_ratio": 4},
}


def perceptron(dim: int, mlp_ratio: int) -> nn.Sequential:
    """Return a perceptron with one hidden layer, over the last dimension."""
    return nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))


class Attention(nn.Module):
    """Multi-head self-attention, from tokens (batch, tokens, dim) to tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Softmax cancels a bias of the keys, so fine-tuning would move it by rounding errors alone.
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(gathered.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised tokens (batch, tokens, dim) and added to them."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.mlp = perceptron(dim, mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(nn.Module):
    """From images (batch, 1, height, width) to the features of a class token."""

    def __init__(self, image_size: int, patch_size: int, dim: int, depth: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens)[:, 0])


class ConvolutionBlock(nn.Module):
    """As in ConvNeXt: a 3×3 convolution of each channel, then a perceptron over channels, on (batch, h, w, dim)."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = perceptron(dim, mlp_ratio)

    def forward(self, pixels: Tensor) -> Tensor:
        gathered = self.conv(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return pixels + self.mlp(self.norm(gathered))


class ConvolutionalNetwork(nn.Module):
    """From images (batch, 1, height, width) to the features of all places together."""

    def __init__(self, patch_size: int, dim: int, depth: int, mlp_ratio: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, dim, patch_size, stride=patch_size)
        self.blocks = nn.Sequential(*(ConvolutionBlock(dim, mlp_ratio) for _ in range(depth)))
        self.places = nn.Linear(16 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.places(self.blocks(self.stem(images).permute(0, 2, 3, 1)).flatten(1)))


class PerceptronBlock(nn.Module):
    """A perceptron on normalised features (batch, dim), added to them."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = perceptron(dim, mlp_ratio)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.mlp(self.norm(features))


class Perceptron(nn.Module):
    """From images (batch, 1, height, width) to features; every pixel is an input of its own."""

    def __init__(self, image_size: int, dim: int, depth: int, mlp_ratio: int) -> None:
        super().__init__()
        self.embed = nn.Linear(image_size**2, dim)
        self.blocks = nn.Sequential(*(PerceptronBlock(dim, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(images.flatten(1))))


class TextTransformer(nn.Module):
    """From token ids (batch, length) to the mean features of the tokens."""

    def __init__(self, vocabulary: int, length: int, dim: int, depth: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.token_embed = nn.Embedding(vocabulary, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, length, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.blocks(self.token_embed(ids) + self.pos_embed).mean(dim=1))


CLASSES: dict[str, Callable[..., nn.Module]] = {
    "vit": VisionTransformer,
    "cnn": ConvolutionalNetwork,
    "mlp": Perceptron,
    "text": TextTransformer,
}


def build(kind: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a new encoder of a kind, for a state dict of a zoo to be loaded into.

    >>> {kind: sum(p.numel() for p in build(kind).parameters()) for kind in CLASSES}
    {'vit': 200768, 'cnn': 201472, 'mlp': 155808, 'text': 166784}
    """
    return CLASSES[kind](**(CONFIGS[kind] if config is None else config))


def vit() -> nn.Module:
    """Return a vision transformer."""
    return build("vit")


def cnn() -> nn.Module:
    """Return a convolutional network."""
    return build("cnn")


def mlp() -> nn.Module:
    """Return a perceptron."""
    return build("mlp")


def text() -> nn.Module:
    """Return a text transformer."""
    return build("text")


def initialise(model: nn.Module, generator: Generator) -> None:
    """Draw the weights of a new model from the generator, instead of torch's global one."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:
            # Class token, positions and words as large as patches: small ones take long to be told apart.
            std = 0.5 if parameter.dim() == 3 or name == "token_embed.weight" else parameter[0].numel() ** -0.5
            nn.init.normal_(parameter, std=std, generator=generator)
