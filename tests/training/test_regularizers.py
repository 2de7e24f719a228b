"""Regularizers of fine-tuning: closed forms, finite differences, tied and frozen parameters, whole training loops."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mergekern
from mergekern import regularizers
from tests.support.encoders import Convolutions


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def network(dtype=torch.float64, seed=0):
    """A perceptron, and a base that differs from it a little."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    return model, {name: value + 0.1 * torch.randn_like(value) for name, value in model.state_dict().items()}


def examples(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(8, 4, dtype=dtype), torch.arange(8) % 3


def loss_of(model, dtype=torch.float64):
    inputs, labels = examples(dtype)
    return nn.functional.cross_entropy(model(inputs), labels)


def assert_gradients_are_those_of_differences(model, regularizer):
    """Compare the gradient of a regularizer with central differences along random directions."""
    gradients = torch.autograd.grad(regularizer(), list(model.parameters()), materialize_grads=True)
    for seed in range(3):
        torch.manual_seed(seed)
        steps = [torch.randn_like(parameter) for parameter in model.parameters()]
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for parameter, step in zip(model.parameters(), steps, strict=True):
                    parameter += sign * 1e-5 * step
            values.append(regularizer().item())
        expected = sum((gradient * step).sum().item() for gradient, step in zip(gradients, steps, strict=True))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-6)


def test_distance_is_that_of_the_flat_vectors(dtype):
    model, base = network(dtype)
    regularizer = regularizers.distance_from_base(model, base)
    assert regularizer.dtype == dtype
    flat = torch.cat([(value - base[name]).flatten() for name, value in model.state_dict().items()])
    torch.testing.assert_close(regularizer, flat.square().sum())
    regularizer.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * (parameter.detach() - base[name]))


def test_distance_by_finite_differences():
    model, base = network()
    assert_gradients_are_those_of_differences(model, lambda: regularizers.distance_from_base(model, base))


def test_tied_parameters_count_once_under_either_name():
    torch.manual_seed(0)
    model = Convolutions()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    moved = {name: value + 0.5 if value.is_floating_point() else value for name, value in state.items()}
    count = sum(parameter.numel() for parameter in model.parameters())
    assert regularizers.distance_from_base(model, moved).item() == pytest.approx(0.25 * count, rel=1e-5)
    moved.pop("up.weight")
    assert regularizers.distance_from_base(model, moved).item() == pytest.approx(0.25 * count, rel=1e-5)


def test_frozen_parameters_and_buffers_do_not_count():
    model, base = network()
    model[0].requires_grad_(False)
    base = {name: base[name] for name in ("2.weight", "2.bias")}
    expected = sum((model.state_dict()[name] - base[name]).square().sum() for name in base)
    torch.testing.assert_close(regularizers.distance_from_base(model, base), expected)
    squares = torch.autograd.grad(loss_of(model), list(model[2].parameters()))
    expected = sum(gradient.square().sum() for gradient in squares)
    torch.testing.assert_close(regularizers.gradient_magnitude(loss_of(model), model), expected)


def test_sixteen_bit_parameters_are_summed_in_float32():
    model = nn.Linear(300, 300, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 0.125)
    regularizer = regularizers.distance_from_base(model, {"weight": torch.zeros(300, 300)})
    assert regularizer.dtype == torch.float32
    assert regularizer.item() == pytest.approx(300 * 300 / 64, rel=1e-6)


def test_gradient_magnitude_is_that_of_autograd(dtype):
    model, _ = network(dtype)
    regularizer = regularizers.gradient_magnitude(loss_of(model, dtype), model)
    assert regularizer.dtype == dtype
    loss_of(model, dtype).backward()
    torch.testing.assert_close(regularizer.detach(), sum(p.grad.square().sum() for p in model.parameters()))


def test_gradient_magnitude_by_finite_differences():
    model, _ = network()
    assert_gradients_are_those_of_differences(model, lambda: regularizers.gradient_magnitude(loss_of(model), model))


def test_gradient_magnitude_of_a_quadratic():
    """L = ½‖Aθ‖²: ∇L = AᵀAθ, and the gradient of its square is 2(AᵀA)²θ."""
    model = nn.Linear(3, 4, bias=False).double()
    torch.manual_seed(0)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    loss = model(inputs).square().sum() / 2
    regularizer = regularizers.gradient_magnitude(loss, model)
    square = inputs.T @ inputs
    torch.testing.assert_close(regularizer, (model.weight @ square).square().sum())
    regularizer.backward()
    torch.testing.assert_close(model.weight.grad, 2 * model.weight.detach() @ square @ square)


def test_gradient_magnitude_leaves_the_loss_to_be_used_and_unused_parameters_alone():
    model = nn.ModuleDict({"used": network()[0], "unused": nn.Linear(2, 2)})
    loss = loss_of(model["used"])
    (loss + 0.1 * regularizers.gradient_magnitude(loss, model)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model["used"].parameters())
    assert model["unused"].weight.grad is None
    other = loss_of(network()[0])
    assert regularizers.gradient_magnitude(other, model["unused"]).item() == 0


def test_fused_attention_is_an_error_that_names_the_cure():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.randn(2, 3, 8)

    def loss():
        return attention(tokens, tokens, tokens, need_weights=False)[0].square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        value = loss()
    (value + regularizers.gradient_magnitude(value, attention)).backward()
    value = loss()
    with pytest.raises(mergekern.OptionError, match=r"sdpa_kernel\(torch.nn.attention.SDPBackend.MATH\)"):
        regularizers.gradient_magnitude(value, attention)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_parts_inside_and_outside_add_up(dtype, k):
    model, base = network(dtype)
    subspaces = regularizers.leading_subspaces(base, k)
    assert set(subspaces) == {"0.weight", "2.weight"}
    for name, basis in subspaces.items():
        assert basis.dtype == dtype
        torch.testing.assert_close(basis.T @ basis, torch.eye(k, dtype=dtype), atol=1e-6, rtol=0)
        left = torch.linalg.svd(base[name]).U[:, :k]
        torch.testing.assert_close(basis @ basis.T, left @ left.T, atol=1e-5, rtol=0)
    parts = [regularizers.subspace_distance(model, base, subspaces, side) for side in ("inside", "outside")]
    matrices = [model.state_dict()[name] - base[name] for name in subspaces]
    torch.testing.assert_close(sum(parts), sum(matrix.square().sum() for matrix in matrices))
    expected = sum((subspaces[n].T @ m).square().sum() for n, m in zip(subspaces, matrices, strict=True))
    torch.testing.assert_close(parts[0], expected)


@pytest.mark.parametrize("side", ["inside", "outside"])
def test_subspace_distance_by_finite_differences(side):
    model, base = network()
    subspaces = regularizers.leading_subspaces(base, 2)
    assert_gradients_are_those_of_differences(
        model, lambda: regularizers.subspace_distance(model, base, subspaces, side)
    )


def train(regularizer, weight, steps=120):
    """Fine-tune from one base, and return the model and its base."""
    model, _ = network(seed=3)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss = loss + weight * regularizer(loss, model, base)
        loss.backward()
        optimizer.step()
    return model, base


MEASURES = {
    "distance": lambda loss, model, base: regularizers.distance_from_base(model, base),
    "gradient": lambda loss, model, base: regularizers.gradient_magnitude(loss, model),
    "subspace": lambda loss, model, base: regularizers.subspace_distance(
        model, base, regularizers.leading_subspaces(base, 1)
    ),
}


@pytest.mark.parametrize(
    ("measure", "weights"), [("distance", (0, 0.03, 0.3)), ("gradient", (0, 3, 10)), ("subspace", (0, 0.03, 0.3))]
)
def test_the_larger_its_weight_the_smaller_what_is_regularized(measure, weights):
    found = []
    for weight in weights:
        model, base = train(MEASURES[measure], weight)
        found.append(MEASURES[measure](loss_of(model), model, base).item())
    assert found[0] > 1.1 * found[1] > 1.1**2 * found[2]


def test_held_to_one_subspace_task_vectors_overlap():
    """Two models trained on different labels overlap more when both are held to the base's leading directions."""
    overlaps = []
    for weight in (0.0, 3.0):
        models = {}
        for name, shift in (("a", 0), ("b", 1)):
            model, _ = network(seed=3)
            base = {key: value.clone() for key, value in model.state_dict().items()}
            subspaces = regularizers.leading_subspaces(base, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            inputs, labels = examples()
            for _ in range(120):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), (labels + shift) % 3)
                (loss + weight * regularizers.subspace_distance(model, base, subspaces)).backward()
                optimizer.step()
            models[name] = model.state_dict()
        table = mergekern.compute_all(models, base, metrics="subspace_overlap", top_k=2)
        overlaps.append(table.to_pandas()["subspace_overlap"].item())
    assert overlaps[1] > overlaps[0] + 0.02


def test_bad_input():
    model, base = network()
    with pytest.raises(
        mergekern.MismatchError, match=r"parameter '2.bias' is not in the base.*encoder without its head"
    ):
        regularizers.distance_from_base(model, {name: base[name] for name in ("0.weight", "0.bias", "2.weight")})
    with pytest.raises(mergekern.MismatchError, match=r"'0.weight': \(6, 4\), in the base \(4, 6\)"):
        regularizers.distance_from_base(model, {**base, "0.weight": base["0.weight"].T})
    with pytest.raises(mergekern.OptionError, match="shares memory"):
        regularizers.distance_from_base(model, model.state_dict())
    with pytest.raises(mergekern.OptionError, match="requires a gradient"):
        regularizers.distance_from_base(nn.ReLU(), base)
    with pytest.raises(mergekern.OptionError, match=r"not \(8, 3\)"):
        regularizers.gradient_magnitude(model(examples()[0]), model)
    with pytest.raises(mergekern.OptionError, match="requires_grad=False"):
        regularizers.gradient_magnitude(loss_of(model).detach(), model)
    with pytest.raises(mergekern.MismatchError, match=r"subspace of '2.weigth'.*did you mean '2.weight'"):
        regularizers.subspace_distance(model, base, {"2.weigth": torch.eye(3)[:, :1]})
    with pytest.raises(mergekern.MismatchError, match=r"\(4, 1\) for a parameter of \(3, 6\)"):
        regularizers.subspace_distance(model, base, {"2.weight": torch.eye(4)[:, :1]})
    with pytest.raises(mergekern.OptionError, match="side must be"):
        regularizers.subspace_distance(model, base, {"2.weight": torch.eye(3)}, "left")
    with pytest.raises(mergekern.OptionError, match="k must be"):
        regularizers.leading_subspaces(base, 0)
