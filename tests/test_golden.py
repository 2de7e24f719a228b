"""The values that the published research code gives, whole and per layer, on every backend."""

import json

import pytest
import torch

import mergekern
from mergekern.kernels import dispatch
from tests.golden.zoo import GOLDEN, SPECS, make_functional_zoo, make_zoo
from tests.support.names import OF_RUNS, OF_WEIGHTS
from tests.support.tolerances import PUBLISHED


@pytest.fixture(params=dispatch.backends(), ids=lambda backend: backend.name)
def backend(request, monkeypatch):
    monkeypatch.setattr(dispatch, "backends", lambda: [request.param])
    return request.param


def published_names(expected):
    return set(next(iter(expected["pairs"].values())))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("max_memory", [None, 4000], ids=["whole", "in blocks"])
def test_agrees_with_the_published_code(spec, backend, max_memory):
    expected = json.loads((GOLDEN / f"golden_{spec}.json").read_text())
    base, tuned = make_zoo(SPECS[spec])
    zoo = {str(index): model for index, model in enumerate(tuned)}
    table = mergekern.compute_all(zoo, base, per_layer=True, max_memory=max_memory)
    assert table.provenance["backend"] == backend.name
    expected_notes = ("matrices are too small to tell models apart", "integer tensor takes no part")
    assert all(any(words in note for words in expected_notes) for note in table.notes)
    frame = table.to_pandas()
    assert list(frame.columns) == OF_WEIGHTS
    assert len(frame) == len(expected["pairs"])
    published = published_names(expected)
    assert len(published) == 18
    assert published <= set(OF_WEIGHTS)
    for name in published:
        layers = table.per_layer(name)
        for pair, values in expected["pairs"].items():
            assert set(values) == published
            at = tuple(pair.split("-"))
            assert frame.loc[at, name] == pytest.approx(values[name], rel=PUBLISHED, abs=PUBLISHED), (pair, name)
            for tensor, value in expected["per_layer"][pair][name].items():
                if tensor not in layers:
                    assert len(base[tensor].shape) != 2
                    assert value == 0.0
                else:
                    assert layers.loc[at, tensor] == pytest.approx(value, rel=PUBLISHED, abs=PUBLISHED), (pair, tensor)


def test_agrees_with_the_published_code_where_models_run(backend):
    expected = json.loads((GOLDEN / "golden_functional.json").read_text())
    base, tuned, heads, samples = make_functional_zoo()
    encoder = torch.nn.Sequential(
        torch.nn.Linear(12, 24), torch.nn.GELU(), torch.nn.Linear(24, 24), torch.nn.GELU(), torch.nn.Linear(24, 8)
    )
    calibration = mergekern.Calibration(
        encoder,
        {str(index): (*task, head) for index, (task, head) in enumerate(zip(samples, heads, strict=True))},
        expected["layer"],
        batch_size=expected["gradient_batch"],
        activation_batch_size=expected["activation_batch"],
    )
    zoo = {str(index): model for index, model in enumerate(tuned)}
    table = mergekern.compute_all(zoo, base, calibration=calibration)
    expected_notes = ("matrices are too small to tell models apart", "integer tensor takes no part")
    assert all(any(words in note for words in expected_notes) for note in table.notes)
    frame = table.to_pandas()
    assert list(frame.columns) == [*OF_WEIGHTS, *OF_RUNS]
    published = published_names(expected)
    assert len(published) == 10
    assert published <= set(OF_RUNS)
    for pair, values in expected["pairs"].items():
        assert set(values) == published
        for name, value in values.items():
            assert frame.loc[tuple(pair.split("-")), name] == pytest.approx(value, rel=PUBLISHED, abs=PUBLISHED), name
