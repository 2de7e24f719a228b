"""Merge probes beside merging and running every model by hand, and what a method does alone."""

import itertools

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from torch import nn

import mergekern
from mergekern import MismatchError
from mergekern.functional.merge_probes import merge_probes
from mergekern.metrics import MERGE_PROBES
from tests.functional.merge_probes import catch_merges, linear_calibration, run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


def outcome(case, state, task):
    """Loss and accuracy of a state dict on a task, by plain PyTorch."""
    module = case.make()
    module.load_state_dict(state)
    inputs, labels, (weight, bias) = case.tasks[task]
    with torch.no_grad():
        module.eval()
        features = module(**inputs) if isinstance(inputs, dict) else module(inputs)
        logits = features @ weight.T + bias
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def by_hand(case, method, merge):
    """The probes of every pair from `merge`: (a, b or None) -> state dict."""
    single = {name: outcome(case, state, name) for name, state in case.models.items()}
    rows = {}
    for a, b in itertools.combinations(case.models, 2):
        row = {}
        for kind, both in (("solo", (merge(a, None), merge(b, None))), ("direct", (merge(a, b),) * 2)):
            found = [outcome(case, state, task) for state, task in zip(both, (a, b), strict=True)]
            losses = [merged[0] - single[task][0] for merged, task in zip(found, (a, b), strict=True)]
            shares = [merged[1] / single[task][1] for merged, task in zip(found, (a, b), strict=True)]
            row |= {f"{kind}_loss_mean[{method}]": np.mean(losses), f"{kind}_loss_worst[{method}]": max(losses)}
            row |= {f"{kind}_accuracy_mean[{method}]": np.mean(shares), f"{kind}_accuracy_worst[{method}]": min(shares)}
        rows[a, b] = row
    return pd.DataFrame(rows).T


@pytest.mark.parametrize(("kind", "method"), [("transformer", "tsv"), ("convolutions", "ties"), ("text", "isotropic")])
def test_agrees_with_merging_and_running_by_hand(kind, method):
    case = make_case(kind, samples=37)

    def merge(a, b):
        other = {"second": case.base} if b is None else {"second": case.models[b]}
        return mergekern.merge({"first": case.models[a], **other}, case.base, method)

    frame = run(case, method, direct=True).to_pandas()
    expected = by_hand(case, method, merge)
    assert list(frame) == list(expected[frame.columns]) == [f"{name}[{method}]" for name in MERGE_PROBES]
    pd.testing.assert_frame_equal(frame, expected[frame.columns], rtol=1e-5, atol=1e-5, check_names=False)
    assert frame.std().min() > 1e-3


# Methods whose merge of one task vector with a zero one follows from their papers.
KNOWN_ALONE = ["weight_average", "task_arithmetic", "ties", "tsv", "isotropic", "isotropic_cts", "tall_masks"]


def alone(method, delta):
    """Return the merge of one task vector with a zero one, a matrix or a vector, by the paper of the method."""
    if method == "weight_average":
        return delta / 2
    if method == "task_arithmetic":
        return 0.3 * delta
    if method == "tall_masks":
        return delta
    if method == "ties":
        kept = np.sort(np.abs(delta).ravel())[::-1][int(0.2 * delta.size) - 1]
        return 0.3 * np.where(np.abs(delta) >= kept, delta, 0)
    if delta.ndim == 1:
        return delta / 2
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    rank = len(values)
    if method == "tsv":
        return left[:, : rank // 2] * values[: rank // 2] @ right[: rank // 2]
    if method == "isotropic":
        return values[: rank // 2].sum() / rank * left[:, : rank // 2] @ right[: rank // 2]
    assert method == "isotropic_cts"  # 80 % of the directions are common, and half of the rest belong to the model
    kept = int(0.8 * rank) + round((rank - int(0.8 * rank)) / 2)
    return values[:kept].sum() / rank * left[:, :kept] @ right[:kept]


@pytest.mark.parametrize("method", KNOWN_ALONE)
def test_alone_a_method_does_what_its_paper_says(method, monkeypatch):
    """The state dicts that the models run with are recorded, and compared with merges of one model with the base."""
    draw = np.random.default_rng(0)
    base = {"weight": draw.standard_normal((10, 20)), "bias": draw.standard_normal(10)}
    deltas = {name: {key: draw.standard_normal(v.shape) for key, v in base.items()} for name in "ab"}
    models = {name: {key: base[key] + delta[key] for key in base} for name, delta in deltas.items()}
    caught = catch_merges(monkeypatch)
    merge_probes(models, base, calibration=linear_calibration("ab"), methods=method)
    assert list(caught) == [(method, "a"), (method, "b")]
    for (_, name), merged in caught.items():
        for key, delta in deltas[name].items():
            np.testing.assert_allclose(merged[key].numpy() - base[key], alone(method, delta), atol=1e-9)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_alone_dare_keeps_the_elements_that_it_keeps_in_a_pair(method, monkeypatch):
    draw = np.random.default_rng(0)
    base = {"weight": np.zeros((10, 20)), "bias": np.zeros(10)}
    models = {name: {key: draw.standard_normal(v.shape) for key, v in base.items()} for name in "ab"}
    caught = catch_merges(monkeypatch)
    merge_probes(models, base, calibration=linear_calibration("ab"), methods=method, direct=True)
    factor = {"dare": 1 / 0.1 / 2, "dare_ties": 0.3 / 0.1}[method]
    a, b, both = (caught[method, names]["weight"].numpy() for names in ("a", "b", "a + b"))
    for merged, name in ((a, "a"), (b, "b")):
        kept = merged != 0
        assert 0.02 < kept.mean() < 0.2
        np.testing.assert_allclose(merged[kept], factor * models[name]["weight"][kept])
    one = (a != 0) ^ (b != 0)  # an element that only one model keeps has the same value in the pair
    np.testing.assert_allclose(both[one], (a + b)[one])
    assert (both[(a == 0) & (b == 0)] == 0).all()


def test_solo_probes_are_of_single_models():
    case = make_case("transformer", models=4)
    table = run(case, "ties")
    assert len(table.metrics) == 4
    mean, worst = (table.matrix(f"solo_loss_{what}[ties]") for what in ("mean", "worst"))
    own = np.diagonal(mean)
    np.testing.assert_allclose(mean, (own[:, None] + own) / 2)
    np.testing.assert_allclose(worst, np.maximum(own[:, None], own))
    lowest = table.matrix("solo_accuracy_worst[ties]")
    np.testing.assert_allclose(lowest, np.minimum.outer(np.diagonal(lowest), np.diagonal(lowest)))


def test_tall_masks_leaves_a_model_alone_as_it_is():
    table = run(make_case("text"), "tall_masks")
    assert np.abs(table.matrix("solo_loss_worst[tall_masks]")).max() < 1e-6


def test_batches_and_the_order_of_models_do_not_matter():
    case = make_case("convolutions", samples=11)
    frame = run(case, ["tsv", "dare"], direct=True).to_pandas()
    for size in (1, 4):
        other = run(case, ["tsv", "dare"], direct=True, calibration=case.calibration(activation_batch_size=size))
        pd.testing.assert_frame_equal(other.to_pandas(), frame, rtol=1e-5, atol=1e-6)
    turned = run(case, ["tsv", "dare"], {name: case.models[name] for name in ("m2", "m0", "m1")}, direct=True)
    for name in frame:
        np.testing.assert_array_equal(turned.matrix(name)[1, 0], frame.loc[("m0", "m2"), name])
    small = run(case, ["tsv", "dare"], direct=True, merged_memory=1).to_pandas()
    pd.testing.assert_frame_equal(small, frame, check_exact=True)


def test_options_of_methods():
    case = make_case("transformer")
    plain, all_of_it = run(case, "ties"), run(case, "ties", options={"ties": {"density": 1.0, "scale": 1.0}})
    assert np.abs(all_of_it.matrix("solo_loss_mean[ties]")).max() < 1e-5
    assert np.abs(plain.matrix("solo_loss_mean[ties]")).max() > 1e-2
    assert all_of_it.provenance["merge_probes"]["methods"]["ties"]["density"] == 1.0


def test_labels_that_are_no_classes_have_losses_alone():
    calibration = linear_calibration("ab", loss=nn.functional.mse_loss)
    models = {name: {"weight": np.ones((10, 20)), "bias": np.full(10, float(value))} for value, name in enumerate("ab")}
    base = {"weight": np.zeros((10, 20)), "bias": np.zeros(10)}
    table = merge_probes(models, base, calibration=calibration, methods="weight_average", direct=True)
    assert list(table.metrics) == [f"{name}[weight_average]" for name in MERGE_PROBES if "loss" in name]
    assert not table.notes
    inputs, labels, _ = calibration.tasks["a"]

    def loss(value, share):
        features = share * inputs.double().sum(1, keepdim=True) + value
        return nn.functional.mse_loss(features.expand(-1, 10), labels.double()).item()

    expected = np.mean([loss(0, 0.5) - loss(0, 1), loss(0.5, 0.5) - loss(1, 1)])
    assert table.matrix("solo_loss_mean[weight_average]")[0, 1] == pytest.approx(expected)


def test_losses_that_are_not_finite_have_no_value_and_are_not_measured_again(tmp_path):
    calibration = linear_calibration("abc", dtype=torch.float32, scale=1e37)
    draw = np.random.default_rng(0)
    scales = {"a": 1e3, "b": 1e3, "c": 1e-37}
    models = {
        name: {"weight": scale * draw.standard_normal((10, 20)), "bias": np.zeros(10)} for name, scale in scales.items()
    }
    base = {"weight": np.zeros((10, 20)), "bias": np.zeros(10)}
    arguments = {"calibration": calibration, "methods": "weight_average", "statistics": tmp_path / "kept"}
    table = merge_probes(models, base, **arguments)
    assert np.isnan(table.matrix("solo_loss_mean[weight_average]")[0, 1])
    assert np.isfinite(table.matrix("solo_loss_mean[weight_average]")[2, 2])
    assert any("a loss is not finite" in note and "(a, b)" in note for note in table.notes)
    seen = []
    merge_probes(models, base, progress=seen.append, **arguments)
    assert [step.activity for step in seen] == [""]


def test_adapters_are_probed_as_the_models_they_make(tmp_path):
    torch.manual_seed(0)
    case = make_case("transformer", samples=37)
    full, adapters = {}, {}
    for name in case.models:
        model = peft.get_peft_model(
            built(case), peft.LoraConfig(r=8, target_modules=["linear1", "linear2"], init_lora_weights=False)
        )
        model.save_pretrained(tmp_path / name)
        adapters[name], full[name] = tmp_path / name, model.merge_and_unload().state_dict()
    found, expected = (run(case, ["tsv", "ties"], models, direct=True) for models in (adapters, full))
    assert found.to_pandas().filter(like="loss").std().min() > 1e-3
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), rtol=1e-4, atol=1e-4)


def built(case):
    module = case.make()
    module.load_state_dict(case.base)
    return module


def test_half_precision_and_tensors_that_not_all_share():
    case = make_case("transformer")
    half = {name: {k: v.bfloat16() for k, v in state.items()} for name, state in case.models.items()}
    base = {name: values.bfloat16() for name, values in case.base.items()}
    found, near = run(case, "weight_average", half, base).to_pandas(), run(case, "weight_average").to_pandas()
    losses = [name for name in near if "loss" in name]
    np.testing.assert_allclose(found[losses], near[losses], atol=0.1)
    assert (found != near).any().any()
    case.models["m1"]["extra"] = torch.ones(2)
    with pytest.raises(MismatchError, match="extra"):
        run(case, "ties")
    with pytest.raises(MismatchError, match="not in the model: extra"):
        run(case, "ties", on_mismatch="skip")
