"""Statistics of normalisation layers, and buffers of infinities, in merges."""

import json

import pytest
import torch

import mergekern
from mergekern import METHODS
from mergekern.checkpoints import open_zoo
from mergekern.errors import NonFiniteError
from mergekern.merging.normalisation import averaged_statistics
from tests.merging.zoos import first, fitting


def state(variance, count, mask=float("-inf"), shift=0.0):
    return {
        "conv.weight": torch.eye(4) + shift,
        "mask": torch.triu(torch.full((4, 4), mask), 1),
        "bn.running_mean": torch.full((4,), -variance),
        "bn.running_var": torch.full((4,), variance),
        "bn.num_batches_tracked": torch.tensor(count),
    }


@pytest.mark.parametrize("method", sorted(METHODS))
def test_statistics_are_averaged_by_every_method(method):
    """gstoica27/ZipIt#11: an extrapolated variance is negative."""
    models = {"a": state(0.25, 10, shift=0.5), "b": state(0.125, 13, shift=-1.0), "c": state(0.03125, 16)}
    models = first(models, fitting(method, 3))
    variance, count = {1: (0.25, 10), 2: (0.1875, 12), 3: (0.40625 / 3, 13)}[len(models)]
    for max_memory in (None, 96):
        merged = mergekern.merge(models, state(4.0, 1), method, max_memory=max_memory)
        torch.testing.assert_close(merged["bn.running_var"], torch.full((4,), variance), rtol=1e-6, atol=0)
        assert torch.equal(merged["bn.running_mean"], -merged["bn.running_var"])
        assert merged["bn.num_batches_tracked"] == count
        assert torch.equal(merged["mask"], state(1.0, 1)["mask"])


def test_weights_of_the_mean():
    models, base = {"a": state(1.0, 10), "b": state(3.0, 30)}, state(9.0, 0)

    def variance(**weights):
        return mergekern.merge(models, base, "task_arithmetic", weights=weights)["bn.running_var"][0].item()

    assert variance(a=3, b=1) == 1.5
    assert variance(a=1, b=-1) == variance(a=0, b=0) == 2.0
    assert averaged_statistics(open_zoo(models, base)) == ("bn.running_mean", "bn.running_var")


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_statistics_and_masks_are_no_part_of_the_vector_that_is_trimmed(scope):
    options = {"density": 0.25, "scope": scope}
    models = {"a": state(1e3, 1, shift=0.5), "b": state(2e3, 1, shift=0.25)}
    merged = mergekern.merge(models, state(0.5, 1), "ties", options=options)
    alone = {name: {"conv.weight": each["conv.weight"]} for name, each in models.items()}
    expected = mergekern.merge(alone, {"conv.weight": torch.eye(4)}, "ties", options=options)
    assert torch.equal(merged["conv.weight"], expected["conv.weight"])


@pytest.mark.parametrize("method", ["weight_average", "tsv"])
def test_infinities_that_differ_are_refused(method):
    models = {"a": state(1.0, 1), "b": state(1.0, 1)}
    models["b"]["mask"][3, 0] = 1.0
    with pytest.raises(NonFiniteError, match="'mask' holds NaN or infinite"):
        mergekern.merge(models, state(1.0, 1), method)


def test_the_record_of_a_merge_names_what_was_averaged(tmp_path):
    models = {"a": state(0.25, 10), "b": state(0.125, 13)}
    mergekern.merge(models, state(4.0, 1), "ties", output=tmp_path / "m.safetensors")
    notes = json.loads((tmp_path / "m.mergekern.json").read_text())["notes"]
    assert "statistics of normalisation layers, which are averaged (2): bn.running_mean, bn.running_var" in notes
