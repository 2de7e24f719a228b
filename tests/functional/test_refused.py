"""Models, samples, heads and losses that cannot be run: one error that says what to change."""

import pytest
import torch
from torch import nn

import mergekern
from mergekern import Calibration, CalibrationError, MismatchError, NonFiniteError
from tests.functional.tables import run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def refused(tmp_path):
    """A function that expects a run to raise one complete error and to write nothing."""

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
    inputs, labels, (weight, bias) = case.tasks["m1"]
    case.tasks["m1"] = inputs, labels, (torch.full_like(weight, 3e38), bias)  # logits overflow
    refused(CalibrationError, ["model 'm1', samples 0 to 7: the loss is nan"], case)


@pytest.mark.parametrize(("part", "value"), [(0, float("nan")), (1, float("-inf"))])
def test_heads_that_are_not_finite(refused, part, value):
    case = make_case("transformer")
    case.tasks["m1"][2][part].fill_(value)
    refused(CalibrationError, ["task 'm1': the head holds NaN or infinite values"], case)


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
