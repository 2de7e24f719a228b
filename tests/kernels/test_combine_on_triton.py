import pytest
import torch

from mergekern.kernels.combine import CONSENSUS, Rule, Tally, reference
from tests.kernels.test_combine import DTYPES, MODELS, inputs, rule
from tests.support.device import DEVICE, TRITON, needs_gpu, there

on_triton = pytest.importorskip("mergekern.kernels.combine.on_triton", exc_type=ImportError)
pytestmark = [*TRITON, pytest.mark.usefixtures("poisoned_memory")]

# Below, at and above whole tiles.
SIZES = [1, 7, on_triton.TILE - 1, on_triton.TILE, 2 * on_triton.TILE + 5]


def run(base, tuned, chosen, dtype=torch.float64, start=0):
    out = torch.full((base.numel(),), float("nan"), dtype=dtype, device=DEVICE)
    tally = on_triton.combine(*there([base]), there(tuned), chosen, out, start)
    return out.cpu(), Tally(*tally.tolist())


def check(base, tuned, chosen, dtype=torch.float64, start=0):
    """Hold the result to the oracle, to the last bit."""
    expected, tally = reference.combine(base, tuned, chosen, start)
    found, counted = run(base, tuned, chosen, dtype, start)
    assert torch.equal(found, torch.from_numpy(expected).to(dtype))
    assert counted == tally


@pytest.mark.parametrize("consensus", CONSENSUS)
@pytest.mark.parametrize(("trimmed", "masked"), [(False, False), (True, False), (True, True)])
def test_bits(consensus, trimmed, masked):
    for size in SIZES:
        check(*inputs(size), rule(consensus, trimmed, masked), start=5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype):
    check(*inputs(1500, dtype), rule("elect", True, True), torch.float32)


def test_addresses_and_storage_that_differs():
    base, *tuned = (tensor[1:] for tensor in (inputs(1500)[0], *inputs(1500)[1]))  # loads of single elements
    check(base, tuned, rule("agree", True, False))
    check(base, [tuned[0], tuned[1].double(), tuned[2].bfloat16()], rule("mean", False, True))


def test_subnormal_weights_are_kept():
    base = torch.zeros(4)
    tuned = [torch.tensor([1e-45, -1e-39, 1e-38, 0.0]), torch.tensor([1e-45, 1e-40, 1e-38, 1e-45])]
    check(base, tuned, Rule("sum", (1.0, 1.0)), torch.float32)


def test_many_models():
    base, _ = inputs(70)
    tuned = [inputs(70)[1][model % MODELS] * (1 + model) for model in range(33)]
    for consensus in ("elect", "agree"):
        check(base, tuned, Rule(consensus, tuple(0.1 * (1 + model) for model in range(33)), share=0.1, needed=2))


@pytest.mark.parametrize("start", [(1 << 31) - 3, 1 << 33])
def test_masks_of_large_indices(start):
    check(*inputs(20), rule("mean", False, True), start=start)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes in NumPy, which warns
def test_counts():
    base = torch.zeros(4)
    tuned = [torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.tensor([-1.0, 1.0, 0.0, -1.0])]
    for majority in (1, -1):
        check(base, tuned, Rule("elect", (1.0, 1.0), majority=majority))
    tuned[0][2], tuned[1][3] = float("inf"), float("nan")
    for consensus in CONSENSUS:
        assert run(base, tuned, Rule(consensus, (1.0, 1.0)))[1].non_finite == 2
    assert run(base[:0], [t[:0] for t in tuned], Rule("elect", (1.0, 1.0)))[1] == Tally()


def test_refuses_what_it_cannot_merge():
    base, tuned = inputs(10)
    with pytest.raises(ValueError, match="one length"):
        run(base, [*tuned[:2], tuned[2][:9]], rule("sum", False, False))
    with pytest.raises(ValueError, match="float32 or float64"):
        run(base, tuned, rule("sum", False, False), torch.bfloat16)


@needs_gpu
def test_offsets_beyond_32_bits():
    count = (1 << 31) + 40
    base, tuned = (torch.zeros(count, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    tuned[-1] = 2.0
    out = torch.empty(count, device=DEVICE)
    on_triton.combine(base, [tuned], Rule("sum", (1.0,)), out)
    assert (out[-1].item(), out[:-1].abs().max().item()) == (2.0, 0.0)


@needs_gpu
def test_nothing_waits_for_the_device():
    base, *tuned = there([inputs(100_000)[0], *inputs(100_000)[1]])
    out = torch.empty(100_000, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_triton.combine(base, tuned, rule("elect", True, True), out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
