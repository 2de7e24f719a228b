"""Values of the metrics that run models: against plain autograd, in any order, with every layer."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mergekern
from mergekern import Calibration
from tests.functional.tables import KINDS, assert_close, run
from tests.reference.pairs import pair_functional_metrics
from tests.support.encoders import Text, make_case
from tests.support.names import OF_RUNS, OF_WEIGHTS

GRADIENTS = [name for name in OF_RUNS if "gradient" in name]

pytestmark = pytest.mark.usefixtures("one_thread")


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
    # The order of the tasks does not change a bit either, though batches mix tasks.
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
        if suffix == "csv":  # CSV does not record which layers have a value
            layers = layers.loc[:, layers.notna().any()] if name in OF_RUNS else layers
        pd.testing.assert_frame_equal(again.per_layer(name), layers, check_exact=True)


def linear_cka(one, other):
    """Return the linear CKA of activations (n, h) as a ratio of norms of products of features."""
    one, other = (activations - activations.mean(axis=0) for activations in (one, other))
    return np.square(other.T @ one).sum() / (np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other))


@pytest.mark.parametrize("kind", KINDS)
def test_linear_cka_compares_the_samples_one_by_one(kind, tmp_path):
    case = make_case(kind, dtype=torch.float64)
    seen = {name: [] for name in case.models}
    for name, activations in seen.items():
        module = case.module(name, torch.float64).eval()
        module.get_submodule(case.layer).register_forward_hook(lambda _, __, output, to=activations: to.append(output))
        with torch.no_grad():
            for inputs, _, _ in (task for _, task in sorted(case.tasks.items())):
                module(**inputs) if isinstance(inputs, dict) else module(inputs)
    flat = {
        name: torch.cat([output.mean(dim=1) if output.dim() == 3 else output.flatten(1) for output in outputs]).numpy()
        for name, outputs in seen.items()
    }
    metrics = ["activation", "activation_linear_cka"]
    table = run(case, dtype=torch.float64, metrics=metrics, statistics=tmp_path / "s", activation_batch_size=7)
    for a, b in itertools.combinations(case.models, 2):
        found = table.to_pandas().loc[(a, b), "activation_linear_cka"]
        assert found == pytest.approx(linear_cka(flat[a], flat[b]), rel=1e-9)
    np.testing.assert_allclose(np.diagonal(table.matrix("activation_linear_cka")), 1.0, rtol=1e-12)
    again = mergekern.MetricTable.from_statistics(mergekern.ZooStatistics.load(tmp_path / "s"), metrics)
    pd.testing.assert_frame_equal(again.to_pandas(), table.to_pandas(), check_exact=True)
    alone = run(case, dtype=torch.float64, metrics=metrics[:1], activation_batch_size=7)
    pd.testing.assert_frame_equal(alone.to_pandas(), table.to_pandas()[list(alone.metrics)], check_exact=True)
    few = run(case, dtype=torch.float64, metrics=metrics[1:], max_memory=4096, activation_batch_size=7)  # in files
    pd.testing.assert_series_equal(few.to_pandas()[metrics[1]], table.to_pandas()[metrics[1]], rtol=1e-12)
