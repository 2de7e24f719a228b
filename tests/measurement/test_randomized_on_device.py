"""svd="randomized" on a device: the table of the CPU, within the errors of both."""

import numpy as np
import pytest
import torch

import mergekern
from mergekern.kernels import dispatch, randomized_spectrum
from mergekern.kernels.randomized_spectrum import on_cpu
from mergekern.kernels.task_product import reference
from tests.kernels.test_randomized_spectrum import SPECTRA
from tests.kernels.test_spectrum import with_values
from tests.measurement.test_randomized import KINDS, assert_same
from tests.support.device import DEVICE, TRITON
from tests.support.device import backend as device_backend

on_cuda = pytest.importorskip("mergekern.kernels.randomized_spectrum.on_cuda", exc_type=ImportError)
direct = on_cuda.on_cuda
pytestmark = [*TRITON, pytest.mark.usefixtures("one_thread")]


def small_zoo():
    """Return a base and models with matrices that are iterated and factorised directly, one unchanged, and a vector."""
    generator = torch.Generator().manual_seed(0)
    base = {"wide": torch.randn(90, 130, generator=generator), "small": torch.randn(20, 12, generator=generator)}
    base["norm"] = torch.randn(7, generator=generator)
    models = {}
    for index, kind in enumerate(KINDS[:4]):
        own = with_values((90, 130), SPECTRA[kind](90), seed=index).float()
        noise = torch.randn(20, 12, generator=generator)
        models[f"m{index}"] = {"wide": base["wide"] + own, "small": base["small"] + noise, "norm": base["norm"] + 1}
    models["m1"]["small"] = base["small"]
    return base, models


def test_a_device_gives_the_values_of_the_cpu_within_their_errors(monkeypatch, tmp_path):
    for where in (on_cuda, on_cpu, randomized_spectrum):
        for name, value in {"BLOCK": 8, "SPARE": 6, "DIRECT": 32}.items():
            monkeypatch.setattr(where, name, value)
    if DEVICE.type == "cpu":  # an interpreted kernel takes long
        monkeypatch.setattr(direct, "task_product", reference.task_product)
    base, models = small_zoo()
    options = {"svd": "randomized", "per_layer": True, "top_k": 3, "spectrum_k": 12}
    expected = mergekern.compute_all(models, base, device="cpu", **options)
    monkeypatch.setattr(dispatch, "choose", lambda device: device_backend())
    found = mergekern.compute_all(models, base, statistics=tmp_path / "s", **options)
    assert found.metrics == expected.metrics
    assert found.estimated == expected.estimated
    assert found.provenance["svd"] == expected.provenance["svd"]
    assert found.provenance["device"] == device_backend().description
    assert found.provenance["redone_on_cpu"] == 0
    for metric in found.metrics:
        within = 2 * (found.error(metric) + expected.error(metric)) + 1e-9 * np.abs(expected.matrix(metric))
        assert (np.abs(found.matrix(metric) - expected.matrix(metric)) <= within).all(), metric
    # What is in the folder is taken from there, errors too.
    assert_same(mergekern.compute_all(models, base, statistics=tmp_path / "s", **options), found)


def test_what_fails_its_check_on_a_device_is_redone_with_its_errors(monkeypatch):
    spectra = on_cuda.spectra

    def damaged(*arguments):
        found = spectra(*arguments)
        found[0][0].good[2] = False
        return found

    monkeypatch.setattr(on_cuda, "spectra", damaged)
    monkeypatch.setattr(dispatch, "choose", lambda device: device_backend())
    base, models = small_zoo()
    for state in (base, *models.values()):
        del state["wide"]
    found = mergekern.compute_all(models, base, svd="randomized", top_k=3)
    assert found.provenance["redone_on_cpu"] == 1
    assert all(np.nanmax(found.error(metric)) < 1e-4 for metric in found.estimated)
