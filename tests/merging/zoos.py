"""Zoos in memory that several tests of merging use."""

import torch

from mergekern import METHODS
from tests.golden.zoo import SPECS, make_zoo

SHAPES = {"a": (8, 6), "b": (6,), "c": (5, 6)}
BUFFERS = {"ids": torch.arange(7), "mask": torch.tensor([True, False]), "small": torch.tensor([3], dtype=torch.uint8)}


def fitting(method, models):
    """Return the number of models nearest to a wanted one that a method merges."""
    chosen = METHODS[method]
    return max(chosen.least, min(models, chosen.most or models))


def first(models, count):
    """Return the first of some models, a mapping."""
    return dict(list(models.items())[:count])


def mixed(models):
    """Return the base and some models of the golden zoo."""
    base, tuned = make_zoo(SPECS["mixed"])
    return base, {f"model_{index}": tuned[index] for index in models}


def drawn(models, shapes, dtype=torch.float32, scale=0.01, seed=0):
    """Return a base and models that differ from it by noise."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tuned = {
        f"model_{index}": {
            name: (tensor + scale * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in base.items()
        }
        for index in range(models)
    }
    return {name: tensor.to(dtype) for name, tensor in base.items()}, tuned


def assert_equal(found, expected):
    """Assert that two state dicts are equal, to the last bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
