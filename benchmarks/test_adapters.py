"""All metrics of LoRA adapters of a 7B model, from their factors; checked first against the matrices they stand for."""

import numpy as np
import pytest
import torch

import mergekern
from benchmarks import counts
from benchmarks.conftest import ZOOS
from benchmarks.lora_zoo import LAYERS, RANK, SHAPES, make_zoo
from benchmarks.peak_memory import PeakMemory
from mergekern.checkpoints import open_checkpoint

MODELS = 50


@pytest.fixture(scope="session")
def adapters():
    """Paths of 50 adapters of rank 16, in the page cache: 4 GB."""
    folder = ZOOS / "lora_7b_r16"
    make_zoo(folder, MODELS)
    paths = {path.name: path for path in sorted(folder.iterdir())[:MODELS]}
    for path in paths.values():
        (path / "adapter_model.safetensors").read_bytes()
    return paths


def check(adapters):
    """Hold one matrix of two adapters to float64 SVDs of their products."""
    name = "model.layers.0.self_attn.q_proj.weight"
    deltas = []
    for path in list(adapters.values())[:2]:
        left, right, scale = open_checkpoint(path).factors(name)
        deltas.append((left.double() @ right.double()) * scale)
    pair = dict(list(adapters.items())[:2])
    statistics = mergekern.measure(pair)
    layer = next(layer for layer in statistics.layers if layer.name == name)
    expected = np.array([[torch.sum(a * b).item() for b in deltas] for a in deltas])
    np.testing.assert_allclose(layer.inner, expected, rtol=0, atol=1e-12 * np.diagonal(expected).max())
    tops = [torch.svd_lowrank(delta, RANK)[0][:, :10] for delta in deltas]
    assert layer.spectrum.left_top_overlap[0, 1] == pytest.approx(
        torch.sum((tops[0].T @ tops[1]) ** 2).item(), abs=1e-6
    )


def test_all_pairs(benchmark, describe, adapters):
    check(adapters)
    describe(f"compute_all/lora_7b_r{RANK}x{MODELS}/files", counts.adapters(SHAPES.values(), LAYERS, MODELS, RANK, 2))
    with PeakMemory() as memory:
        table = benchmark.pedantic(mergekern.compute_all, args=(adapters,), rounds=2, iterations=1)
    benchmark.extra_info["peak_memory"] = memory.bytes
    frame = table.to_pandas()
    assert len(frame) == MODELS * (MODELS - 1) // 2
    undetermined = frame.columns[frame.isna().any()]
    assert list(undetermined) == ["right_subspace_overlap_bottom_k", "interaction_matrix_overlap_bottom_k"]
