"""The pass over the layers: it reads ahead, and holds no more layers than its budget."""

import dataclasses
import threading

import pandas as pd
import pytest
import torch

import mergekern
from mergekern.checkpoints import Layer
from mergekern.kernels import dispatch


def test_a_layer_is_read_while_another_is_factorised(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    base, *tuned = ({name: torch.randn(9, 6, generator=draw) for name in ("first", "second")} for _ in range(3))
    second_was_read, factorised = threading.Event(), []
    backend, hashes = dispatch.choose(), Layer.content_hashes

    def spectrum(*arguments):
        assert second_was_read.wait(30)
        factorised.append(arguments)
        return backend.spectrum(*arguments)

    def content_hashes(layer, *arguments):
        found = hashes(layer, *arguments)
        if layer.tensor.name == "second":
            assert not factorised
            second_was_read.set()
        return found

    monkeypatch.setattr(dispatch, "choose", lambda device: dataclasses.replace(backend, spectrum=spectrum))
    monkeypatch.setattr(Layer, "content_hashes", content_hashes)
    mergekern.compute_all(tuned, base)
    assert len(factorised) == 4


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_layers_in_flight_stay_in_the_budget(layers, monkeypatch):
    base = {f"w{index}": torch.randn(8, 8, generator=torch.Generator().manual_seed(index)) for index in range(9)}
    models = {name: {key: value * (1 + index) for key, value in base.items()} for index, name in enumerate("ab", 1)}
    expected = mergekern.compute_all(models, base).to_pandas()
    budget = layers * 3 * 8 * 8 * 4 + 1
    held, most = set(), []
    whole, release = Layer._whole, Layer.release

    def hold(layer):
        held.add(layer.tensor.name)
        most.append(len(held))
        return whole(layer)

    def let_go(layer):
        held.discard(layer.tensor.name)
        release(layer)

    monkeypatch.setattr(Layer, "_whole", hold)
    monkeypatch.setattr(Layer, "release", let_go)
    found = mergekern.compute_all(models, base, max_memory=budget).to_pandas()
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert max(most) <= layers
    assert not held
