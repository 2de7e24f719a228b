"""What running the models gives: against plain autograd, and what must not change by it."""

import itertools
import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mergekern
from mergekern import Calibration, CalibrationError, MismatchError, NonFiniteError, OptionError, ZooStatistics
from mergekern.checkpoints import open_zoo
from mergekern.functional import gradients
from mergekern.functional.plan import Probes
from mergekern.functional.runs import Runs
from mergekern.kernels import dispatch
from mergekern.statistics import FUNCTIONAL
from tests.reference.pairs import pair_functional_metrics
from tests.support.device import DEVICE, backend
from tests.support.encoders import Text, make_case
from tests.support.names import OF_RUNS, OF_WEIGHTS

KINDS = ["transformer", "convolutions", "text"]
GRADIENTS = [name for name in OF_RUNS if "gradient" in name]


pytestmark = pytest.mark.usefixtures("one_thread")


def run(case, models=None, base=None, *, statistics=None, metrics=("activation", "gradient"), **options):
    table = ("per_layer", "max_memory", "progress", "on_mismatch")
    chosen = {name: options.pop(name) for name in table if name in options}
    return mergekern.compute_all(
        models or case.models, base or case.base, metrics=metrics, calibration=case.calibration(**options),
        statistics=statistics, **chosen,
    )  # fmt: skip


def assert_close(one, other, rel=1e-9, abs=1e-12):
    pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas(), rtol=rel, atol=abs)


# --- values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 2e-5)], ids=["float64", "float32"])
def test_agrees_with_plain_autograd(kind, dtype, near):
    case = make_case(kind, dtype=dtype)
    frame = run(case, dtype=dtype).to_pandas()
    assert list(frame) == OF_RUNS
    samples = [inputs for inputs, _, _ in case.tasks.values()]
    for a, b in itertools.combinations(case.models, 2):
        tasks = []
        for name in (a, b):
            inputs, labels, (weight, bias) = case.tasks[name]
            head = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
            head.load_state_dict({"weight": weight, "bias": bias})
            tasks.append((inputs, labels, head))
        expected = pair_functional_metrics(
            case.module(a, dtype), case.module(b, dtype), tuple(tasks), samples, case.layer, case.input_layer
        )
        for name in OF_RUNS:
            assert frame.loc[(a, b), name] == pytest.approx(expected[name], rel=near, abs=near), (a, b, name)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_matter_when_samples_weigh_alike(kind):
    case = make_case(kind, samples=11)
    tables = [
        run(case, batch_weighting="sample", batch_size=size, activation_batch_size=size) for size in (11, 1, 4, 100)
    ]
    for other in tables[1:]:
        assert_close(other, tables[0], rel=2e-5, abs=1e-6)
    published = [run(case, batch_size=size).to_pandas() for size in (11, 4)]
    assert (published[0][GRADIENTS] - published[1][GRADIENTS]).abs().to_numpy().max() > 1e-3


def test_samples_weigh_alike_in_the_plain_mean():
    case = make_case("transformer", samples=10)
    table = run(case, batch_weighting="sample", batch_size=3, dtype=torch.float64)
    vectors = {}
    for name, (inputs, labels, (weight, bias)) in case.tasks.items():
        model = case.module(name, torch.float64).eval()
        images = inputs.double().requires_grad_()
        logits = model(images) @ weight.double().T + bias.double()
        loss = nn.functional.cross_entropy(logits, labels)
        *encoder, by_inputs = torch.autograd.grad(loss, [*model.parameters(), images])
        vectors[name] = torch.cat([gradient.flatten() for gradient in encoder]), by_inputs.flatten()
    for a, b in itertools.combinations(case.models, 2):
        for kind, what in enumerate(("encoder", "input")):
            distance = (vectors[a][kind] - vectors[b][kind]).norm().item()
            assert table.to_pandas().loc[(a, b), f"{what}_gradient_l2_distance"] == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_second_run_gives_the_same_bits(kind):
    case = make_case(kind)
    pd.testing.assert_frame_equal(run(case).to_pandas(), run(case).to_pandas(), check_exact=True)


def test_order_of_models_and_tasks_does_not_matter():
    case = make_case("convolutions", models=4)
    table = run(case)
    order = ["m2", "m0", "m3", "m1"]
    other = run(
        case, {name: case.models[name] for name in order}, tasks={name: case.tasks[name] for name in order[::-1]}
    )
    at = [table.models.index(name) for name in order]
    for name in OF_RUNS:
        np.testing.assert_allclose(other.matrix(name), table.matrix(name)[np.ix_(at, at)], rtol=1e-12, atol=1e-12)
    # Nor does that of the tasks alone, to the last bit, though batches mix them.
    turned = [run(case, tasks={name: case.tasks[name] for name in names}, activation_batch_size=7)
              for names in (order, order[::-1])]  # fmt: skip
    assert_close(*turned, rel=0, abs=0)


def test_tasks_without_a_model_count_in_the_activations():
    case = make_case("transformer", models=4)
    models = {name: case.models[name] for name in ("m0", "m1", "m2")}
    assert_close(
        run(case, models), mergekern.MetricTable(models, {n: run(case).matrix(n)[:3, :3] for n in OF_RUNS}), rel=1e-12
    )


@pytest.mark.parametrize(("token_dim", "order"), [(0, (2, 0, 1)), (1, (0, 2, 1)), (2, (0, 1, 2))])
def test_token_dimension(token_dim, order):
    class Scale(nn.Module):
        """Samples (n, h, tokens) to features (n, h); its layer has the dimensions in another order."""

        def __init__(self):
            super().__init__()
            self.scale, self.tokens = nn.Parameter(torch.ones(())), nn.Identity()

        def forward(self, samples):
            self.tokens((samples * self.scale).permute(order))
            return samples.sum(dim=2) * self.scale

    samples = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    task = samples, torch.zeros(7, dtype=torch.long), (torch.ones(2, 3), None)
    models = {"a": {"scale": torch.tensor(2.0)}, "b": {"scale": torch.tensor(5.0)}}
    calibration = Calibration(Scale(), {"a": task, "b": task}, "tokens", token_dim=token_dim)
    table = mergekern.compute_all(models, {"scale": torch.zeros(())}, metrics="activation", calibration=calibration)
    expected = 3.0 * samples.mean(dim=(0, 2)).norm().item()
    assert table.matrix("activation_l2_distance")[0, 1] == pytest.approx(expected, rel=1e-6)


def test_batches_mix_tasks_of_one_shape_alone(monkeypatch):
    case = make_case("text", samples=[5, 6, 4])
    short = case.tasks["m1"][0]
    case.tasks["m1"] = ({key: values[:, :5] for key, values in short.items()}, *case.tasks["m1"][1:])
    case.tasks["m1"][0]["attention_mask"][:, 0] = 1
    sizes = []
    forward = Text.forward
    monkeypatch.setattr(
        Text,
        "forward",
        lambda self, **inputs: sizes.append(tuple(inputs["input_ids"].shape)) or forward(self, **inputs),
    )
    run(case, metrics="activation", activation_batch_size=4)
    assert sizes[: len(sizes) // 3] == [(4, 9), (1, 9), (4, 5), (2, 5), (4, 9)]


def test_layer_tables_add_up_to_the_whole():
    case = make_case("convolutions")
    table = run(case, metrics="all", per_layer=True)
    assert list(table.metrics) == [*OF_WEIGHTS, *OF_RUNS]
    layers = table.per_layer("encoder_gradient_dot_product")
    parameters = [name for name, _ in case.make().named_parameters()]
    assert list(layers) == parameters
    assert "body.1.running_mean" in table.per_layer("task_vector_l2_distance")
    np.testing.assert_allclose(layers.sum(axis=1), table.to_pandas()["encoder_gradient_dot_product"], rtol=1e-12)
    squares = (table.per_layer("encoder_gradient_l2_distance") ** 2).sum(axis=1)
    np.testing.assert_allclose(squares, table.to_pandas()["encoder_gradient_l2_distance"] ** 2, rtol=1e-12)
    assert table.per_layer("encoder_gradient_cosine_similarity")["unused.weight"].isna().all()
    assert table.per_layer("activation_dot_product").empty
    assert table.per_layer("input_gradient_l2_distance").empty


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json"])
def test_tables_with_layers_are_read_back(tmp_path, suffix):
    table = run(make_case("convolutions"), metrics="all", per_layer=True)
    table.save(tmp_path / f"t.{suffix}")
    again = mergekern.MetricTable.load(tmp_path / f"t.{suffix}")
    pd.testing.assert_frame_equal(again.to_pandas(), table.to_pandas(), check_exact=True)
    for name in table.metrics:
        layers = table.per_layer(name)
        if suffix == "csv":  # which has no word on what is defined
            layers = layers.loc[:, layers.notna().any()] if name in OF_RUNS else layers
        pd.testing.assert_frame_equal(again.per_layer(name), layers, check_exact=True)


# --- counts


def test_each_model_runs_once(monkeypatch):
    """4 models, 10 samples a task: one sweep over 40 samples for activations, one over its own 10 for gradients."""
    case = make_case("transformer", models=4)
    forwards, backwards = [], []
    forward, backward = case.make.forward, torch.Tensor.backward
    monkeypatch.setattr(
        case.make, "forward", lambda self, x: forwards.append((len(x), torch.is_grad_enabled())) or forward(self, x)
    )
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **k: backwards.append(1) or backward(self, **k))
    run(case, metrics="all")
    assert forwards == [(32, False), (8, False), (8, True), (2, True)] * 4
    assert len(backwards) == 2 * 4
    for metrics, expected in {
        "activation": ([(40, False)] * 4, 0),
        "gradient": ([(10, True)] * 4, 4),
        "input_gradient_l2_distance": ([(10, True)] * 4, 4),
        "task-vector geometry": ([], 0),
    }.items():
        forwards.clear()
        backwards.clear()
        run(case, metrics=metrics, batch_size=10, activation_batch_size=40)
        assert (forwards, len(backwards)) == expected


def test_runs_cause_no_factorisation_and_input_gradients_no_others():
    case = make_case("transformer")
    statistics = mergekern.measure(
        case.models, case.base, metrics="input_gradient_l2_distance", calibration=case.calibration()
    )
    assert not statistics.has_spectra
    assert list(statistics.functional.kinds) == ["input_gradients"]


def test_progress_tells_what_runs():
    seen = []
    run(make_case("transformer"), metrics="all", progress=seen.append)
    told = [p.probe for p in seen if p.probe]
    assert told == [f"{what} of m{index}" for index in range(3) for what in ("activations", "gradients")]
    assert all(p.tensors_done == p.tensors_total and not p.tensor for p in seen if p.probe)
    assert (seen[-1].tensor, seen[-1].probe) == ("", "")


# --- memory


def test_what_the_budget_does_not_hold_goes_to_files(monkeypatch, tmp_path):
    case = make_case("convolutions")
    expected = run(case)
    written = []
    save = gradients.save_file
    monkeypatch.setattr(gradients, "save_file", lambda tensors, path: written.append(path) or save(tensors, path))
    assert_close(run(case), expected, rel=0, abs=0)
    assert not written
    # The gradients of a model take 1.3 KB, those of its inputs 4.3 KB.
    for budget, files in ((100_000, 0), (8_000, 3), (500, 6)):
        written.clear()
        assert_close(run(case, max_memory=budget, statistics=tmp_path / str(budget)), expected, rel=1e-13)
        assert len(written) == files
        assert all(path.parent.parent == tmp_path / str(budget) for path in written)
        left = {path.name for path in (tmp_path / str(budget)).iterdir()}
        assert left == {".lock", "bases", "blocks", "manifest.json"}


def test_gradient_files_are_gone_after_errors_and_kills(tmp_path, monkeypatch):
    case = make_case("convolutions")
    folder = tmp_path / "s"
    run(case, metrics="activation", statistics=folder)
    (folder / f"{gradients.FOLDER_PREFIX}killed").mkdir()
    (folder / f"{gradients.FOLDER_PREFIX}killed" / "encoder_0.safetensors").write_bytes(b"half")
    monkeypatch.setattr(
        gradients.GradientKeeper, "compare", lambda self, every: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run(case, statistics=folder, max_memory=500)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "bases", "blocks", "manifest.json"]


def test_no_room_for_gradients(monkeypatch):
    usage = gradients.shutil.disk_usage("/")
    monkeypatch.setattr(gradients.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OptionError, match=r"max_memory=500; .* has 10 left.*TMPDIR"):
        run(make_case("transformer"), max_memory=500)


# --- what is left as it was


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
    # Nor where a run is refused half-way.
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


# --- checkpoints of every kind


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_what_tensors_give(kind, tmp_path):
    case = make_case(kind)
    paths = {}
    for name, state in {"base": case.base, **case.models}.items():
        kept = {key: v for key, v in state.items() if key != "down.weight"}  # safetensors keep one of a tied pair
        paths[name] = tmp_path / f"{name}.safetensors"
        save_file(kept, paths[name])
    base = paths.pop("base")
    assert_close(run(case, paths, base), run(case), rel=0, abs=0)


def test_pickles_modules_and_half_precision(tmp_path):
    case = make_case("text")
    modules = {name: case.module(name) for name in case.models}
    expected = run(case)
    assert_close(run(case, modules), expected, rel=0, abs=0)
    paths = {name: tmp_path / f"{name}.pt" for name in modules}
    for name, path in paths.items():
        torch.save(case.models[name], path)
    assert_close(run(case, paths), expected, rel=0, abs=0)
    half = {n: {k: v.bfloat16() if v.is_floating_point() else v for k, v in m.items()} for n, m in case.models.items()}
    wide = {n: {k: v.float() if v.is_floating_point() else v for k, v in m.items()} for n, m in half.items()}
    assert_close(run(case, half), run(case, wide), rel=0, abs=0)


def test_integer_buffers_are_those_of_the_checkpoint(tmp_path):
    case = make_case("text")
    plain = run(case)
    for state in case.models.values():
        state["order"] = state["order"].flip(0)
    turned = run(case)
    assert (turned.to_pandas() - plain.to_pandas()).abs().to_numpy().max() > 1e-3
    for name, state in case.models.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    assert_close(run(case, {n: tmp_path / f"{n}.safetensors" for n in case.models}), turned, rel=0, abs=0)


def test_a_model_without_memory_of_its_own():
    case = make_case("convolutions")
    with torch.device("meta"):
        model = case.make()
    assert_close(run(case, model=model), run(case), rel=0, abs=0)


# --- statistics that are kept


@pytest.fixture
def counted(monkeypatch):
    """The kinds of statistics that runs measured."""
    measured = []
    original = Runs.measure

    def measure(self):
        measured.extend(sorted(self.kinds))
        return original(self)

    monkeypatch.setattr(Runs, "measure", measure)
    return measured


def test_statistics_are_kept_and_used_again(tmp_path, counted):
    case = make_case("convolutions")
    folder = tmp_path / "s"
    first = run(case, metrics="all", statistics=folder, per_layer=True)
    assert counted == ["activations", "encoder_gradients", "input_gradients"]
    again = run(case, metrics="all", statistics=folder, per_layer=True)
    assert len(counted) == 3
    assert again.provenance == first.provenance
    loaded = ZooStatistics.load(folder)
    assert loaded.functional.activations.mean.shape == (3, 8 * 4 * 4)
    loaded.save(tmp_path / "copy")
    for statistics in (loaded, ZooStatistics.load(tmp_path / "copy")):
        table = mergekern.MetricTable.from_statistics(statistics, per_layer=True)
        for found in (again, table):
            pd.testing.assert_frame_equal(found.to_pandas(), first.to_pandas(), check_exact=True)
            name = "encoder_gradient_l2_distance"
            pd.testing.assert_frame_equal(found.per_layer(name), first.per_layer(name), check_exact=True)
    with pytest.raises(OptionError, match=r"measured without activations.*calibration="):
        mergekern.MetricTable.from_statistics(mergekern.measure(case.models, case.base), "activation")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"batch_weighting": "sample"}, {"batch_size": 3}], ids=str)
def test_a_value_does_not_depend_on_what_else_is_asked_for(kind, options):
    case = make_case(kind)
    together = run(case, **options).to_pandas()
    for name in ("activation_l2_distance", "encoder_gradient_l2_distance", "input_gradient_l2_distance"):
        assert run(case, metrics=name, **options).to_pandas()[name].equals(together[name]), name


@pytest.mark.parametrize("metric", ["encoder_gradient_l2_distance", "input_gradient_l2_distance"])
def test_gradients_come_from_one_graph_whichever_is_asked_for(monkeypatch, metric):
    """Torch chooses kernels by what requires a gradient: on some processors values would differ in their last bits."""
    case, graphs = make_case("transformer"), []
    backward = torch.Tensor.backward

    def recorded(self, inputs):
        graphs.append([tuple(tensor.shape) for tensor in inputs])
        return backward(self, inputs=inputs)

    monkeypatch.setattr(torch.Tensor, "backward", recorded)
    run(case)
    together = list(graphs)
    graphs.clear()
    run(case, metrics=metric)
    assert graphs == together
    assert len(graphs[0]) == len(case.base) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_lacking_is_run(tmp_path, counted, kind):
    case = make_case(kind)
    run(case, metrics="activation", statistics=tmp_path / "s")
    run(case, metrics="input_gradient_l2_distance", statistics=tmp_path / "s")
    table = run(case, statistics=tmp_path / "s")
    assert counted == ["activations", "input_gradients", "encoder_gradients"]
    assert_close(table, run(case), rel=0, abs=0)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 4}, {"batch_weighting": "sample"}, {"layer": "blocks.1"}, {"dtype": torch.float64},
        {"loss": nn.functional.multi_margin_loss}, "weights", "labels", "inputs", "head", "structure",
    ],
    ids=lambda change: change if isinstance(change, str) else "-".join(change),
)  # fmt: skip
def test_other_inputs_are_run_again(tmp_path, counted, change):
    case = make_case("transformer")
    run(case, statistics=tmp_path / "s")
    counted.clear()
    options = change if isinstance(change, dict) else {}
    if change == "weights":
        case.models["m1"]["first_token"] = case.models["m1"]["first_token"] + 1e-3
    inputs, labels, (weight, bias) = case.tasks["m2"]
    if change == "labels":
        case.tasks["m2"] = inputs, (labels + 1) % 5, (weight, bias)
    if change == "inputs":
        case.tasks["m2"] = inputs + 1e-3, labels, (weight, bias)
    if change == "head":
        case.tasks["m2"] = inputs, labels, (weight, None)
    if change == "structure":
        options = {"model": case.make()}
        options["model"].blocks[0].norm_first = True
        options["model"].blocks[0].extra_repr = lambda: "norm_first"
    table = run(case, statistics=tmp_path / "s", **options)
    assert len(counted) == 3
    assert_close(table, run(case, **options), rel=0, abs=0)
    # Of changed weights, what is left of the tensor of the other models, and what is new.
    assert len(list((tmp_path / "s" / "blocks").iterdir())) == len(case.base) + 3 + 2 * (change == "weights")


def test_a_damaged_block_is_measured_again(tmp_path, counted, caplog):
    case = make_case("transformer")
    first = run(case, statistics=tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    block = tmp_path / "s" / "blocks" / f"{manifest['functional']['encoder_gradients']}.safetensors"
    content = bytearray(block.read_bytes())
    content[-9] ^= 1
    block.write_bytes(content)
    with pytest.raises(mergekern.StatisticsError, match="damaged"):
        ZooStatistics.load(tmp_path / "s")
    counted.clear()
    with caplog.at_level(logging.WARNING):
        again = run(case, statistics=tmp_path / "s")
    assert "computing it again" in caplog.text
    assert counted == ["encoder_gradients"]
    pd.testing.assert_frame_equal(again.to_pandas(), first.to_pandas(), check_exact=True)


def scaled_loss(factor):
    return lambda logits, labels: factor * nn.functional.cross_entropy(logits, labels)


def test_code_that_cannot_be_told_from_other_code_is_always_run(tmp_path, counted):
    case = make_case("transformer")
    for factor in (1.0, 2.0, 2.0):
        table = run(case, loss=scaled_loss(factor), statistics=tmp_path / "s")
        assert_close(table, run(case, loss=scaled_loss(factor)), rel=0, abs=0)
    assert len(counted) == 18
    found = mergekern.MetricTable.from_statistics(ZooStatistics.load(tmp_path / "s"), OF_RUNS)
    assert_close(found, table, rel=0, abs=0)


def test_without_calibration_the_weights_alone():
    case = make_case("transformer")
    table = mergekern.compute_all(case.models, case.base)
    assert list(table.metrics) == OF_WEIGHTS
    for metrics in ("activation", "encoder_gradient_l2_distance", ["stable_rank", "gradient"]):
        with pytest.raises(OptionError, match="models must be run for these; give calibration="):
            mergekern.compute_all(case.models, case.base, metrics=metrics)
    assert list(mergekern.compute_all(case.models, case.base, metrics=["all", "gradient"]).metrics) == OF_WEIGHTS


def test_provenance_says_what_the_models_ran_on():
    case = make_case("transformer")
    found = run(case).provenance["calibration"]
    assert found["model"] == "tests.support.encoders.Transformer"
    assert found["layer"] == "blocks.0"
    assert found["samples"] == {"m0": 10, "m1": 10, "m2": 10}
    assert found["content_hash"] == run(case).provenance["calibration"]["content_hash"]
    assert found["content_hash"] != run(case, batch_size=3).provenance["calibration"]["content_hash"]


# --- values that are not there


def test_different_numbers_of_samples():
    case = make_case("transformer", samples=[6, 6, 7])
    table = run(case)
    for name in ("cosine_similarity", "l2_distance", "dot_product"):
        column = table.to_pandas()[f"input_gradient_{name}"]
        assert list(column.isna()) == [False, True, True]
        assert table.to_pandas()[f"encoder_gradient_{name}"].notna().all()
        assert np.isfinite(np.diagonal(table.matrix(f"input_gradient_{name}"))).all()
    assert table.notes[0] == (
        "input gradients are compared only between tasks with equally many samples of one shape: "
        "6 samples of shape (1, 6, 6): m0, m1; 7 samples of shape (1, 6, 6): m2"
    )
    assert (
        sum("no value for 2 pairs" in note and "number or the shape of their samples" in note for note in table.notes)
        == 3
    )
    pair = run(case, {name: case.models[name] for name in ("m0", "m1")})
    assert table.to_pandas().loc[("m0", "m1")].to_list() == pair.to_pandas().loc[("m0", "m1")].to_list()


def test_a_zero_gradient_has_no_direction():
    case = make_case("transformer")
    inputs, labels, (weight, bias) = case.tasks["m1"]
    case.tasks["m1"] = inputs, labels, (torch.zeros_like(weight), bias)
    table = run(case)
    values = table.to_pandas().loc[("m0", "m1")]
    assert values[["encoder_gradient_cosine_similarity", "input_gradient_cosine_similarity"]].isna().all()
    assert values["encoder_gradient_dot_product"] == 0
    assert values["encoder_gradient_l2_distance"] > 0
    assert (
        "encoder_gradient_cosine_similarity: no value for 2 pairs, a gradient is zero: (m0, m1), (m1, m2)"
        in table.notes
    )
    assert values["activation_cosine_similarity"] > 0


def test_a_zero_activation_has_no_direction():
    model = nn.Linear(3, 2, bias=False)
    task = torch.ones(4, 3), torch.zeros(4, dtype=torch.long), (torch.ones(2, 2), None)
    models = {"a": {"weight": torch.zeros(2, 3)}, "b": {"weight": torch.ones(2, 3)}}
    calibration = Calibration(model, {"a": task, "b": task}, "")
    table = mergekern.compute_all(models, {"weight": torch.zeros(2, 3)}, metrics="activation", calibration=calibration)
    values = table.to_pandas().iloc[0]
    assert values[["activation_cosine_similarity", "activation_magnitude_ratio"]].isna().all()
    assert values["activation_l2_distance"] == pytest.approx(18**0.5)
    assert any("a mean activation is zero" in note for note in table.notes)


# --- what cannot be run


@pytest.fixture
def refused(tmp_path):
    """A function that holds a run to one error that says everything, and to writing nothing."""

    def refuse(error, says, case, *arguments, **options):
        with pytest.raises(error) as caught:
            run(case, *arguments, statistics=tmp_path / "s", **options)
        for words in says:
            assert words in str(caught.value)
        assert not (tmp_path / "s").exists()

    return refuse


def test_samples_missing_for_a_model(refused):
    case = make_case("transformer")
    tasks = {"m0": case.tasks["m0"], "m1 ": case.tasks["m1"], "m2": case.tasks["m2"]}
    refused(CalibrationError, ["no calibration samples for 'm1'", "did you mean 'm1 '"], case, tasks=tasks)


def test_state_dicts_that_do_not_fit(refused):
    case = make_case("transformer")
    state = case.models["m1"]
    state["head.weight"] = torch.ones(3, 3)
    state["first_token"] = torch.ones(1, 1, 13)
    del state["patches.bias"]
    says = ["checkpoint 'm1'", "Transformer", "missing: patches.bias", "not in the model: head.weight"]
    says.append("first_token is (1, 1, 13) instead of (1, 1, 12)")
    refused(MismatchError, says, case, on_mismatch="skip")
    case = make_case("text")
    for checkpoint in (case.base, *case.models.values()):
        checkpoint["order"] = torch.arange(4)
    refused(MismatchError, ["checkpoint 'm0': order is (4,) instead of (9,)"], case)


def test_tied_tensors_that_differ(refused):
    case = make_case("convolutions")
    case.models["m2"]["down.weight"] = case.models["m2"]["up.weight"] + 1
    case.base["down.weight"] = case.base["up.weight"].clone()
    refused(MismatchError, ["ties 'up.weight' and 'down.weight', but 'm2' holds different values"], case)


def test_labels_outside_the_logits_of_a_module(refused):
    case = make_case("transformer")
    inputs, labels, _ = case.tasks["m1"]
    labels[4] = 9
    case.tasks["m1"] = inputs, labels, nn.Sequential(nn.Linear(12, 5))
    refused(CalibrationError, ["task 'm1': label 9 of sample 4 is outside the head's 5 classes, 0 to 4"], case)


def test_a_head_of_another_width(refused):
    case = make_case("transformer")
    inputs, labels, _ = case.tasks["m1"]
    case.tasks["m1"] = inputs, labels, (torch.ones(9, 13), None)
    refused(CalibrationError, ["model 'm1'", "head of weight (9, 13)", "the model returns (8, 12)"], case)


def test_nan_loss(refused):
    case = make_case("transformer")
    case.tasks["m1"][2][0].fill_(float("nan"))
    refused(CalibrationError, ["model 'm1', samples 0 to 7: the loss is nan"], case)
    case.tasks["m1"][2][0].fill_(0.0)
    case.tasks["m1"][2][1].fill_(float("-inf"))
    refused(CalibrationError, ["the loss is nan"], case)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none"), "shape (8,)"),
        (lambda logits, labels: 0.5, "not a float"),
        (lambda logits, labels: logits.detach().sum(), "does not depend on the model"),
    ],
    ids=["vector", "number", "detached"],
)
def test_losses_that_are_none(refused, loss, says):
    refused(CalibrationError, ["model 'm0'", says], make_case("transformer"), loss=loss)


def test_infinite_gradients_and_activations(refused):
    case = make_case("transformer")
    refused(
        NonFiniteError, ["model 'm0': the gradient with respect to", "NaN or infinite"], case,
        loss=lambda logits, labels: (logits * 0.0).sum().sqrt(),
    )  # fmt: skip
    model = nn.Linear(3, 2, bias=False)
    task = torch.ones(4, 3), torch.zeros(4, dtype=torch.long), (torch.ones(2, 2), None)
    models = {"a": {"weight": torch.full((2, 3), 3e38)}, "b": {"weight": torch.ones(2, 3)}}
    calibration = Calibration(model, {"a": task, "b": task}, "")
    with pytest.raises(NonFiniteError, match="model 'a': the output of layer ''"):
        mergekern.compute_all(models, {"weight": torch.zeros(2, 3)}, metrics="activation", calibration=calibration)


class Twice(nn.Module):
    """Runs one layer twice, another never, and a third that gives integers."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.whole = nn.Linear(3, 3), nn.Identity(), nn.Identity()
        self.words = nn.ModuleDict({"none": nn.Identity()})

    def forward(self, samples):
        self.whole(torch.arange(len(samples)))
        return self.twice(self.twice(samples))


@pytest.mark.parametrize("layer", ["twice", "never", "whole"])
@pytest.mark.parametrize("what", ["layer", "input_layer"])
def test_layers_that_do_not_run_once_or_give_no_numbers(layer, what):
    base = Twice().state_dict()
    task = torch.ones(4, 3), torch.zeros(4, dtype=torch.long), (torch.ones(2, 3), None)
    names = {"layer": "", "input_layer": "", what: layer}
    calibration = Calibration(Twice(), {"a": task, "b": task}, names["layer"], input_layer=names["input_layer"])
    models = {name: {k: v + 1 for k, v in base.items()} for name in "ab"}
    says = {"twice": "runs 2 times", "never": "runs not at all", "whole": "gives torch.int64"}[layer]
    with pytest.raises(CalibrationError, match=f"^{what} '{layer}' {says}"):
        mergekern.compute_all(models, base, calibration=calibration)


def test_activations_that_are_not_one_for_each_sample(refused):
    case = make_case("transformer")
    refused(CalibrationError, ["layer 'blocks.0' gives (30, 5, 12) for 30 samples", "5 activations"], case, token_dim=0)
    case = make_case("convolutions")
    inputs, labels, head = case.tasks["m1"]
    case.tasks["m1"] = nn.functional.pad(inputs, (0, 1)), labels, head
    refused(CalibrationError, ["gives 128 values for some samples and 160 for others"], case)


def test_integer_inputs_without_an_input_layer(refused):
    case = make_case("text")
    case.input_layer = None
    refused(CalibrationError, ["task 'm0': its inputs are integers alone", "input_layer="], case)
    assert len(run(case, metrics=["activation", "encoder_gradient_l2_distance"]).metrics) == 5


def test_a_function_that_returns_no_module(refused):
    refused(CalibrationError, ["returned a int, not an nn.Module"], make_case("transformer"), model=lambda: 3)
    refused(CalibrationError, ["layer 'blocks.0'", "Linear"], make_case("transformer"), model=lambda: nn.Linear(2, 2))


# --- devices


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_models_run_on_the_device(kind, monkeypatch):
    """There, or here with the device's `gram` alone, by its interpreter."""
    from mergekern.kernels.gram import on_triton

    case, kernels = make_case(kind), backend()
    expected = run(case, dtype=torch.float64)
    devices, grams = set(), []

    def forward(module, arguments, output):
        devices.add(output[0].device.type if isinstance(output, tuple) else output.device.type)

    gram = on_triton.gram

    def counted(blocks, *rest):
        grams.extend(tuned for _, tuned in blocks())
        return gram(blocks, *rest)

    monkeypatch.setattr(on_triton, "gram", counted)
    handle = nn.modules.module.register_module_forward_hook(forward)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    state = torch.cuda.get_rng_state() if DEVICE.type == "cuda" else None
    try:
        prober = Probes(open_zoo(case.models, case.base), case.calibration(), frozenset(FUNCTIONAL))
        first, second = (prober.measure(kernels, 1, 1 << 30)[0] for _ in range(2))
    finally:
        handle.remove()
    assert devices == {DEVICE.type}
    assert grams
    assert all(vector.device.type == DEVICE.type for vectors in grams for vector in vectors)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before
    assert state is None or torch.equal(torch.cuda.get_rng_state(), state)
    for name, part in first.kinds.items():
        assert np.array_equal(part.inner, second.kinds[name].inner)
    for part, name in ((first.activations, "activation"), (first.encoder_gradients, "encoder_gradient")):
        np.testing.assert_allclose(part.inner, expected.matrix(f"{name}_dot_product"), rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_a_table_by_the_device_is_that_of_the_cpu(monkeypatch):
    case, kernels = make_case("transformer"), backend()
    expected = run(case, dtype=torch.float64)
    monkeypatch.setattr(dispatch, "choose", lambda device: kernels)
    assert_close(run(case, dtype=torch.float64), expected)
