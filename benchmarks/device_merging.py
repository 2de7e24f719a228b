"""Merging on a device: its kernels beside what torch has, and whole merges beside two cores of the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

import mergekern
from benchmarks import counts
from benchmarks.counts import Counts
from benchmarks.device_session import Session, expect_small, named
from mergekern.kernels.combine import Rule, Tally
from mergekern.kernels.combine import on_triton as combine_on_triton
from mergekern.kernels.combine import reference as combine_reference
from mergekern.kernels.polar import on_torch as polar_on_torch
from mergekern.kernels.polar import reference as polar_reference
from mergekern.kernels.trim import on_cuda as trim_on_cuda
from mergekern.kernels.trim import reference as trim_reference
from mergekern.kernels.truncation import Triplets
from mergekern.kernels.truncation import on_torch as truncation_on_torch
from mergekern.kernels.truncation import reference as truncation_reference

MODELS = 8
# Of a merge by each method; two cores would take minutes for matrices of eight models.
METHODS = {"ties": MODELS, "dare": MODELS, "tsv": 2, "isotropic": 2}
DENSITY = 0.2
CPU_THREADS = 2
ROUNDS = 5
# How far merges of matrices, float32, may be from those of the processor; factors and triplets, of float64.
MATRICES, FACTORS = 1e-6, 1e-8
# Tensors of a zoo that are held to the oracles, which are slow.
CHECKED = 4
# Of the kernels' rows.
DTYPES = (torch.float32, torch.bfloat16)

Flat = list[list[torch.Tensor]]


def merges(session: Session) -> None:
    """Time whole merges of files in the page cache, into memory: on the device, and on two cores of the processor."""
    most = min(MODELS, session.sizes.models)
    cases = {
        method: f"merge/{method}/{session.sizes.zoo_of(min(models, most))}"
        for method, models in METHODS.items()
        if session.wants(f"merge/{method}/{session.sizes.zoo_of(min(models, most))}")
    }
    if not cases:
        return
    base, tuned = session.checkpoints(session.shapes(), most)
    on_host = [{key: tensor.cpu() for key, tensor in model.items()} for model in (base, *tuned)]
    with session.in_files("merge", on_host[0], on_host[1:]) as files:
        if files is None:
            return
        for method, case in cases.items():
            models = min(METHODS[method], most)
            work = counts.merge(base, models)
            cpu_case = f"{case}/cpu_of_{CPU_THREADS}_threads"
            session.journal.add("merge", device_case=f"{case}/files", cpu_case=cpu_case)
            from_files = partial(mergekern.merge, named(files[1][:models]), files[0], method)
            expected = _on_cores(session, cpu_case, partial(from_files, device="cpu"), work)
            _measure(session, f"{case}/files", partial(from_files, device=str(session.device)), expected, work)
            resident = partial(mergekern.merge, named(tuned[:models]), base, method, device=str(session.device))
            _measure(session, f"{case}/device", resident, expected, work)


def _on_cores(
    session: Session, case: str, run: Callable[[], dict[str, torch.Tensor]], work: Counts
) -> dict[str, torch.Tensor]:
    """Return the merge of the processor, and add a row for the time that it takes on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(CPU_THREADS)
    found: dict[str, torch.Tensor] = {}
    try:
        samples = session.clock.wall(lambda: found.update(run()), 1)
    finally:
        torch.set_num_threads(threads)
    if session.wants(case):
        session.add_row(case, samples, work, bytes_rate="none", flops_rate="none")
    return found


def _measure(
    session: Session,
    case: str,
    run: Callable[[], dict[str, torch.Tensor]],
    expected: dict[str, torch.Tensor],
    work: Counts,
) -> None:
    if not session.begins(case):
        return
    with session.step(case), session.as_device():
        found = run()
        if mergekern.METHODS[case.split("/")[1]].matrix is None:
            different = [name for name, tensor in expected.items() if not torch.equal(found[name].cpu(), tensor)]
            if different:
                raise AssertionError(f"not the bits of the processor: {', '.join(different[:5])}")
        else:
            error = max(float((found[name].cpu() - tensor).abs().amax()) for name, tensor in expected.items())
            expect_small("the merge", error, MATRICES)
        session.add_row(case, session.clock.wall(run, ROUNDS), work, bytes_rate="host_to_device")


def trim(session: Session) -> None:
    """Time the thresholds of all tensors of the zoo; and of one matrix, beside selections and sorts of torch."""
    models = min(MODELS, session.sizes.models)
    base, tuned = session.checkpoints(session.shapes(), models)
    every = {name: (base[name].flatten(), [model[name].flatten() for model in tuned]) for name in base}
    largest = max(every, key=lambda name: every[name][0].numel())
    for dtype in DTYPES:
        flat = {name: (b.to(dtype), [t.to(dtype) for t in ts]) for name, (b, ts) in every.items()}
        elements = sum(b.numel() for b, _ in flat.values())
        session.measure(
            f"kernel/trim/{session.sizes.zoo_of(models)}/{str(dtype).removeprefix('torch.')}",
            Counts((models + 1) * elements * dtype.itemsize, 0),
            partial(_all_kth_largest, session, list(flat.values())),
            partial(_check_trim, list(flat.values())),
        )
    b, ts = every[largest]
    k = _rank(b)
    case, work = f"kernel/trim/{models}x{b.numel()}", Counts((models + 1) * b.nbytes, 0)
    ours = partial(trim_on_cuda.kth_largest, lambda: [(b, ts)], models, b.numel(), k, session.backend.module, b.device)
    session.measure(case, work, ours, partial(_check_kth, b, ts, k))
    for name, select in (("kthvalue", _by_kthvalue), ("sort", _by_sort)):
        session.measure(f"{case}/torch_{name}", work, partial(select, b, ts, k), partial(_check_kth, b, ts, k))


def _rank(values: torch.Tensor) -> int:
    return max(1, int(DENSITY * values.numel()))


def _all_kth_largest(session: Session, flat: Sequence[tuple[torch.Tensor, list[torch.Tensor]]]) -> torch.Tensor:
    return torch.stack(
        [
            trim_on_cuda.kth_largest(
                lambda b=b, ts=ts: [(b, ts)], len(ts), b.numel(), _rank(b), session.backend.module, b.device
            )
            for b, ts in flat
        ]
    )


def _by_kthvalue(base: torch.Tensor, tuned: Sequence[torch.Tensor], k: int) -> torch.Tensor:
    rank = base.numel() - k + 1
    return torch.stack([torch.kthvalue((t.double() - base.double()).abs(), rank).values for t in tuned])


def _by_sort(base: torch.Tensor, tuned: Sequence[torch.Tensor], k: int) -> torch.Tensor:
    return torch.stack([(t.double() - base.double()).abs().sort().values[-k] for t in tuned])


def _check_kth(base: torch.Tensor, tuned: Sequence[torch.Tensor], k: int, found: torch.Tensor) -> None:
    expected = [trim_reference.kth_largest(base.cpu(), t.cpu(), k) for t in tuned]
    if found.tolist() != expected:
        raise AssertionError(f"the k-th largest are {found.tolist()} instead of {expected}")


def _check_trim(flat: Sequence[tuple[torch.Tensor, list[torch.Tensor]]], found: torch.Tensor) -> None:
    some = max(1, len(flat) // CHECKED)
    for (base, tuned), values in zip(flat[::some], found[::some], strict=True):
        _check_kth(base, tuned, _rank(base), values)


def combine(session: Session) -> None:
    """Time the one pass of TIES, of DARE with random masks, and of TALL masks, over all tensors of the zoo."""
    models = min(MODELS, session.sizes.models)
    base, tuned = session.checkpoints(session.shapes(), models)
    ones, thresholds, keys = (1.0,) * models, (1e-4,) * models, tuple(range(1, models + 1))
    rules = {
        "elect": Rule("elect", ones, 0.3, thresholds),
        "masked_mean": Rule("mean", ones, 10.0, keys=keys, drop=0.9),
        "agree": Rule("agree", ones, share=0.4, needed=2),
    }
    for dtype in DTYPES:
        layers = [[m[name].to(dtype).flatten() for m in (base, *tuned)] for name in base]
        elements = sum(layer[0].numel() for layer in layers)
        for name, rule in rules.items():
            session.measure(
                f"kernel/combine/{session.sizes.zoo_of(models)}/{str(dtype).removeprefix('torch.')}/{name}",
                Counts(((models + 1) * dtype.itemsize + 4) * elements, 6 * models * elements),
                partial(_all_combined, layers, rule),
                partial(_check_combine, layers, rule),
            )


def _all_combined(layers: Flat, rule: Rule) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for base, *tuned in layers:
        out = torch.empty(base.numel(), device=base.device)
        found.append((out, combine_on_triton.combine(base, tuned, rule, out)))
    return found


def _check_combine(layers: Flat, rule: Rule, found: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Hold some tensors to the oracle, to the last bit, and see that the others are written."""
    for index, (out, tally) in enumerate(found):
        if index % max(1, len(found) // CHECKED):
            if not out.isfinite().all():
                raise AssertionError(f"combine left elements of tensor {index} unwritten")
            continue
        base, *tuned = (tensor.cpu() for tensor in layers[index])
        expected, counted = combine_reference.combine(base, tuned, rule)
        if not torch.equal(out.cpu(), torch.from_numpy(expected).float()) or Tally(*tally.tolist()) != counted:
            raise AssertionError(f"combine of tensor {index} has not the bits of the oracle")


def polar(session: Session) -> None:
    """Time the orthogonal factor of a task matrix, by products alone and by an SVD of torch."""
    for m, n, delta in _task_matrices(session):
        work = Counts(2 * delta.nbytes, 17 * (4 * n**2 * m + 2 * n**3))  # three products a step
        case, check = f"kernel/polar/{m}x{n}", partial(_check_polar, delta)
        session.measure(case, work, partial(polar_on_torch.polar, delta), check)
        session.measure(f"{case}/torch_svd", work, partial(_by_svd, delta), check)


def truncation(session: Session) -> None:
    """Time the leading half of the singular triplets of a task matrix."""
    for m, n, delta in _task_matrices(session):
        k = n // 2
        # The Gram matrix and the long side; the tridiagonal form, and the vectors back from it.
        work = Counts(2 * delta.nbytes, 2 * n * n * m + 2 * m * n * k + 4 * n**3 // 3 + 4 * n**2 * k)
        leading = partial(truncation_on_torch.leading, delta, k)
        session.measure(f"kernel/truncation/{m}x{n}x{k}", work, leading, partial(_check_leading, delta, k))


def _task_matrices(session: Session) -> Iterator[tuple[int, int, torch.Tensor]]:
    n = session.sizes.width
    for m in (n, 4 * n):
        base, tuned = session.checkpoints({"w": (m, n)}, 1)
        yield m, n, tuned[0]["w"].double() - base["w"].double()


def _by_svd(delta: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(delta, full_matrices=False)
    return left @ right


def _check_polar(delta: torch.Tensor, found: torch.Tensor) -> None:
    expected = polar_reference.polar(delta.cpu().numpy())
    expect_small("polar", np.abs(found.cpu().numpy() - expected).max(), FACTORS)


def _check_leading(delta: torch.Tensor, k: int, found: Triplets) -> None:
    expected = truncation_reference.leading(delta.cpu().numpy(), k).matrix()
    error = np.abs(found.matrix().cpu().numpy() - expected).max() / np.abs(expected).max()
    expect_small("the truncated matrix", error, FACTORS)
