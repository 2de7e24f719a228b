"""The whole of `compute_all` on a device, with weights there, on the host and in files; and the plain way, one pair."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest import mock

import click
import numpy as np
import torch

import mergekern
from benchmarks import counts
from benchmarks.device_session import FULL, Session, named
from benchmarks.vit_zoo import TOKENS, VisionTransformer, make_tasks, vit_shapes
from mergekern.kernels import dispatch
from mergekern.metrics import CATALOGUE
from tests.reference.pairs import pair_metrics

ROUNDS = 5
# Of each task, for the metrics that run models.
SAMPLES = 10
PROBED = [name for name, metric in CATALOGUE.items() if metric.runs_models]
# The tensors that the processor measures too, the first of the zoo: up to the end of the first block of ViT-B/16.
CHECKED = 18
# As tests/support/tolerances.py has them: relative for what needs no spectra, else absolute.
GEOMETRY, SUBSPACE = 1e-5, 1e-4

Tensors = dict[str, torch.Tensor]


def compute_all(session: Session) -> None:
    """Time all metrics of the zoo: on the device, in pinned memory of the host, in files of the page cache."""
    zoo = _Zoo(session)
    pairs = session.sizes.models * (session.sizes.models - 1) // 2
    names = {"device_case": _case(session, "device"), "pair_case": _pair_case(session), "pairs": pairs}
    session.journal.add("work", **zoo.work._asdict(), **names)
    _measure(session, "device", zoo, zoo.models, zoo.base)
    if not any(session.wants(_case(session, where)) for where in ("host", "files")):
        return
    with session.step("pinned memory"):
        base, models = _pinned(zoo.base), [_pinned(model) for model in zoo.models]
        zoo.models, zoo.base = [], {}
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        _measure(session, "host", zoo, models, base)
        _from_files(session, zoo, models, base)


def baseline_pair(session: Session) -> None:
    """Time the plain way on the same device: every matrix of one pair factorised as a library does it."""
    case = _pair_case(session)
    if session.begins(case):
        with session.step(case):
            base, models = session.checkpoints(session.shapes(), 2)
            small = ({"w": torch.cat([t.flatten() for t in m.values()])[:512].view(32, 16)} for m in (base, *models))
            pair_metrics(*small)  # handles and first use of the libraries
            found: dict[str, float] = {}
            samples = session.clock.wall(lambda: found.update(pair_metrics(base, *models)), 1)
            delta = [torch.cat([(m[n].double() - base[n].double()).flatten() for n in base]) for m in models]
            dot = float(delta[0] @ delta[1])
            np.testing.assert_allclose(found["task_vector_dot_product"], dot, rtol=1e-3)
            session.add_row(case, samples, counts.compute_all(base, 2), flops_rate="gemm_float32")


def probes(session: Session) -> None:
    """Time the metrics that run models; first, of two models and one sample a task, those of the processor."""
    case = f"probes/{session.sizes.zoo}/{SAMPLES}_samples"
    if not session.begins(case):
        return
    with session.step(case), session.as_device():
        # Attention has heads of a width of their own.
        width, depth = (session.sizes.width, session.sizes.depth) if session.sizes is FULL else (64, 1)
        base, models = session.checkpoints(vit_shapes(width, depth), session.sizes.models)
        is_cuda = session.device.type == "cuda"
        # Gradients are more than the interpreter compares in a minute; the tests have smaller ones.
        metrics = PROBED if is_cuda else ["activation"]

        def run(models: list[Tensors], samples: int, dtype: torch.dtype, device: str) -> mergekern.MetricTable:
            zoo = named(models)
            with torch.device("meta"):  # it runs on the tensors of the checkpoints
                model = VisionTransformer(width, depth)
            layer = f"transformer.resblocks.{depth - 1}"
            calibration = mergekern.Calibration(model, make_tasks(zoo, samples), layer, dtype=dtype)
            return mergekern.compute_all(zoo, base, metrics=metrics, calibration=calibration, device=device)

        began = time.perf_counter()
        found = run(models[:2], 1, torch.float64, str(session.device)).to_pandas()
        samples = [time.perf_counter() - began]
        with mock.patch.object(dispatch, "choose", return_value=dispatch.backends()[0]):
            expected = run(models[:2], 1, torch.float64, "cpu").to_pandas()
        np.testing.assert_allclose(found, expected, rtol=GEOMETRY)
        if is_cuda:
            samples = session.clock.wall(lambda: run(models, SAMPLES, torch.float32, str(session.device)), 1)
        # Of float32, in which a product of matrices has twice the operations that are counted there.
        work = counts.probes(base, len(models), len(models), TOKENS, SAMPLES)
        session.add_row(case, samples, work._replace(flops=2 * work.flops), flops_rate="gemm_float32")


class _Zoo:
    """The checkpoints on the device, and the table that the processor makes of their first tensors."""

    def __init__(self, session: Session) -> None:
        self.base, self.models = session.checkpoints(session.shapes(), session.sizes.models)
        self.work = counts.compute_all(self.base, len(self.models))
        self.checked = list(self.base)[:CHECKED]
        on_host = [{name: model[name].cpu() for name in self.checked} for model in (self.base, *self.models)]
        began = time.perf_counter()
        self.expected = mergekern.compute_all(named(on_host[1:]), on_host[0], device="cpu", per_layer=True)
        click.echo(f"  {len(self.checked)} tensors on the processor: {time.perf_counter() - began:.1f} s")

    def check(self, found: mergekern.MetricTable) -> None:
        """Raise AssertionError unless every pair of every tensor that is checked agrees with the processor."""
        whole = found.to_pandas()
        assert len(whole) == len(self.expected.to_pandas())
        assert whole.notna().all(axis=None)
        for name in whole:
            metric, expected = mergekern.CATALOGUE[name], self.expected.per_layer(name)
            near: dict[str, float] = dict(rtol=0, atol=SUBSPACE) if metric.needs == "spectra" else dict(rtol=GEOMETRY)
            np.testing.assert_allclose(found.per_layer(name)[expected.columns], expected, err_msg=name, **near)


def _case(session: Session, where: str) -> str:
    return f"compute_all/{session.sizes.zoo}/{where}"


def _pair_case(session: Session) -> str:
    return f"baseline_pair/{session.sizes.zoo.rpartition('x')[0]}"


def _measure(session: Session, where: str, zoo: _Zoo, models: Any, base: Any) -> None:
    """Check a run, which also warms up, and time others."""
    case = _case(session, where)
    if not session.begins(case):
        return
    with session.step(case), session.as_device():
        run = partial(mergekern.compute_all, named(models), base, device=str(session.device))
        began = time.perf_counter()
        table = run(per_layer=True)
        samples = [time.perf_counter() - began]
        redone = table.provenance["redone_on_cpu"]
        click.echo(f"  {table.provenance['backend']}, {table.provenance['device']}; redone on the processor: {redone}")
        zoo.check(table)
        if session.device.type == "cuda":
            samples = session.clock.wall(run, ROUNDS)
        rate = "copy" if where == "device" else "host_to_device"
        session.add_row(case, samples, zoo.work, bytes_rate=rate)


def _from_files(session: Session, zoo: _Zoo, models: list[Tensors], base: Tensors) -> None:
    """Write the zoo to files, which leaves them in the page cache, and measure it from there."""
    case = _case(session, "files")
    if session.begins(case):
        with session.in_files(case, base, models) as files:
            if files is not None:
                _measure(session, "files", zoo, files[1], files[0])


def _pinned(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return copies in one piece of the host's memory, pinned if the device is a GPU."""
    size = sum(tensor.numel() for tensor in tensors.values())
    is_cuda = any(tensor.is_cuda for tensor in tensors.values())
    parts = torch.empty(size, dtype=torch.float32, pin_memory=is_cuda).split([t.numel() for t in tensors.values()])
    return {n: part.view(t.shape).copy_(t) for (n, t), part in zip(tensors.items(), parts, strict=True)}
