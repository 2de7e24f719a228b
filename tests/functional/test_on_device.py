"""Models that run on a device."""

import numpy as np
import pytest
import torch
from torch import nn

from mergekern.checkpoints import open_zoo
from mergekern.functional.binding import Binding
from mergekern.functional.measure import measure_functional
from mergekern.kernels import dispatch
from mergekern.statistics import FUNCTIONAL
from tests.functional.tables import KINDS, assert_close, run
from tests.support.device import DEVICE, backend
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_models_run_on_the_device(kind, monkeypatch):
    """On a GPU everything runs on the device; without one, only the interpreted `gram` does."""
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
        binding = Binding(open_zoo(case.models, case.base), case.calibration(), frozenset(FUNCTIONAL))
        first, second = (measure_functional(binding, kernels, 1, 1 << 30)[0] for _ in range(2))
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
