"""Ceilings of a device, and the Triton kernels: correct first, then their times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch

from benchmarks import counts
from benchmarks.counts import Counts
from benchmarks.device_session import Session, expect_small
from mergekern.kernels.gram import on_triton as gram_on_triton
from mergekern.kernels.gram import reference as gram_reference
from mergekern.kernels.overlap import on_triton as overlap_on_triton
from mergekern.kernels.overlap import reference as overlap_reference
from mergekern.kernels.signs import DeviceSigns
from mergekern.kernels.signs import on_triton as signs_on_triton
from mergekern.kernels.signs import reference as signs_reference
from mergekern.kernels.task_product import on_triton as task_product_on_triton
from mergekern.kernels.task_product import reference as task_product_reference

TOP_K = counts.TOP_K
# The columns that a spectrum multiplies with: windows of 4·k at both ends.
WINDOWS = 8 * TOP_K
# Relative to what the kernels' docstrings relate their errors to.
TOLERANCES = {"float64": 1e-12, "tf32x3": 1e-6}
# Three products of tensor cores in place of one: at best a third of the rate of one.
CEILINGS = {"float64": "gemm_float64", "tf32x3": "gemm_tf32x3"}


def rates(session: Session) -> None:
    """Measure what the device does at its best: copies, products of matrices, and copies from the host."""
    size, product = session.sizes.copy, session.sizes.product
    random = session.generator(1)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=session.device, generator=random)
    target = torch.empty_like(source)
    _rate(session, "copy", Counts(2 * size, 0), lambda: target.copy_(source))
    pinned = torch.empty(size // 2, dtype=torch.uint8, pin_memory=session.device.type == "cuda").fill_(7)
    upload = partial(target[: size // 2].copy_, pinned, non_blocking=True)
    _rate(session, "host_to_device", Counts(size // 2, 0), upload)
    for name, dtype, precision in (
        ("gemm_float64", torch.float64, "highest"),
        ("gemm_float32", torch.float32, "highest"),
        ("gemm_tf32", torch.float32, "high"),
    ):
        a, b = (torch.randn(product, product, dtype=dtype, device=session.device, generator=random) for _ in range(2))
        torch.set_float32_matmul_precision(precision)
        try:
            _rate(session, name, Counts(0, 2 * product**3), partial(torch.matmul, a, b))
        finally:
            torch.set_float32_matmul_precision("highest")
    for line in session.journal.read("rate"):
        if line["name"] == "gemm_tf32":
            session.journal.add("rate", name="gemm_tf32x3", rate=line["rate"] / 3)


def _rate(session: Session, name: str, work: Counts, run: Callable[[], object]) -> None:
    with session.step(f"machine/{name}"):
        samples, host = session.clock.device(run)
        session.journal.add("rate", name=name, rate=max(work) / min(samples))
        session.add_row(f"machine/{name}", samples, work, host, bytes_rate=name, flops_rate=name)


def gram(session: Session) -> None:
    """Time `gram` of all tensors of the zoo in one launch."""
    base, models = session.checkpoints(session.shapes(), session.sizes.models)
    for dtype in (torch.float32, torch.bfloat16):
        layers = [[m[name].to(dtype).flatten() for m in (base, *models)] for name in base]
        work = _sum(counts.gram(len(models), layer[0].numel(), dtype.itemsize) for layer in layers)
        for products in ("float64", "tf32x3"):
            case = f"kernel/gram/{session.sizes.zoo}/{str(dtype).removeprefix('torch.')}"
            session.measure(
                case if products == "float64" else f"{case}/{products}",
                work,
                partial(gram_on_triton.inner_products, layers, products),
                partial(_check_gram, layers, TOLERANCES[products]),
                flops_rate=CEILINGS[products],
            )
        del layers


def _check_gram(layers: list[list[torch.Tensor]], tolerance: float, found: torch.Tensor) -> None:
    for index, (base, *tuned) in enumerate(layers):
        if index == 0:  # the oracle itself; for the others its formula, where they lie
            expected = torch.from_numpy(gram_reference.gram(base.cpu(), [t.cpu() for t in tuned]).inner).to(base.device)
        else:
            delta = torch.stack(tuned).double() - base.double()
            expected = delta @ delta.mT
        norms = expected.diagonal().sqrt()
        expect_small(
            f"gram of tensor {index}", ((found[index] - expected) / norms / norms[:, None]).abs().max(), tolerance
        )


def task_product(session: Session) -> None:
    """Time products with the windows, and with Ω, of stacks of all models."""
    width, models = session.sizes.width, session.sizes.models
    m, n = 4 * width, width
    base, tuned = session.checkpoints({str(i): (m, n) for i in range(session.sizes.stacks)}, models)
    pairs = [(base[name], model[name]) for name in base for model in tuned]
    matrices = len(pairs)
    random = session.generator(2)
    for precision in ("float64", "tf32x3"):
        for transpose, inner in ((False, n), (True, m)):
            name = f"kernel/task_product/{matrices}x{m}x{n}x{WINDOWS}/{'transposed' if transpose else 'plain'}"
            vectors = torch.randn(
                matrices, inner, WINDOWS, dtype=torch.float64, device=session.device, generator=random
            )
            session.measure(
                name if precision == "float64" else f"{name}/{precision}",
                Counts(_read(base, models) + 8 * matrices * (m + n) * WINDOWS, 2 * matrices * m * n * WINDOWS),
                partial(task_product_on_triton.task_product, pairs, vectors, transpose=transpose, precision=precision),
                partial(_check_task_product, pairs, vectors, transpose, TOLERANCES[precision]),
                flops_rate=CEILINGS[precision],
            )
    columns = 4 * TOP_K
    omega = task_product_on_triton.omega(n, columns, 0, session.device).expand(matrices, n, columns)
    session.measure(
        f"kernel/task_product/{matrices}x{m}x{n}x{columns}/omega",
        Counts(_read(base, models) + 8 * matrices * m * columns, 2 * matrices * m * n * columns),
        partial(task_product_on_triton.task_product, pairs, None, columns=columns),
        partial(_check_task_product, pairs, omega, False, TOLERANCES["float64"]),
    )


def _read(base: dict[str, torch.Tensor], models: int) -> int:
    """Return the bytes of all models, and of the base once."""
    return (models + 1) * sum(tensor.nbytes for tensor in base.values())


def _check_task_product(
    pairs: list, vectors: torch.Tensor, transpose: bool, tolerance: float, found: torch.Tensor
) -> None:
    for index in {0, len(pairs) // 2, len(pairs) - 1}:
        some = [tuple(tensor.cpu() for tensor in pairs[index])]
        expected = task_product_reference.task_product(some, vectors[index : index + 1].cpu(), transpose=transpose)[0]
        error = torch.linalg.norm(found[index].cpu() - expected) / torch.linalg.norm(expected)
        expect_small(f"task_product of matrix {index}", error, tolerance)
    if not found.isfinite().all():
        raise AssertionError("task_product left elements unwritten")


def overlap(session: Session) -> None:
    """Time the overlaps of all bases of one length of the zoo."""
    models, width = session.sizes.models, session.sizes.width
    # The four matrices of a block have left top, right top and right bottom bases: 8 of the width, 3 of 4·width.
    for stacks, length in ((8 * session.sizes.depth, width), (3 * session.sizes.depth, 4 * width)):
        noise = torch.randn(stacks, models, length, TOP_K, device=session.device, generator=session.generator(3))
        bases = torch.linalg.qr(noise).Q.contiguous()
        one = counts.overlap(models, length)
        session.measure(
            f"kernel/overlap/{stacks}x{models}x{length}x{TOP_K}",
            Counts(stacks * one.bytes, stacks * one.flops),
            partial(overlap_on_triton.overlap, bases),
            partial(_check_overlap, bases),
        )


def _check_overlap(bases: torch.Tensor, found: torch.Tensor) -> None:
    for index in {0, len(bases) - 1}:
        expected = overlap_reference.overlap(bases[index].cpu().numpy())
        expect_small(f"overlap of stack {index}", np.abs(found[index].cpu().numpy() - expected).max(), 1e-12)
    if not found.isfinite().all():
        raise AssertionError("overlap left elements unwritten")


def signs(session: Session) -> None:
    """Time the counts of all pairs of all tensors of the zoo; each model keeps about a fifth of its coordinates."""
    base, models = session.checkpoints(session.shapes(), session.sizes.models)
    for dtype in (torch.float32, torch.bfloat16):
        layers = [[m[name].to(dtype).flatten() for m in (base, *models)] for name in base]
        thresholds = torch.stack([_thresholds(layer) for layer in layers])
        session.measure(
            f"kernel/signs/{session.sizes.zoo}/{str(dtype).removeprefix('torch.')}",
            _sum(counts.signs(len(models), layer[0].numel(), dtype.itemsize) for layer in layers),
            partial(signs_on_triton.signs, layers, thresholds),
            partial(_check_signs, layers, thresholds),
        )
        del layers


def _thresholds(layer: list[torch.Tensor]) -> torch.Tensor:
    """Return 1.28 standard deviations of each task vector, which a fifth of normal numbers exceed."""
    return 1.28 * torch.stack([(tuned.double() - layer[0].double()).std() for tuned in layer[1:]])


def _check_signs(layers: list[list[torch.Tensor]], thresholds: torch.Tensor, found: DeviceSigns) -> None:
    for index in {0, len(layers) - 1}:
        base, *tuned = (tensor.cpu() for tensor in layers[index])
        expected = signs_reference.signs(base, tuned, thresholds[index].tolist())
        here = found.of_layer(index).on_host()
        for name in ("shared", "opposite", "kept_shared", "kept_opposite"):
            if not np.array_equal(getattr(here, name), getattr(expected, name)):
                raise AssertionError(f"not the {name} coordinates of tensor {index}")
        for name in ("absolute", "sums"):
            error = np.abs(getattr(here, name) - getattr(expected, name)).max() / expected.absolute.max()
            expect_small(f"{name} of tensor {index}", error, 1e-12)


def _sum(works: Iterable[Counts]) -> Counts:
    return Counts(*map(sum, zip(*works, strict=True)))
