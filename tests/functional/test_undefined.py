"""Pairs without a value, and the notes that say why."""

import numpy as np
import pytest
import torch
from torch import nn

import mergekern
from mergekern import Calibration
from tests.functional.tables import run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


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
