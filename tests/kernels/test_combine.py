"""`combine` against its oracle: the same bits from every implementation."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from mergekern.kernels import native
from mergekern.kernels.combine import CONSENSUS, Rule, Tally, on_cpu, reference
from mergekern.kernels.variation import on_cpu as variation
from tests.support.checkpoint_files import draw

IMPLEMENTATIONS = [on_cpu.numpy] + ([on_cpu.native] if on_cpu.combine is on_cpu.native else [])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
SIZES = [1, 7, 63, 127, 128, 129, 513, (1 << 17) + 3]
MODELS = 3


def rule(consensus, trimmed, masked):
    return Rule(
        consensus, (1.0, 0.7, 1.3), 0.3, (0.5, 1.0, 0.25) if trimmed else None, (1, 2**64 - 1, 77) if masked else None,
        (0.4, 0.1, 0.5) if trimmed else 0.4, -1, 0.4, 2, (2.0, 1.5, 1.75) if trimmed else None,
        (1.0, 0.5, -0.5) if masked else None, trimmed and masked, (0.3, -1.0, 2.0) if masked and not trimmed else None,
        (2.0, 0.5, 1.1) if trimmed else None, 0.8 if masked else 0.0, 0.2 if masked else 0.0,
    )  # fmt: skip


def inputs(size, dtype=torch.float32):
    base, *tuned = (draw(size, seed=seed).to(dtype) for seed in range(1 + MODELS))
    return base, tuned


def run(implementation, base, tuned, chosen, dtype=torch.float64, start=0, threads=1):
    out = torch.full((base.numel(),), float("nan"), dtype=dtype)
    return out, implementation(base, tuned, chosen, out, start, threads)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("consensus", CONSENSUS)
@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_bits(implementation, consensus, trimmed, masked):
    for size in SIZES:
        base, tuned = inputs(size)
        chosen = rule(consensus, trimmed, masked)
        expected, tally = reference.combine(base, tuned, chosen, 5)
        for dtype in (torch.float64, torch.float32):
            found, counted = run(implementation, base, tuned, chosen, dtype, 5)
            assert torch.equal(found, torch.from_numpy(expected).to(dtype))
            assert counted == tally


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_addresses(implementation, dtype):
    base, tuned = inputs(1030, dtype)
    base, *tuned = (tensor[1:] for tensor in (base, *tuned))
    for consensus in CONSENSUS:
        chosen = rule(consensus, True, True)
        found, _ = run(implementation, base, tuned, chosen)
        assert torch.equal(found, torch.from_numpy(reference.combine(base, tuned, chosen)[0]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_threads_and_parts(implementation):
    base, tuned = inputs(5 << 17)
    chosen = rule("elect", True, True)
    expected, tally = run(implementation, base, tuned, chosen)
    for threads in (2, 3, 16):
        assert torch.equal(run(implementation, base, tuned, chosen, threads=threads)[0], expected)
    cut = 100_001
    parts = [(base[at], [t[at] for t in tuned], at.start or 0) for at in (slice(cut), slice(cut, None))]
    found = [run(implementation, b, t, chosen, start=start) for b, t, start in parts]
    assert torch.equal(torch.cat([out for out, _ in found]), expected)
    assert found[0][1] + found[1][1] == tally


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("consensus", CONSENSUS)
def test_a_base_of_zero(implementation, consensus):
    base, tuned = inputs(1000)
    chosen = rule(consensus, True, False)
    expected = run(implementation, torch.zeros_like(base), tuned, chosen)
    out = torch.full((1000,), float("nan"), dtype=torch.float64)
    assert implementation(None, tuned, chosen, out) == expected[1]
    assert torch.equal(out, expected[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_elections(implementation):
    """By hand: three models of weights 1, 2, −1, all votes and divisors."""
    deltas = [[3.0, 1.0, -1.0, 0.0], [1.0, -1.5, -2.0, 0.0], [4.0, 0.5, 1.0, 0.0]]
    tuned, weights = [torch.tensor(each) for each in deltas], (1.0, 2.0, -1.0)
    # κ: 3 2 −4; 1 −3 −0.5; −1 −4 −1; zeros. Sums 1, −2.5, −6; votes 1, −1, −3.
    for consensus, expected in {
        "elect": [5 / 3, -3.5 / 1, -6 / 2, 0], "elect_sum": [5, -3.5, -6, 0], "elect_max": [3, -3, -4, 0],
    }.items():  # fmt: skip
        for by_count in (False, True):
            found, tally = run(implementation, torch.zeros(4), tuned, Rule(consensus, weights, by_count=by_count))
            assert torch.equal(found, torch.tensor(expected, dtype=torch.float64)), (consensus, by_count)
            assert tally == Tally(-1, 0, 0)
    # One large value outweighs two, and is outvoted by them; two that are alike cancel in votes.
    tuned = [torch.tensor([5.0, 2.0]), torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, 0.0])]
    for by_count, expected in ((False, [5.0, 2.0]), (True, [-3.0, -1.0])):
        chosen = Rule("elect_sum", (1.0, 1.0, 1.0), majority=-1, by_count=by_count)
        found, tally = run(implementation, torch.zeros(2), tuned, chosen)
        assert found.tolist() == expected
        assert tally.undecided == int(by_count)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_limits_keep_what_equals_them(implementation):
    chosen = Rule("sum", (1.0,), thresholds=(1.0,), limits=(2.0,))
    found, _ = run(implementation, torch.zeros(4), [torch.tensor([0.5, -1.0, 2.0, -2.5])], chosen)
    assert found.tolist() == [0.0, -1.0, 2.0, 0.0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts(implementation):
    base = torch.zeros(4)
    tuned = [torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.tensor([-1.0, 1.0, 0.0, -1.0])]
    _, tally = run(implementation, base, tuned, Rule("elect", (1.0, 1.0)))
    assert tally == Tally(signs=0, undecided=1, non_finite=0)
    tuned[0][2], tuned[1][3] = float("inf"), float("nan")
    assert run(implementation, base, tuned, Rule("sum", (1.0, 1.0)))[1].non_finite == 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_refuses_what_it_cannot_merge(implementation):
    base, tuned = inputs(10)
    with pytest.raises(ValueError, match="one length"):
        run(implementation, base, [*tuned[:2], tuned[2][:9]], rule("sum", False, False))
    with pytest.raises(ValueError, match="float32 or float64"):
        run(implementation, base, tuned, rule("sum", False, False), torch.bfloat16)


def digest():
    """Return what identifies the merges of every consensus, and how models vary, to the last bit."""
    found = hashlib.sha256()
    for consensus in CONSENSUS:
        out, tally = run(on_cpu.combine, *inputs(100_003), rule(consensus, True, True))
        found.update(out.numpy().tobytes() + str(tally).encode())
    base, tuned = inputs(100_003)
    for array in (
        variation.variances(base, tuned), variation.energies(base, tuned, 0.4), variation.changes(base, tuned, 0.7)
    ):  # fmt: skip
        found.update(array.tobytes())
    return found.hexdigest()


@pytest.mark.skipif(native.extension is None, reason="not built")
def test_every_instruction_set_gives_the_same_bits():
    here = native.extension.instruction_set()
    program = "from tests.kernels.test_combine import digest; print(digest())"
    for name in {"generic", "avx2", "avx512"} - {here}:
        environment = os.environ | {"MERGEKERN_INSTRUCTION_SET": name}
        found = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == digest(), f"{name} and {here}"
