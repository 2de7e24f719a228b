"""Randomised factorisations on a device beside exact ones: of the same matrices, and in tables of large models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

import mergekern
from benchmarks import counts
from benchmarks.counts import Counts
from benchmarks.device_session import FULL, Session, named
from benchmarks.device_spectrum import SPECTRUM_K, TOP_K
from benchmarks.llama_zoo import llama_shapes
from mergekern.kernels.randomized_spectrum import most_passes, most_vectors, on_cuda
from mergekern.kernels.spectrum import DeviceSpectra, Estimates, Stack
from mergekern.kernels.spectrum import on_cuda as direct

# Matrices of models of hidden size 2048 and 4096, bfloat16, and the layers of which they are; where the sizes are
# small, below what is iterated on.
SHAPES = {(2048, 5632): 22, (4096, 4096): 8}
SMALL_SHAPES = {(24, 40): 1}
MODELS, TOLERANCE = 3, 1e-3
ROUNDS = 2


def spectra(session: Session) -> None:
    """Time randomised and exact factorisations of the same matrices; errors must be within twice their estimates."""
    is_full = session.sizes is FULL
    passes = most_passes(TOP_K, SPECTRUM_K)
    for shape, layers in (SHAPES if is_full else SMALL_SHAPES).items():
        base, tuned = session.checkpoints({str(i): shape for i in range(layers)}, MODELS)
        stacks = [Stack(base[n].bfloat16(), [model[n].bfloat16() for model in tuned]) for n in base]
        del base, tuned
        matrices = layers * MODELS
        case = f"kernel/randomized_spectrum/{matrices}x{shape[0]}x{shape[1]}"
        if not session.begins(case):
            continue
        exact: list[DeviceSpectra] = []
        one = counts.spectrum(shape, 2)
        work = Counts(matrices * one.bytes, matrices * one.flops)
        run = partial(direct.spectra, stacks, TOP_K, SPECTRUM_K, session.backend.module)
        session.measure(f"{case}/exact", work, run, exact.extend)
        one = counts.randomized_spectrum(shape, 2, passes + 1, most_vectors(passes) + TOP_K)
        work = Counts(matrices * one.bytes, matrices * one.flops)
        how = TOP_K, SPECTRUM_K, TOLERANCE, session.backend.module
        names = [str(layer) for layer in range(layers)]
        session.measure(case, work, partial(on_cuda.spectra, stacks, names, *how), partial(_check, exact))


def large_models(session: Session) -> None:
    """Time tables of models of 1.1 G parameters on the device, by both factorisations."""
    is_full = session.sizes is FULL
    shapes = llama_shapes() if is_full else llama_shapes(layers=1, width=16)
    case = f"compute_all/llama_{'1b1' if is_full else 'w16_d1'}x{MODELS}"
    if not session.begins(case):
        return
    with session.step(case), session.as_device():
        base, models = session.checkpoints(shapes, MODELS)
        base, *models = ({name: tensor.bfloat16() for name, tensor in each.items()} for each in (base, *models))
        work = counts.compute_all(base, MODELS)
        tables = {}
        for svd in ("exact", "randomized"):
            run = partial(mergekern.compute_all, named(models), base, device=str(session.device), svd=svd)
            began = time.perf_counter()
            tables[svd] = run()
            samples = [time.perf_counter() - began]
            if session.device.type == "cuda":
                samples = session.clock.wall(run, ROUNDS)
            session.add_row(f"{case}/{svd}", samples, work)
        exact, found = tables["exact"], tables["randomized"]
        for metric in found.metrics:
            within = 2 * found.error(metric) + 1e-6 * np.abs(exact.matrix(metric))
            if not (np.abs(found.matrix(metric) - exact.matrix(metric)) <= within).all():
                raise AssertionError(f"{metric} is off by more than twice its estimated error")


def _check(exact: Sequence[DeviceSpectra], found: Sequence[tuple[DeviceSpectra, Estimates]]) -> None:
    for (spectrum, estimates), expected in zip(found, exact, strict=bool(exact)):
        if not bool(spectrum.good.all()):
            raise AssertionError("a factorisation failed its own check")
        error = (spectrum.values - expected.values).abs().cpu().numpy()
        if not (error <= 2 * estimates.values).all():
            raise AssertionError(f"a value is off by {(error / estimates.values).max():.1f} times its estimate")
        for side in ("left_top", "right_top"):
            ours, true = (getattr(each, side).double() for each in (spectrum, expected))
            sine = torch.linalg.vector_norm(ours - true @ (true.mT @ ours), dim=1).cpu().numpy()
            if not (sine <= 2 * estimates.vectors + 1e-6).all():
                raise AssertionError(f"a vector is off by {(sine / estimates.vectors).max():.1f} times its estimate")
