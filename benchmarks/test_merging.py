"""Merges of files in the page cache, beside copying the bytes; of one matrix, beside plain SVDs; each checked first."""

import numpy as np
import pytest
import torch

import mergekern
from benchmarks import merge_baseline
from benchmarks.counts import Counts
from mergekern import METHODS
from mergekern.kernels import lapack
from mergekern.kernels.trim.on_cpu import kth_largest
from mergekern.merging.matrices import Matrices

THREADS = torch.get_num_threads()
MATRICES = [(768, 768), (3072, 768)]
BY_SINGULAR_VECTORS = ["tsv", "isotropic", "isotropic_cts"]


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def file_bytes(zoo, models):
    return (models + 2) * zoo.base_path.stat().st_size


@pytest.mark.parametrize(("method", "models"), [*((m, 2) for m in METHODS), ("ties", 8)])
def test_merge_of_files(benchmark, describe, vit_b16, tmp_path, method, models):
    describe(
        f"merge/{method}/{vit_b16.name}x{models}", Counts(file_bytes(vit_b16, models), 0), group=f"{models} models"
    )
    options = {"output": tmp_path / "out.safetensors", "overwrite": True}
    arguments = (vit_b16.first(models), vit_b16.base_path, method)
    benchmark.pedantic(mergekern.merge, args=arguments, kwargs=options, rounds=1, warmup_rounds=1)


@pytest.mark.parametrize("models", [2])
def test_copy_of_the_bytes(benchmark, describe, vit_b16, tmp_path, models):
    """Reads every input, and writes one of them to disk."""

    def copy():
        for path in vit_b16.first(models).values():
            path.read_bytes()
        with (tmp_path / "copy").open("wb") as file:
            file.write(vit_b16.base_path.read_bytes())
            file.flush()

    describe(f"merge/copy/{vit_b16.name}x{models}", Counts(file_bytes(vit_b16, models), 0), group=f"{models} models")
    benchmark.pedantic(copy, rounds=2)


@pytest.mark.parametrize("shape", MATRICES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("implementation", ["", "/plain"])
@pytest.mark.parametrize("method", BY_SINGULAR_VECTORS)
def test_merge_of_a_matrix(benchmark, describe, method, implementation, shape):
    """A pair; ours one matrix on each thread, as a run does it, the plain one on all threads."""
    deltas = [draw(shape, seed) for seed in range(2)]
    matrices, chosen = Matrices([delta.double().numpy() for delta in deltas]), METHODS[method]
    plain = getattr(merge_baseline, method)

    def ours():
        assert chosen.matrix is not None
        return chosen.matrix(matrices, [1.0, 1.0], **chosen.defaults)

    case = f"merge/{method}/{shape[0]}x{shape[1]}"
    counts = Counts(3 * 8 * shape[0] * shape[1], 0)
    if implementation:
        describe(case + implementation, counts, group=case)
        np.testing.assert_allclose(ours(), plain(deltas), atol=1e-2)
        benchmark.pedantic(plain, args=(deltas,), rounds=2)
        return
    describe(case, counts, group=case, per=THREADS)
    with lapack.single_threaded_pool(THREADS) as pool:
        benchmark.pedantic(lambda: list(pool.map(lambda _: ours(), range(THREADS))), rounds=2)


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
