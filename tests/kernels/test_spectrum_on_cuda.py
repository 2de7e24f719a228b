"""The CUDA C++ kernels and the factorisations made of them, against NumPy, in every order that threads may run in."""

import numpy as np
import pytest
import torch

from mergekern.kernels.spectrum import Spectrum, Stack, device_tridiagonal, on_cuda, reference
from tests.kernels.test_spectrum import SPECTRA, assert_spectrum, sine, with_values
from tests.support.device import DEVICE, ORDERS, TRITON, module
from tests.support.tolerances import SUBSPACE_SINE

pytestmark = TRITON

# The last module has so little shared memory that every kernel works in global memory.
MODULES = [
    *(pytest.param(dict(order=order), id=order) for order in ORDERS),
    pytest.param(dict(shared_limit=3000), id="global memory"),
]
modules = pytest.mark.parametrize("options", MODULES)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE)


def poisoned(*shape, dtype=torch.float64):
    """Return memory filled with a value that shows which elements are not written."""
    return torch.full(shape, np.nan if dtype.is_floating_point else -1, dtype=dtype, device=DEVICE)


def shared(module, count):
    """Return the bytes of shared memory, and whether the kernel uses them."""
    return (8 * count, 1) if 8 * count <= module.shared_limit else (0, 0)


@modules
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 5), (64, 16), (131, 7), (40, 33)])
def test_panels(options, rows, columns):
    cuda = module(**options)
    panels = draw(3, columns, rows)
    panels[1, columns // 2] = panels[1, 0]  # a dependent column
    panels[2] = 0
    before = panels.clone()
    triangle, factor = device_tridiagonal.factor_panels(panels, cuda)
    v = panels.mT
    q = torch.eye(rows, dtype=torch.float64, device=DEVICE) - v @ factor @ v.mT
    torch.testing.assert_close(q @ q.mT, torch.eye(rows, dtype=torch.float64, device=DEVICE).expand_as(q))
    whole = torch.zeros_like(v)
    whole[:, :columns] = triangle
    torch.testing.assert_close(q @ whole, before.mT)
    assert torch.equal(triangle, triangle.triu())
    assert torch.equal(factor, factor.triu())
    assert torch.equal(v, v.tril())


@modules
@pytest.mark.parametrize("size", [1, 2, 16, 35])
def test_cholesky_inverses(options, size):
    cuda = module(**options)
    root = draw(2, size, size + 3)
    grams = root @ root.mT
    inverses = poisoned(2, size, size)
    room, in_shared = shared(cuda, 2 * size * size)
    cuda.launch("cholesky_inverses", (2, 1), 256, [grams.clone(), inverses, size, in_shared], room)
    expected = torch.linalg.inv(torch.linalg.cholesky(grams, upper=True))
    torch.testing.assert_close(inverses, expected, rtol=1e-9, atol=1e-9)


def test_a_gram_matrix_that_is_not_positive_definite_gives_nan():
    gram = torch.ones(1, 3, 3, dtype=torch.float64, device=DEVICE)
    gram[0, 2, 2] = -1
    inverse = poisoned(1, 3, 3)
    module().launch("cholesky_inverses", (1, 1), 256, [gram, inverse, 3, 0])
    assert inverse.isnan().any()


@modules
@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_jacobi(options, size):
    cuda = module(**options)
    # Columns of very different lengths: the small values are as good as the large ones.
    matrices = draw(2, size, size) * torch.logspace(0, -12, size, dtype=torch.float64, device=DEVICE)[:, None]
    columns, rotations, values = matrices.clone(), poisoned(2, size, size), poisoned(2, size)
    room, in_shared = shared(cuda, 32 + 2 * size * size)
    cuda.launch(
        "jacobi_svd", (2, 1), 256, [columns, rotations, values, size, on_cuda.JACOBI_SWEEPS, in_shared], room or 256
    )
    torch.testing.assert_close(rotations @ matrices, columns, rtol=1e-12, atol=1e-13)
    identity = torch.eye(size, dtype=torch.float64, device=DEVICE).expand(2, -1, -1)
    torch.testing.assert_close(rotations @ rotations.mT, identity)
    unit = columns / values[:, :, None]
    torch.testing.assert_close(unit @ unit.mT, identity, atol=1e-13, rtol=0)


def test_jacobi_that_does_not_converge_gives_nan():
    columns, rotations, values = draw(1, 9, 9), poisoned(1, 9, 9), torch.zeros(1, 9, device=DEVICE).double()
    module().launch("jacobi_svd", (1, 1), 64, [columns, rotations, values, 9, 1, 0], 256)
    assert values.isnan().all()


def symmetric(size, seed=0):
    matrix = draw(2, size, size, seed=seed)
    return matrix + matrix.mT


@modules
@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 18, 33, 70])
def test_tridiagonal_form(options, size):
    matrices = symmetric(size)
    padded = torch.zeros(2, -(-size // 16) * 16, -(-size // 16) * 16, dtype=torch.float64, device=DEVICE)
    padded[:, :size, :size] = matrices
    form = device_tridiagonal.DeviceTridiagonal(padded, size, module(**options))
    expected = torch.linalg.eigvalsh(matrices.cpu())
    values = form.values(torch.arange(size, device=DEVICE)).cpu()
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-13 * size)
    torch.testing.assert_close(form.frobenius().cpu(), torch.linalg.matrix_norm(matrices.cpu()))
    middle = expected[:, size // 2] - 1e-9
    assert form.count_below(middle.to(DEVICE)).tolist() == [size // 2] * 2
    vectors = form.vectors(form.values(torch.arange(min(size, 9), device=DEVICE))).cpu()
    shared_space = vectors.mT @ vectors
    torch.testing.assert_close(shared_space, torch.eye(len(shared_space[0])).double().expand_as(shared_space))
    residual = matrices.cpu() @ vectors - vectors * values[:, None, : min(size, 9)]
    assert residual.abs().max() < 1e-12 * size


def test_every_order_of_threads_gives_the_same_bits():
    stacks = [stack((50, 37), ["clusters", "linear"]), stack((37, 90), ["condition 1e5"])]
    found = [on_cuda.spectra(stacks, 4, 20, module(**option.values[0])) for option in MODULES]
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Recording:
    """A module that keeps what every kernel left in its tensors."""

    def __init__(self, **options):
        self._module, self.left = module(**options), []
        self.shared_limit = self._module.shared_limit

    def launch(self, name, grid, threads, arguments, shared_bytes=0):
        self._module.launch(name, grid, threads, arguments, shared_bytes)
        self.left += [(name, tensor.clone()) for tensor in arguments if isinstance(tensor, torch.Tensor)]


def test_every_order_of_threads_leaves_the_same_bits_in_each_kernel(monkeypatch):
    """Bits are compared before convergence and rounding to float32 can hide a missing barrier."""
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    records = [Recording(order=order) for order in ORDERS]
    for record in records:
        on_cuda.spectra([stack((50, 37), ["clusters", "linear"])], 4, 20, record)
    for other in records[1:]:
        for (name, one), (_, another) in zip(records[0].left, other.left, strict=True):
            assert torch.equal(one, another), name


def stack(shape, spectra, dtype=torch.float64):
    matrices = [with_values(shape, SPECTRA[name](min(shape)), seed) for seed, name in enumerate(spectra)]
    return Stack(torch.zeros(shape, dtype=dtype, device=DEVICE), [m.to(DEVICE, dtype) for m in matrices])


def of_model(spectra, model):
    values, rank, *vectors = (part[model].cpu().numpy() for part in spectra[:5])
    return Spectrum(values, int(rank), *vectors)


def assert_good(found, stack, top_k, spectrum_k, **which):
    assert found.good.tolist() == [True] * len(stack.tuned)
    for model, tuned in enumerate(stack.tuned):
        expected = reference.spectrum(stack.base.cpu(), tuned.cpu(), top_k, spectrum_k)
        assert_spectrum(of_model(found, model), expected, **which)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (2, 2), (6, 48), (48, 6), (40, 33), (33, 70), (64, 64)], ids=str
)
def test_agrees_with_oracle(shape):
    some = stack(shape, SPECTRA)
    assert_good(on_cuda.spectra([some], 4, 100, module())[0], some, 4, 100)


@pytest.mark.parametrize("shape", [(200, 200), (70, 300)], ids=str)
def test_noise_with_a_soft_edge(shape):
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal(shape)).to(DEVICE)
    some = Stack(torch.zeros_like(noise), [noise])
    assert_good(on_cuda.spectra([some], 10, 100, module())[0], some, 10, 100)


def test_the_bottom_beyond_what_a_gram_matrix_resolves(monkeypatch):
    matrix = with_values((210, 200), np.geomspace(1, 1e-6, 200)).to(DEVICE)
    some = Stack(torch.zeros_like(matrix), [matrix])
    assert_good(on_cuda.spectra([some], 10, 100, module())[0], some, 10, 100)
    monkeypatch.setattr(on_cuda, "WIDEN", 1)
    narrow = on_cuda.spectra([some], 10, 100, module())[0]
    expected = reference.spectrum(None, matrix.cpu())
    assert sine(narrow.right_bottom[0].cpu().numpy(), expected.right_bottom) > SUBSPACE_SINE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", [(36, 20), (20, 36)], ids=str)
def test_storage_dtypes(dtype, shape):
    base, *tuned = (draw(*shape, seed=seed).to(dtype) for seed in range(3))
    some = Stack(base, tuned)
    assert_good(on_cuda.spectra([some], 3, 100, module())[0], some, 3, 100)


@pytest.mark.parametrize(("shape", "rank"), [((30, 20), 2), ((20, 30), 2), ((30, 20), 12), ((25, 25), 24)], ids=str)
def test_rank_deficient(shape, rank):
    matrix = with_values(shape, np.linspace(1, 0.5, rank)).to(DEVICE)
    some = Stack(torch.zeros_like(matrix), [matrix])
    assert_good(on_cuda.spectra([some], 4, 100, module())[0], some, 4, 100, top=rank >= 4, bottom=False)


def entry(row, column):
    matrix = torch.zeros(24, 20, dtype=torch.float64)
    matrix[row, column] = 1
    return matrix


@pytest.mark.parametrize(
    "matrices",
    [
        pytest.param([with_values((20, 16), np.linspace(1, 0.5, rank), seed)
                      for rank in (1, 2, 3) for seed in range(20)], id="low rank"),
        pytest.param([with_values((40, 36), np.ones(36), seed) for seed in range(20)], id="equal values"),
        pytest.param([draw(40, 4, seed=seed).cpu().float() @ draw(4, 40, seed=seed + 99).cpu().float()
                      for seed in range(12)], id="products in float32"),
        pytest.param([torch.ones(24, 20), *(entry(row, row) for row in range(20))], id="ones and single entries"),
    ],
)  # fmt: skip
def test_directions_beyond_the_rank_are_orthonormal_whatever_the_rounding(matrices):
    """Inverse iteration cannot tell the vectors of equal values apart. One matrix in fifty once came out as NaN."""
    tuned = [matrix.to(DEVICE, torch.float64) for matrix in matrices]
    found = on_cuda.spectra([Stack(torch.zeros_like(tuned[0]), tuned)], 4, 100, module())[0]
    assert found.good.all()
    for vectors in found[2:5]:
        identity = torch.eye(4, device=DEVICE).expand(len(tuned), -1, -1)
        torch.testing.assert_close(vectors.mT @ vectors, identity, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(50, 30), (30, 50)], ids=str)
def test_rows_and_columns_of_zeros(shape):
    matrix = with_values(shape, np.linspace(1, 0.1, 30)).to(DEVICE)
    matrix[::3] = 0
    matrix[:, 1::4] = 0
    some = Stack(torch.zeros_like(matrix), [matrix])
    assert_good(on_cuda.spectra([some], 4, 100, module())[0], some, 4, 100, bottom=False)


def test_block_diagonal_with_repeated_values():
    matrix = torch.diag(torch.arange(20, 0, -1).double().repeat_interleave(2)).to(DEVICE)
    some = Stack(torch.zeros_like(matrix), [matrix])
    assert_good(on_cuda.spectra([some], 4, 100, module())[0], some, 4, 100)


@pytest.mark.parametrize(("top_k", "spectrum_k"), [(1, 1), (3, 1000), (30, 7), (100, 100)])
def test_sizes_asked_for(top_k, spectrum_k):
    some = stack((45, 30), ["linear"])
    assert_good(on_cuda.spectra([some], top_k, spectrum_k, module())[0], some, top_k, spectrum_k)


@pytest.mark.parametrize("scale", [1e-100, 3e-9, 7e80])
def test_scales(scale):
    some = stack((20, 12), ["linear"])
    found = on_cuda.spectra([Stack(some.base, [scale * some.tuned[0]])], 2, 100, module())[0]
    expected = reference.spectrum(None, some.tuned[0].cpu(), 2)
    assert found.good.tolist() == [True]
    np.testing.assert_allclose(found.values[0].cpu() / scale, expected.values, rtol=1e-13)


def test_zero_matrices_have_identity_vectors():
    some = stack((9, 6), ["linear", "linear"])
    some.tuned[1].zero_()
    found = on_cuda.spectra([some], 2, 100, module())[0]
    assert found.good.tolist() == [True, True]
    for a, b in zip(of_model(found, 1), reference.spectrum(None, torch.zeros(9, 6), 2), strict=True):
        assert np.array_equal(a, b)


def test_bits_do_not_depend_on_the_batch(monkeypatch):
    stacks = [stack((40, 24), ["linear", "clusters"]), stack((24, 60), ["power law"]), stack((24, 24), ["tiny"])]
    together = on_cuda.spectra(stacks, 3, 10, module())
    for some, found in zip(stacks, together, strict=True):
        (alone,) = on_cuda.spectra([some], 3, 10, module())
        for a, b in zip(found, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0 if DEVICE.type == "cpu" else 1e-6)


def test_differences_in_blocks(monkeypatch):
    some = stack((90, 24), ["linear", "condition 1e5"])
    monkeypatch.setattr(on_cuda, "DELTA_BLOCK", 700)
    assert_good(on_cuda.spectra([some], 3, 10, module())[0], some, 3, 10)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_marked_and_spoil_no_other_model(bad):
    some = stack((20, 12), ["linear", "linear", "power law"])
    some.tuned[1][3, 4] = bad
    found = on_cuda.spectra([some], 3, 10, module())[0]
    assert found.good.tolist() == [True, False, True]


class Damaged:
    """A module in which one kernel returns a wrong result for the second matrix."""

    def __init__(self, kernel, argument):
        self._module, self._kernel, self._argument = module(), kernel, argument
        self.shared_limit = self._module.shared_limit

    def launch(self, name, grid, threads, arguments, shared_bytes=0):
        self._module.launch(name, grid, threads, arguments, shared_bytes)
        if name == self._kernel:
            item = arguments[self._argument][1]
            item += 1e-6 * item.abs().amax()


@pytest.mark.parametrize(
    ("kernel", "argument"),
    [
        ("factor_panels", 0),
        ("factor_panels", 1),
        ("factor_panels", 2),
        ("chase", 2),
        ("chase", 3),
        ("chase", 4),
        ("chase", 5),
        ("tridiagonal_values", 5),
        ("undo_chase", 2),
        ("cholesky_inverses", 1),
        ("jacobi_svd", 0),
        ("jacobi_svd", 1),
    ],
)
def test_faults_are_found(kernel, argument):
    """A result that is off by a millionth is marked, and no other result is."""
    found = on_cuda.spectra([stack((40, 36), ["linear"] * 3)], 3, 10, Damaged(kernel, argument))[0]
    assert found.good.tolist() == [True, False, True]


def test_the_workspace_is_not_underestimated():
    if DEVICE.type != "cuda":
        pytest.skip("memory of a GPU is counted by torch")
    shape, models = (1024, 512), 24
    some = Stack(draw(*shape), [draw(*shape, seed=seed) for seed in range(models)])
    on_cuda.spectra([some], 10, 100, module())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    on_cuda.spectra([some], 10, 100, module())
    assert torch.cuda.max_memory_allocated() - before <= models * on_cuda.workspace(shape, 10)
