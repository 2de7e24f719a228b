"""Times of the kernels at ViT-B/16 shapes, against plain torch and NumPy; each is checked before it is timed."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import counts
from mergekern.kernels import dispatch, lapack
from mergekern.kernels.gram import whole
from mergekern.kernels.interference import Triplets
from mergekern.kernels.interference import reference as interference_reference
from mergekern.kernels.overlap import reference as overlap_reference
from mergekern.kernels.randomized_spectrum import most_vectors
from mergekern.kernels.signs import reference as signs_reference
from mergekern.kernels.spectrum import reference as spectrum_reference

MODELS = 20
ELEMENTS = 3072 * 768
MATRICES = [(768, 768), (2304, 768), (3072, 768), (768, 3072)]
THREADS = torch.get_num_threads()
BEST, NUMPY = dispatch.backends()[0], dispatch.NUMPY
# By what follows the name of a case.
BACKENDS = {"": BEST, "/numpy": NUMPY} if BEST is not NUMPY else {"/numpy": NUMPY}


def draw(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_gram(blocks, threads=None):
    ((base, tuned),) = blocks()
    delta = torch.stack(tuned).double() - base.double()
    return delta @ delta.T


@pytest.fixture(scope="module")
def layer():
    """A 3072 × 768 tensor of a base and 20 models, flat."""
    return [draw(ELEMENTS, seed=seed) for seed in range(MODELS + 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", [*BACKENDS, "/torch"])
def test_gram(benchmark, describe, layer, implementation, dtype):
    base, *tuned = (tensor.to(dtype) for tensor in layer)
    gram = BACKENDS[implementation].gram if implementation in BACKENDS else plain_gram
    if implementation in BACKENDS:
        np.testing.assert_allclose(gram(whole(base, tuned), THREADS).inner, plain_gram(whole(base, tuned)), rtol=1e-10)
    case = f"kernel/gram/{MODELS}x3072x768/{str(dtype).removeprefix('torch.')}"
    describe(case + implementation, counts.gram(MODELS, ELEMENTS, dtype.itemsize), group=case)
    benchmark(gram, whole(base, tuned), THREADS)


@pytest.mark.parametrize("models", [2, 5, 10, 20, 40, 100, 200])
@pytest.mark.parametrize("implementation", ["", "/torch"])
def test_gram_growth(benchmark, describe, layer, models, implementation):
    """With the number of models, at the same total of bytes."""
    elements = sum(tensor.numel() for tensor in layer) // (models + 1)
    base, *tuned = torch.cat(layer)[: (models + 1) * elements].view(models + 1, elements)
    gram = plain_gram if implementation else BEST.gram
    if not implementation:
        np.testing.assert_allclose(gram(whole(base, tuned), THREADS).inner, plain_gram(whole(base, tuned)), rtol=1e-10)
    describe(f"kernel/gram/{models}x{elements}{implementation}", counts.gram(models, elements, 4), f"{models} models")
    benchmark(gram, whole(base, tuned), THREADS)


def test_gram_of_a_zoo(benchmark, describe, vit_b16):
    """Gram matrices of every tensor of 20 models, from mapped files."""
    models = [load_file(path) for path in vit_b16.models.values()]
    layers = [(base.flatten(), [m[name].flatten() for m in models]) for name, base in vit_b16.base.items()]
    base, tuned = layers[0]
    found, expected = BEST.gram(whole(base, tuned), THREADS).inner, plain_gram(whole(base, tuned))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    every = counts.gram(len(models), sum(base.numel() for base, _ in layers), layers[0][0].itemsize)
    describe(f"kernel/gram/{vit_b16.name}x{len(models)}", every)
    benchmark.pedantic(
        lambda: [BEST.gram(whole(base, tuned), THREADS) for base, tuned in layers],
        rounds=3,
        iterations=1,
        warmup_rounds=1,
    )


@pytest.mark.parametrize("shape", MATRICES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("implementation", BACKENDS)
def test_spectrum(benchmark, describe, shape, implementation):
    """One matrix on each thread, as a run does it; the time of one is that divided by the threads."""
    base, tuned = draw(shape), draw(shape, seed=1)
    case = f"kernel/spectrum/{shape[0]}x{shape[1]}"
    describe(case + implementation, counts.spectrum(shape, 4), group=case, per=THREADS)
    spectrum = BACKENDS[implementation].spectrum

    def blocks(axis, step):
        yield 0, base, tuned

    with lapack.single_threaded_pool(THREADS) as pool:

        def every_thread():
            return list(pool.map(lambda _: spectrum(blocks, shape, 10, 100), range(THREADS)))

        found, expected = every_thread()[0], spectrum_reference.spectrum(base, tuned)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-7)
        for name in ("left_top", "right_top", "right_bottom"):
            shared = np.linalg.norm(getattr(found, name).T @ getattr(expected, name)) ** 2
            assert shared == pytest.approx(10, abs=1e-4), name
        benchmark(every_thread)


def structured(shape):
    """Return a base and a model in bf16 whose task matrix has 200 directions of power-law strength, and noise."""
    rank = 200
    strengths = torch.arange(1, rank + 1) ** -0.7 / rank
    low = (draw((shape[0], rank), seed=2) * strengths) @ draw((rank, shape[1]), seed=3)
    base = 0.02 * draw(shape)
    return base.bfloat16(), (base + 0.02 * low + 2e-4 * draw(shape, seed=1)).bfloat16()


@pytest.mark.parametrize("shape", [(2048, 5632), (4096, 11008)], ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("implementation", ["exact", "randomized"])
def test_large_spectrum(benchmark, describe, shape, implementation):
    """One matrix on one thread: the ratio of the two is what svd="randomized" saves."""
    base, tuned = structured(shape)
    passes = []

    def blocks(axis, step):
        passes.append(step)
        for start in range(0, shape[axis], step):
            length = min(step, shape[axis] - start)
            yield start, base.narrow(axis, start, length), tuned.narrow(axis, start, length)

    with lapack.single_threaded_pool(1) as pool:

        def exact():
            return pool.submit(BEST.spectrum, blocks, shape, 10, 100).result()

        def randomized():
            return pool.submit(BEST.randomized_spectrum, blocks, shape, "w", 10, 100, 1e-3).result()

        case, count = f"kernel/spectrum/{shape[0]}x{shape[1]}/structured", counts.spectrum(shape, 2)
        if implementation == "randomized":
            expected = exact()
            passes.clear()
            found = randomized()
            assert (np.abs(found.values - expected.values) <= 2 * found.estimates.values).all()
            missed = 10 - np.linalg.norm(found.left_top.T @ expected.left_top) ** 2
            assert missed <= np.square(2 * found.estimates.vectors).sum() + 1e-5
            count = counts.randomized_spectrum(shape, 2, len(passes), most_vectors(len(passes)))
        describe(f"{case}/{implementation}", count, group=case)
        benchmark.pedantic(exact if implementation == "exact" else randomized, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("shape", MATRICES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("how", ["torch_svd_float32", "numpy_eigh_float64"])
def test_spectrum_by_libraries(benchmark, describe, shape, how):
    """One matrix at a time, on all threads."""
    base, tuned = draw(shape), draw(shape, seed=1)
    case = f"kernel/spectrum/{shape[0]}x{shape[1]}"
    describe(f"{case}/{how}", counts.spectrum(shape, 4), group=case)

    def svd():
        return torch.linalg.svd(tuned - base, full_matrices=False)

    def eigh():
        delta = tuned.double().numpy() - base.double().numpy()
        return np.linalg.eigh(delta @ delta.T if shape[0] < shape[1] else delta.T @ delta)

    benchmark(svd if how == "torch_svd_float32" else eigh)


def test_signs(benchmark, describe, layer):
    base, *tuned = layer
    few, thresholds = [tensor[:50_000] for tensor in layer], [1.0] * MODELS
    expected = signs_reference.signs(few[0], few[1:], thresholds)
    found = BEST.signs(whole(few[0], few[1:]), thresholds, THREADS, 0)
    np.testing.assert_array_equal(found.kept_opposite, expected.kept_opposite)
    np.testing.assert_allclose(found.absolute, expected.absolute, rtol=1e-10)
    describe(f"kernel/signs/{MODELS}x3072x768/float32", counts.signs(MODELS, ELEMENTS, 4))
    benchmark(BEST.signs, whole(base, tuned), thresholds, THREADS, 0)


def test_interference(benchmark, describe):
    rng = np.random.default_rng(0)
    left, right = (
        np.stack([np.linalg.qr(rng.standard_normal((size, 10)))[0] for _ in range(MODELS)]).astype(np.float32)
        for size in (3072, 768)
    )
    triplets = Triplets(rng.random((MODELS, 10)), left, right)
    np.testing.assert_allclose(BEST.interference(triplets), interference_reference.interference(triplets), atol=1e-4)
    describe(f"kernel/interference/{MODELS}x3072x768", counts.interference(MODELS, (3072, 768)))
    benchmark(BEST.interference, triplets)


def test_overlap(benchmark, describe):
    rng = np.random.default_rng(0)
    bases = np.stack([np.linalg.qr(rng.standard_normal((3072, 10)))[0] for _ in range(MODELS)]).astype(np.float32)
    np.testing.assert_allclose(BEST.overlap(bases), overlap_reference.overlap(bases), atol=1e-5)
    describe(f"kernel/overlap/{MODELS}x3072x10", counts.overlap(MODELS, 3072))
    benchmark(BEST.overlap, bases)
