"""Merges of files in the page cache, beside copying the bytes, plain SVDs and mergekit; each checked first."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mergekern
from benchmarks import merge_baseline, mergekit_baseline
from benchmarks.counts import Counts
from benchmarks.peak_memory import PeakMemory
from mergekern import METHODS
from mergekern.kernels.polar import on_cpu as polar_on_cpu
from mergekern.kernels.polar import on_torch as polar_on_torch
from mergekern.kernels.trim.on_cpu import kth_largest
from mergekern.merging.matrices import Matrices

THREADS = torch.get_num_threads()
BY_SINGULAR_VECTORS = ["tsv", "isotropic", "isotropic_cts"]
# Tensors on which rules and their plain implementations are compared, in float64: ‖ours − plain‖ / ‖plain‖.
CHECKED = ["transformer.resblocks.0.attn.out_proj.weight", "transformer.resblocks.0.mlp.c_fc.weight"]
AGREES = 1e-6


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def file_counts(zoo, models):
    return Counts((models + 2) * zoo.base_path.stat().st_size, 0)


@pytest.fixture
def out(tmp_path):
    """Path of a result, which is removed: a run makes many."""
    path = tmp_path / "out.safetensors"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(("method", "models"), [*((m, 2) for m in METHODS), ("ties", 8)])
def test_merge_of_files(benchmark, describe, vit_b16, out, method, models):
    describe(f"merge/{method}/{vit_b16.name}x{models}", file_counts(vit_b16, models), group=f"{models} models")
    arguments = (vit_b16.first(models), vit_b16.base_path, method)
    options = {"output": out, "overwrite": True}
    rounds = 1 if method in BY_SINGULAR_VECTORS else 3
    benchmark.pedantic(mergekern.merge, args=arguments, kwargs=options, rounds=rounds, warmup_rounds=rounds > 1)


@pytest.mark.parametrize("models", [2])
def test_copy_of_the_bytes(benchmark, describe, vit_b16, out, models):
    """Reads every input, and writes one of them to disk."""

    def copy():
        for path in vit_b16.first(models).values():
            path.read_bytes()
        with out.open("wb") as file:
            file.write(vit_b16.base_path.read_bytes())
            file.flush()
            os.fsync(file.fileno())

    describe(f"merge/copy/{vit_b16.name}x{models}", file_counts(vit_b16, models), group=f"{models} models")
    benchmark.pedantic(copy, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("method", BY_SINGULAR_VECTORS)
def test_plain_merge_of_files(benchmark, describe, vit_b16, out, method):
    describe(f"merge/{method}/{vit_b16.name}x2/plain", file_counts(vit_b16, 2), group="2 models")
    models = list(vit_b16.first(2).values())
    chosen, tuned = METHODS[method], [load_file(path) for path in models]
    for name in CHECKED:
        deltas = [model[name].double() - vit_b16.base[name].double() for model in tuned]
        plain = getattr(merge_baseline, method)(deltas).numpy()
        ours = chosen.matrix(Matrices([delta.numpy() for delta in deltas]), [1.0, 1.0], **chosen.defaults)
        assert np.linalg.norm(ours - plain) < AGREES * np.linalg.norm(plain), name
    benchmark.pedantic(merge_baseline.merge, args=(models, vit_b16.base_path, method, out), rounds=1)


@pytest.mark.parametrize("models", [2, 8])
@pytest.mark.parametrize("program", ["", "/mergekit"])
def test_command(benchmark, describe, vit_b16, tmp_path, out, models, program):
    """From the start of a process to its end."""
    if program and mergekit_baseline.command() is None:
        pytest.skip(
            f"{mergekit_baseline.VARIABLE} names no environment with mergekit; see benchmarks/mergekit_baseline.py"
        )
    describe(f"merge/command/ties/{vit_b16.name}x{models}{program}", file_counts(vit_b16, models), f"{models} models")
    paths = list(vit_b16.first(models).values())

    def ours():
        call = [sys.executable, "-c", "from mergekern.cli import main; main()", "merge", *map(str, paths)]
        options = ["--base", str(vit_b16.base_path), "--method", "ties", "--out", str(out), "--overwrite"]
        subprocess.run([*call, *options], check=True, capture_output=True)

    def theirs():
        mergekit_baseline.merge(paths, vit_b16.base_path, "ties", tmp_path / "mergekit")

    benchmark.pedantic(theirs if program else ours, rounds=1)
    if program:
        ours()
        merged = load_file(tmp_path / "mergekit" / "model.safetensors")
        for name, tensor in load_file(out).items():
            differs = (tensor - merged[name]).abs() > 1e-6
            assert differs.double().mean() < 1e-3, name  # where it breaks a tie, or takes a sign for zero, otherwise


@pytest.mark.parametrize("method", ["ties", "tsv", "isotropic_cts"])
def test_memory_of_eight(benchmark, describe, vit_b16, out, method):
    describe(f"merge/memory/{method}/{vit_b16.name}x8", file_counts(vit_b16, 8))
    with PeakMemory() as memory:
        arguments, options = (vit_b16.first(8), vit_b16.base_path, method), {"output": out, "overwrite": True}
        benchmark.pedantic(mergekern.merge, args=arguments, kwargs=options, rounds=1)
    benchmark.extra_info["peak_memory"] = memory.bytes
    assert memory.bytes < 1.5e9


@pytest.mark.parametrize("shape", [(768, 768), (3072, 768)], ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("implementation", ["", "/products", "/svd"])
def test_polar(benchmark, describe, implementation, shape):
    """One matrix on one thread of BLAS by eigenvectors, on all threads by products alone and by an SVD; float64."""
    matrix = draw(shape).double()
    case = f"kernel/polar/{shape[0]}x{shape[1]}"
    describe(case + implementation, Counts(2 * 8 * shape[0] * shape[1], 0), group=case)
    run = {
        "": lambda: polar_on_cpu.polar(matrix.numpy()),
        "/products": lambda: polar_on_torch.polar(matrix).numpy(),
        "/svd": lambda: merge_baseline.polar(matrix).numpy(),
    }[implementation]
    np.testing.assert_allclose(run(), merge_baseline.polar(matrix).numpy(), atol=1e-8)
    benchmark.pedantic(run, rounds=2)


@pytest.mark.parametrize("implementation", ["", "/torch"])
def test_trim(benchmark, describe, implementation):
    count = 10**8
    values, k = draw(count), 2 * 10**7
    describe(f"kernel/trim/{count}{implementation}", Counts(4 * count, 0), group="trim")
    if implementation:
        benchmark.pedantic(lambda: torch.kthvalue(values.abs(), count - k + 1), rounds=1)
    else:
        found = benchmark.pedantic(kth_largest, args=(lambda: [(None, values)], count, k, THREADS), rounds=2)
        assert found == float(torch.kthvalue(values.abs(), count - k + 1).values)
