"""`spectra` on a device: as a whole, its stages one by one, and other ways to the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import click
import numpy as np
import torch

from benchmarks import counts, device_krylov
from benchmarks.counts import Counts
from benchmarks.device_session import Session, expect_small
from mergekern.kernels.cuda_module import CudaModule
from mergekern.kernels.spectrum import DeviceSpectra, Stack, device_tridiagonal, on_cuda, reference

TOP_K, SPECTRUM_K = counts.TOP_K, 100
# As the tests hold them: values relative, subspaces by the sine.
VALUES, SINE = 1e-7, 1e-5
STAGE_ROUNDS = 3
# Matrices that a library is tried on, and the most seconds that all of them may take it.
FEW, LIBRARY_SECONDS = 24, 3


def spectra(session: Session) -> None:
    """Time `spectra` of tall and of square matrices, and its stages."""
    for shape in shapes(session):
        stacks = make_stacks(session, shape)
        matrices = sum(len(stack.tuned) for stack in stacks)
        case = f"kernel/spectrum/{matrices}x{shape[0]}x{shape[1]}"
        session.measure(
            case,
            _times(matrices, counts.spectrum(shape, 4)),
            partial(on_cuda.spectra, stacks, TOP_K, SPECTRUM_K, session.backend.module),
            partial(_check, stacks),
        )
        if session.begins(f"{case}/stages"):
            with session.step(f"{case}/stages"):
                _stages(session, case, stacks)


def alternatives(session: Session) -> None:
    """Time eigenpairs and singular values by libraries, and block Krylov, on the matrices of `spectra`."""
    for shape in shapes(session):
        m, n = shape
        stacks = make_stacks(session, shape)
        pairs = [(stack.base, tuned) for stack in stacks for tuned in stack.tuned]
        case = f"{len(pairs)}x{m}x{n}"
        per_matrix = counts.spectrum(shape, 4)
        work = _times(len(pairs), per_matrix)
        session.measure(
            f"kernel/spectrum/{case}/krylov_top",
            work,
            partial(device_krylov.leading, pairs, TOP_K, SPECTRUM_K),
            partial(_report_krylov, pairs),
        )
        few = pairs[:FEW]
        deltas = torch.stack([tuned.double() - base.double() for base, tuned in few])
        grams = deltas.mT @ deltas
        name = f"kernel/spectrum/{len(few)}x{m}x{n}/eigh"
        session.measure(name, _times(len(few), per_matrix), partial(torch.linalg.eigh, grams))
        took = [line["row"]["seconds"]["median"] for line in session.journal.read("row") if line["row"]["case"] == name]
        if took and took[-1] * len(pairs) / len(few) < LIBRARY_SECONDS and len(pairs) > len(few):
            grams = grams.repeat(-(-len(pairs) // len(few)), 1, 1)[: len(pairs)]
            session.measure(f"kernel/spectrum/{case}/eigh", work, partial(torch.linalg.eigh, grams))
        del grams
        for dtype in (torch.float32, torch.float64):
            session.measure(
                f"kernel/spectrum/1x{m}x{n}/svd_{str(dtype).removeprefix('torch.')}",
                per_matrix,
                partial(torch.linalg.svd, deltas[0].to(dtype), full_matrices=False),
            )


def shapes(session: Session) -> list[tuple[int, int]]:
    """Return the shapes of the matrices: tall and square."""
    return [(4 * session.sizes.width, session.sizes.width), (session.sizes.width, session.sizes.width)]


def make_stacks(session: Session, shape: tuple[int, int]) -> list[Stack]:
    """Return stacks of all models."""
    base, models = session.checkpoints({str(i): shape for i in range(session.sizes.stacks)}, session.sizes.models)
    return [Stack(base[name], [model[name] for model in models]) for name in base]


def _times(number: int, one: Counts) -> Counts:
    return Counts(number * one.bytes, number * one.flops)


def _check(stacks: Sequence[Stack], found: list[DeviceSpectra]) -> None:
    bad = sum(int((~each.good).sum()) for each in found)
    if bad:
        raise AssertionError(f"{bad} factorisations failed their own check")
    for stack, model in {(0, 0), (len(stacks) - 1, len(stacks[0].tuned) - 1)}:
        base, tuned = stacks[stack].base.cpu(), stacks[stack].tuned[model].cpu()
        expected = reference.spectrum(base, tuned, TOP_K, SPECTRUM_K)
        ours = [part[model].cpu().numpy() for part in found[stack]]
        expect_small("a value", np.abs(ours[0] / expected.values - 1).max(), VALUES)
        if ours[1] != expected.rank:
            raise AssertionError(f"rank {ours[1]} in place of {expected.rank}")
        for name, vectors in zip(("left_top", "right_top", "right_bottom"), ours[2:5], strict=True):
            true = getattr(expected, name).astype(np.float64)
            expect_small(name, np.linalg.norm(vectors - true @ (true.T @ vectors)), SINE)


def _report_krylov(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], found: device_krylov.Leading) -> None:
    """Print the errors of block Krylov: the question is where it fails."""
    expected = reference.spectrum(pairs[0][0].cpu(), pairs[0][1].cpu(), TOP_K, SPECTRUM_K)
    count = min(found.values.shape[1], len(expected.values))
    off = np.abs(found.values[0, :count].cpu().numpy() / expected.values[:count] - 1).max()
    right, ours = expected.right_top.astype(np.float64), found.right_top[0].cpu().numpy()
    sine = np.linalg.norm(ours - right @ (right.T @ ours))
    click.echo(
        f"  Krylov: {count} values off by up to {off:.1e}, top subspace by {sine:.1e}, "
        f"largest residual {float(found.residual.max()):.1e}"
    )


class _Stages:
    """A CudaModule that notes when each kernel starts and ends; what torch does in between is named by its neighbours.

    Until the chase, panels are those of the reduction to a band, later those of the resolution.
    """

    def __init__(self, module: CudaModule, device: torch.device) -> None:
        self._module, self._is_cuda = module, device.type == "cuda"
        self.shared_limit = module.shared_limit
        self._before = "start"
        self._chased = False
        self._marks = [("", self._mark())]

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        threads: int,
        arguments: Sequence[torch.Tensor | int | float],
        shared_bytes: int = 0,
    ) -> None:
        """Launch a kernel between two marks."""
        self._chased |= name == "chase"
        label = "factor_panels_resolve" if name == "factor_panels" and self._chased else name
        self._marks.append((f"torch_{self._before}_to_{label}", self._mark()))
        self._module.launch(name, grid, threads, arguments, shared_bytes)
        self._marks.append((label, self._mark()))
        self._before = label

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, once all is done."""
        self._marks.append((f"torch_{self._before}_to_end", self._mark()))
        if not self._is_cuda:
            return dict.fromkeys([label for label, _ in self._marks[1:]], 1.0)
        torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (_, start), (label, end) in zip(self._marks, self._marks[1:], strict=False):
            total[label] = total.get(label, 0.0) + start.elapsed_time(end) / 1e3
        return total

    def _mark(self) -> torch.cuda.Event | None:
        if not self._is_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _stages(session: Session, case: str, stacks: Sequence[Stack]) -> None:
    """Write a row for each stage."""
    rounds = []
    for _ in range(STAGE_ROUNDS if session.device.type == "cuda" else 1):
        session.clock.hide(1.0)
        stages = _Stages(session.backend.module, session.device)
        on_cuda.spectra(stacks, TOP_K, SPECTRUM_K, stages)
        rounds.append(stages.seconds())
    matrices = sum(len(stack.tuned) for stack in stacks)
    known = stage_counts(stacks[0].base.shape, TOP_K)
    for label in sorted(rounds[0], key=lambda label: -rounds[0][label]):
        work = _times(matrices, known.get(label, Counts(0, 0)))
        session.add_row(f"{case}/{label}", [each[label] for each in rounds], work)


def stage_counts(shape: Sequence[int], top_k: int) -> dict[str, Counts]:
    """Return the bytes of device memory and the flops of one matrix, for the stages where they are simple.

    An update reads every trailing matrix for A·V, then reads and writes it.

    >>> stage_counts((3072, 768), 10)["torch_factor_panels_to_factor_panels"].bytes // 10**6
    219
    """
    n, length = min(shape), max(shape)
    window = min(on_cuda.WIDEN * top_k, n)
    rows = list(range(n - device_tridiagonal.BAND, 0, -device_tridiagonal.BAND))
    updates = [Counts(24 * r * r, 6 * device_tridiagonal.BAND * r * r) for r in rows]
    band = device_tridiagonal.BAND
    return {
        "torch_start_to_factor_panels": Counts(28 * length * n + 48 * n * n, 2 * length * n * n),
        "factor_panels": Counts(sum(2 * 8 * band * r for r in rows), sum(3 * band * band * r for r in rows)),
        "torch_factor_panels_to_factor_panels": _sum(updates[:-1]),
        "torch_factor_panels_to_chase": _sum(updates[-1:]),
        "chase": Counts(8 * (n * band + n * n // 2), 112 * n * n),
        "undo_chase": Counts(
            2 * (8 * n * n // 2 * -(-window // device_tridiagonal.UNDO_TILE) + 16 * n * window), 4 * n * n * window
        ),
        "tridiagonal_vectors": Counts(2 * 3 * 12 * 8 * n * window, 2 * 3 * 20 * n * window),
        "factor_panels_resolve": Counts(2 * 16 * length * window, 2 * 3 * length * window * window),
    }


def _sum(works: Sequence[Counts]) -> Counts:
    return Counts(sum(work.bytes for work in works), sum(work.flops for work in works))
