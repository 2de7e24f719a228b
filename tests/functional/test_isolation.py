"""Nothing of the caller changes by a run, and nothing around a run changes its values."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import mergekern
from mergekern import Calibration, CalibrationError
from tests.functional.tables import assert_close, run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


def test_nothing_of_the_caller_changes():
    case = make_case("convolutions", models=2)
    model = case.module("m0")
    model.train()
    model.body[1].eval()
    model.up.weight.requires_grad_(False)
    heads = {
        name: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3 + i))
        for i, name in enumerate(case.models)
    }
    heads["m1"].eval()
    tasks = {name: (inputs, labels, heads[name]) for name, (inputs, labels, _) in case.tasks.items()}
    modules = [model, *heads.values()]

    def state():
        tensors = [
            {**module.state_dict(keep_vars=True), **{f"grad {n}": p.grad for n, p in module.named_parameters()}}
            for module in modules
        ]
        samples = [values for inputs, labels, _ in tasks.values() for values in (inputs, labels)]
        checkpoints = [values for models in case.models.values() for values in models.values()]
        return {
            "values": [[None if v is None else v.tolist() for v in part.values()] for part in tensors],
            "identity": [[id(v) for name, v in part.items() if "grad" not in name] for part in tensors],
            "modes": [part.training for module in modules for part in module.modules()],
            "gradients": [p.requires_grad for module in modules for p in module.parameters()],
            "hooks": [len(part._forward_hooks) for module in modules for part in module.modules()],
            "samples": [values.tolist() for values in (*samples, *checkpoints)],
            "flags": [
                torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
                torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
                torch.backends.cuda.matmul.allow_tf32, torch.get_num_threads(), torch.is_autocast_enabled("cpu"),
            ],
            "random": [
                torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),  # noqa: NPY002
            ],
        }  # fmt: skip

    bad = {**tasks, "m1": (*tasks["m1"][:2], nn.Linear(8, 2))}
    before = state()
    run(case, tasks=tasks, model=model)
    assert state() == before
    # Nothing changes either when a run is refused half-way.
    with pytest.raises(CalibrationError):
        run(case, tasks=bad, model=model)
    assert state() == before


def test_what_is_set_around_a_run_does_not_reach_it(monkeypatch):
    case = make_case("transformer")
    expected = run(case)
    with torch.no_grad():
        assert_close(run(case), expected, rel=0, abs=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(run(case), expected, rel=0, abs=0)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_close(run(case), expected, rel=0, abs=0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        models = {name: {key: v.clone() for key, v in state.items()} for name, state in case.models.items()}
        tasks = {name: (inputs.clone(), labels.clone(), head) for name, (inputs, labels, head) in case.tasks.items()}
        assert_close(run(case, models, tasks=tasks), expected, rel=0, abs=0)


def test_a_model_that_draws_random_numbers_draws_the_same_ones():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, samples):
            return self.body(samples + torch.randn_like(samples))

    draw = torch.Generator().manual_seed(0)
    base = Noisy().state_dict()
    models = {name: {k: v + torch.randn(v.shape, generator=draw) for k, v in base.items()} for name in "abc"}
    task = torch.ones(5, 4), torch.zeros(5, dtype=torch.long), (torch.randn(2, 3, generator=draw), None)
    calibration = Calibration(Noisy, dict.fromkeys("abc", task), "body")
    tables = []
    for seed, names in ((1, "abc"), (2, "cab")):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        tables.append(mergekern.compute_all({n: models[n] for n in names}, base, calibration=calibration))
        assert torch.equal(torch.random.get_rng_state(), before)
    one, other = (table.to_pandas()["encoder_gradient_dot_product"] for table in tables)
    assert one["a", "b"] == pytest.approx(other["a", "b"], rel=1e-12)


def test_a_model_that_writes_to_its_buffers_and_inputs_changes_no_checkpoint():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
            self.register_buffer("total", torch.zeros(()))

        def forward(self, samples):
            self.calls += 1
            self.total = self.total + 1
            if not torch.is_grad_enabled():
                samples.mul_(2.0)
            return self.body(samples)

    model = Counting()
    base = model.state_dict()
    models = {name: {k: v.clone() for k, v in base.items()} for name in "ab"}
    samples = torch.ones(5, 4)
    task = samples, torch.zeros(5, dtype=torch.long), (torch.ones(2, 3), None)
    mergekern.compute_all(models, base, calibration=Calibration(model, {"a": task, "b": task}, "body"))
    assert (samples == 1).all()
    assert all(int(m["calls"]) == 0 and float(m["total"]) == 0 for m in (*models.values(), model.state_dict()))


def test_several_threads_share_a_model():
    case = make_case("convolutions")
    calibration = case.calibration()

    def table(_):
        return mergekern.compute_all(case.models, case.base, metrics="gradient", calibration=calibration)

    expected = table(0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(table, range(6)):
            assert_close(found, expected, rel=0, abs=0)
