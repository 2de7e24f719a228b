"""Merges by singular vectors against their rules, written out with full SVDs in float64, on arrays and on tensors."""

import numpy as np
import pytest
import torch

import mergekern
from mergekern import METHODS
from mergekern.merging.matrices import ON_TORCH, Matrices
from tests.merging.zoos import drawn, fitting

SHAPES = [(24, 24), (60, 24), (24, 60), (7, 3), (1, 9)]
# Random masks depend on the bytes of the models.
MASKLESS = [name for name in METHODS if not name.startswith(("dare", "della"))]
WEIGHTS = [1.0, 0.5, 2.0, 1.5, 0.25, 3.0, 1.0, 0.75]


def svd(matrix):
    return np.linalg.svd(matrix, full_matrices=False)


def polar(matrix):
    left, values, right = svd(matrix)
    kept = values > 1e-7 * values.max(initial=0.0)
    return left[:, kept] @ right[kept]


def truncated(deltas):
    k = max(1, min(deltas[0].shape) // len(deltas))
    return [(left[:, :k], values[:k], right[:k]) for left, values, right in map(svd, deltas)]


def tsv(deltas, weights):
    lefts, values, rights = zip(*truncated(deltas), strict=True)
    spectrum = np.concatenate([weight * own for weight, own in zip(weights, values, strict=True)])
    return polar(np.hstack(lefts)) * spectrum @ polar(np.vstack(rights))


def isotropic(deltas, weights):
    total = sum(w * (left * own) @ right for w, (left, own, right) in zip(weights, truncated(deltas), strict=True))
    return svd(total)[1].mean() * polar(total)


def isotropic_cts(deltas, weights):
    rank, models = min(deltas[0].shape), len(deltas)
    own = min(round((rank - int(0.8 * rank)) / models), rank // models)
    common = rank - own * models
    left, values, right = svd(sum(weight * delta for weight, delta in zip(weights, deltas, strict=True)))
    parts = [(left[:, :common], values[:common], right[:common])]
    for weight, delta in zip(weights, deltas, strict=True):
        rest = svd(weight * (delta - left[:, :common] @ (left[:, :common].T @ delta)))
        parts.append((rest[0][:, :own], rest[1][:own], rest[2][:own]))
    lefts, spectra, rights = zip(*parts, strict=True)
    return np.concatenate(spectra).sum() / rank * polar(np.hstack(lefts)) @ polar(np.vstack(rights))


RULES = {"tsv": tsv, "isotropic": isotropic, "isotropic_cts": isotropic_cts}


def draw(shape, models):
    generator = np.random.default_rng(models)
    return [generator.standard_normal(shape) for _ in range(models)]


@pytest.mark.parametrize("models", [2, 3, 5, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", RULES)
def test_merge(method, shape, models):
    deltas, base = draw(shape, models), np.zeros(shape)
    tuned = {f"m{i}": {"w": torch.from_numpy(delta)} for i, delta in enumerate(deltas)}
    weights = WEIGHTS[:models]
    found = mergekern.merge(tuned, {"w": torch.from_numpy(base)}, method, weights=weights)["w"]
    np.testing.assert_allclose(found, RULES[method](deltas, weights), atol=1e-7)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", RULES)
def test_rules_on_tensors(method, shape, models):
    deltas, chosen = draw(shape, models), METHODS[method]
    tensors = Matrices([torch.from_numpy(delta) for delta in deltas], ON_TORCH)
    found = chosen.matrix(tensors, WEIGHTS[:models], **chosen.defaults)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, chosen.matrix(Matrices(deltas), WEIGHTS[:models], **chosen.defaults), atol=1e-7)


@pytest.mark.parametrize("method", RULES)
def test_zeros_on_tensors(method):
    chosen = METHODS[method]
    zeros = Matrices([torch.zeros(6, 4, dtype=torch.float64)] * 2, ON_TORCH)
    assert not chosen.matrix(zeros, [1.0, 1.0], **chosen.defaults).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", MASKLESS)
def test_the_storage_dtype_rounds_once(method, dtype):
    base, tuned = drawn(fitting(method, 3), {"w": (40, 30), "b": (500,)}, dtype, scale=0.1)
    found = mergekern.merge(tuned, base, method)
    wide = {name: {n: tensor.double() for n, tensor in model.items()} for name, model in tuned.items()}
    exact = mergekern.merge(wide, {name: tensor.double() for name, tensor in base.items()}, method)
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[name].float().to(dtype)), name
