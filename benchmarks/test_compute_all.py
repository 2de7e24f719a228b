"""compute_all of files in the page cache, against the plain per-pair implementation; and how its time grows.

Every zoo is checked first: what compute_all gives for a corner of its first tensors must be what the plain
implementation gives in float64.
"""

import os

import pytest
import torch
from safetensors.torch import load_file

import mergekern
from benchmarks import counts
from benchmarks.vit_zoo import make_model, vit_shapes
from mergekern.kernels import native
from tests.reference.pairs import pair_metrics

# Rectangular, so that the bottom singular vectors are well determined.
CORNER = (slice(256), slice(192))
CORES = os.cpu_count() or 1


def check(base, first, second):
    names = list(base)[:8]
    base, first, second = ({name: m[name][CORNER[: m[name].dim()]] for name in names} for m in (base, first, second))
    found = mergekern.compute_all({"first": first, "second": second}, base).to_pandas().iloc[0]
    expected = pair_metrics(base, first, second, dtype=torch.float64)
    for name in expected:
        near = {"abs": 1e-4, "rel": 0} if mergekern.CATALOGUE[name].needs == "spectra" else {"rel": 1e-5, "abs": 0}
        assert found[name] == pytest.approx(expected[name], **near), name


def run(benchmark, base, models, rounds):
    """Check a zoo, which also warms up; time all metrics of it, and return the table."""
    first, second = (m if isinstance(m, dict) else load_file(m) for m in list(models.values())[:2])
    check(base if isinstance(base, dict) else load_file(base), first, second)
    table = benchmark.pedantic(mergekern.compute_all, args=(models, base), rounds=rounds, iterations=1)
    frame = table.to_pandas()
    assert len(frame) == len(models) * (len(models) - 1) // 2
    assert frame.notna().all(axis=None)
    return table


def test_all_pairs(benchmark, describe, vit_b16):
    models = len(vit_b16.models)
    describe(f"compute_all/{vit_b16.name}x{models}/files", counts.compute_all(vit_b16.base, models))
    run(benchmark, vit_b16.base_path, vit_b16.models, rounds=2)


def test_one_pair_by_the_baseline(benchmark, describe, vit_b16):
    describe(f"baseline_pair/{vit_b16.name}", counts.compute_all(vit_b16.base, 2))
    pair = [load_file(path) for path in vit_b16.first(2).values()]
    benchmark.pedantic(pair_metrics, args=(vit_b16.base, *pair), rounds=2, iterations=1)


@pytest.mark.parametrize("models", [2, 5, 10, 20, 40])
def test_growth_with_models(benchmark, describe, small_vit, models):
    describe(f"compute_all/{small_vit.name}x{models}/files", counts.compute_all(small_vit.base, models))
    run(benchmark, small_vit.base_path, small_vit.first(models), rounds=3)


def test_without_the_extension(benchmark, describe, small_vit, monkeypatch):
    monkeypatch.setattr(native, "extension", None)
    describe(f"compute_all/{small_vit.name}x5/files/numpy", counts.compute_all(small_vit.base, 5))
    table = run(benchmark, small_vit.base_path, small_vit.first(5), rounds=3)
    assert table.provenance["backend"] == "numpy"


@pytest.mark.parametrize("threads", sorted({*(2**i for i in range(CORES.bit_length())), CORES}))
def test_growth_with_threads(benchmark, describe, small_vit, threads):
    describe(f"compute_all/{small_vit.name}x5/files/threads_{threads}", counts.compute_all(small_vit.base, 5))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run(benchmark, small_vit.base_path, small_vit.first(5), rounds=3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("width", [256, 512, 1024, 2048, 4096])
def test_growth_with_width(benchmark, describe, width):
    """One transformer block of two models, in memory."""
    shapes = {name: shape for name, shape in vit_shapes(width, depth=1).items() if "resblocks" in name}
    base, *models = (make_model(shapes, model) for model in (None, 0, 1))
    describe(f"compute_all/block_w{width}x2/memory", counts.compute_all(base, 2))
    run(benchmark, base, dict(zip("ab", models, strict=True)), rounds=3 if width < 2048 else 1)
