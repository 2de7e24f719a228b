"""Times of the kernels at ViT-B/16 shapes, against plain torch side by side; each is checked before it is timed.

python -m pytest benchmarks --benchmark-group-by=group
"""

import numpy as np
import pytest
import torch

from mergekern.kernels import lapack
from mergekern.kernels.gram import on_cpu as gram_on_cpu
from mergekern.kernels.gram import reference as gram_reference
from mergekern.kernels.overlap import on_cpu as overlap_on_cpu
from mergekern.kernels.overlap import reference as overlap_reference
from mergekern.kernels.spectrum import on_cpu as spectrum_on_cpu
from mergekern.kernels.spectrum import reference as spectrum_reference

MODELS = 20
MATRICES = [(768, 768), (2304, 768), (3072, 768), (768, 3072)]
THREADS = torch.get_num_threads()


def draw(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(scope="module")
def layer():
    """A 3072 × 768 tensor of a base and 20 models, flat."""
    return [draw(3072 * 768, seed=seed) for seed in range(MODELS + 1)]


@pytest.mark.parametrize("implementation", ["native", "numpy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gram(benchmark, layer, implementation, dtype):
    base, *tuned = (tensor.to(dtype) for tensor in layer)
    gram = getattr(gram_on_cpu, implementation)
    expected = gram_reference.gram(base[:9999], [t[:9999] for t in tuned]).inner
    np.testing.assert_allclose(gram(base[:9999], [t[:9999] for t in tuned], THREADS).inner, expected, atol=1e-8)
    benchmark.group = f"gram 20 × 3072×768 {dtype}"
    benchmark.extra_info["bytes"] = (MODELS + 1) * base.numel() * dtype.itemsize
    benchmark.extra_info["flops"] = MODELS * (MODELS + 1) * base.numel()
    benchmark(gram, base, tuned, THREADS)


def test_gram_by_torch(benchmark, layer):
    base, *tuned = layer
    benchmark.group = "gram 20 × 3072×768 torch.float32"

    def plain():
        delta = torch.stack(tuned).double() - base.double()
        return delta @ delta.T

    benchmark(plain)


@pytest.mark.parametrize("shape", MATRICES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("how", ["partial eigensolver", "float32 torch SVD"])
def test_spectrum(benchmark, shape, how):
    base, tuned = draw(shape), draw(shape, seed=1)
    benchmark.group = f"spectrum {shape[0]}×{shape[1]}"
    if how == "float32 torch SVD":
        benchmark.extra_info["matrices"] = THREADS
        benchmark(lambda: [torch.linalg.svd(tuned - base, full_matrices=False) for _ in range(THREADS)])
        return

    def blocks(axis, step):
        yield 0, base, tuned

    with lapack.single_threaded_pool(THREADS) as pool:

        def every_thread():
            """One matrix on each thread, as a run does it; divide by the threads for the time of one."""
            return list(pool.map(lambda _: spectrum_on_cpu.spectrum(blocks, shape), range(THREADS)))

        found, expected = every_thread()[0], spectrum_reference.spectrum(base, tuned)
        assert np.linalg.norm(found.right_bottom.T @ expected.right_bottom) ** 2 == pytest.approx(10, abs=1e-4)
        benchmark.extra_info["matrices"] = THREADS
        benchmark(every_thread)


def test_overlap(benchmark):
    rng = np.random.default_rng(0)
    bases = np.stack([np.linalg.qr(rng.standard_normal((3072, 10)))[0] for _ in range(MODELS)]).astype(np.float32)
    np.testing.assert_allclose(overlap_on_cpu.overlap(bases), overlap_reference.overlap(bases), atol=1e-5)
    benchmark.extra_info["flops"] = (MODELS * 10) ** 2 * 3072
    benchmark(overlap_on_cpu.overlap, bases)
