"""Merges by the kernels of a GPU, interpreted and emulated where there is none, against those of the CPU."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import METHODS
from mergekern.kernels import dispatch
from mergekern.kernels.transfer import Uploader
from tests.merging.zoos import assert_equal, drawn, fitting
from tests.support.device import DEVICE, TRITON, backend, needs_gpu

pytestmark = TRITON

SHAPES = {"a": (37, 29), "b": (50, 40), "c": (501,), "d": (6, 5, 3), "one": (1,), "empty": (0,)}
CASES = [
    *((name, {}) for name in METHODS),
    ("ties", {"scope": "model"}),
    ("dare", {"mask": "magnitude", "scope": "model"}),
    ("dare_ties", {"scope": "model", "rate": 0.5}),
]


@pytest.fixture
def on_the_device(monkeypatch):
    """Return a function that calls a function of the package with the kernels of the device."""
    kernels = backend()

    def call(function, *arguments, **options):
        with monkeypatch.context() as patched:
            patched.setattr(dispatch, "choose", lambda device: kernels)
            return function(*arguments, **options)

    return call


def assert_same(found, expected, method):
    """Compare a merge with that of the CPU: to the last bit if it takes no sums over tensors, else to 1e-8 of 0.01."""
    if METHODS[method].matrix is None and METHODS[method].tensor is None:
        assert_equal(found, expected)
        return
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-8 * 0.01)


def on_the_cpu(*arguments, **options):
    return mergekern.merge(*arguments, device="cpu", **options)


@pytest.mark.parametrize(("method", "options"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_same_as_on_the_cpu(on_the_device, method, options):
    chosen = METHODS[method]
    base, tuned = drawn(fitting(method, 3), SHAPES)
    weights = [0.1, 0.7, 1.3][: len(tuned)]
    how = {"options": options, "weights": weights, "dtype": "float64" if chosen.matrix or chosen.tensor else None}
    expected = on_the_cpu(tuned, base, method, **how)
    assert_same(on_the_device(mergekern.merge, tuned, base, method, **how), expected, method)


@pytest.mark.parametrize("method", ["ties", "tsv", "multislerp"])
def test_larger_tensors_come_in_blocks(on_the_device, method):
    base, tuned = drawn(3, SHAPES)
    found = on_the_device(mergekern.merge, tuned, base, method, dtype="float64", max_memory=9000)
    assert_same(found, on_the_cpu(tuned, base, method, dtype="float64"), method)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_dtypes(on_the_device, dtype):
    base, tuned = drawn(2, {"w": (40, 30), "v": (77,)}, dtype, scale=0.3)
    tuned["model_1"] = {name: tensor.to(torch.float32) for name, tensor in tuned["model_1"].items()}
    chosen = {"dtype": "bfloat16"} if dtype == torch.float8_e4m3fn else {}
    for method in ("ties", "dare"):
        expected = on_the_cpu(tuned, base, method, **chosen)
        assert_equal(on_the_device(mergekern.merge, tuned, base, method, **chosen), expected)


def test_signs_that_cancel(on_the_device):
    """The sign of the whole tensor decides, and is known only after all of it has been counted."""
    base = {"w": torch.zeros(8)}
    tuned = {
        "a": {"w": torch.tensor([1.0, -4, -4, -4, 2, 0, 0, 0])},
        "b": {"w": torch.tensor([-1.0, -4, -4, 1, -2, 0, 0, 0])},
    }
    expected = on_the_cpu(tuned, base, "ties", options={"density": 0.9})
    assert expected["w"][0] < 0
    assert_equal(on_the_device(mergekern.merge, tuned, base, "ties", options={"density": 0.9}), expected)


def test_every_tensor_is_sent_once_for_all_merges(on_the_device, monkeypatch):
    base, tuned = drawn(4, {"a": (30, 20), "b": (77,)})
    sent, upload = [], Uploader.upload

    def counted(self, tensors, pool):
        sent.append([tensor.numel() for tensor in tensors])
        return upload(self, tensors, pool)

    monkeypatch.setattr(Uploader, "upload", counted)
    found = {}
    on_the_device(
        mergekern.merge_all, tuned, base, ["ties", "dare", "weight_average"],
        callback=lambda group, method, merged: found.update({(*group, method): merged}),
    )  # fmt: skip
    assert sorted(sent) == [[77] * 5, [600] * 5]
    assert len(found) == 18
    for (first, second, method), merged in found.items():
        assert_equal(merged, on_the_cpu({first: tuned[first], second: tuned[second]}, base, method))


def test_files(on_the_device, tmp_path):
    base, tuned = drawn(2, SHAPES)
    for name, tensors in {"base": base, **tuned}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in tuned]
    for method in ("ties", "isotropic"):
        target = tmp_path / f"merged_{method}.safetensors"
        assert on_the_device(mergekern.merge, paths, tmp_path / "base.safetensors", method, output=target) == target
        torch.testing.assert_close(load_file(target), on_the_cpu(tuned, base, method), rtol=0, atol=1e-6)
        with safe_open(target, "pt") as file:
            assert json.loads(file.metadata()["mergekern"])["device"] == backend().description


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_bad_values_are_named(on_the_device):
    base, tuned = drawn(2, SHAPES)
    tuned["model_1"]["c"][3] = float("nan")
    with pytest.raises(mergekern.NonFiniteError, match=r"tensor 'c' holds NaN or infinite values: 1 in 'model_1'"):
        on_the_device(mergekern.merge, tuned, base, "ties")


def test_too_little_memory_says_what_to_do(on_the_device, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")

    monkeypatch.setattr(Uploader, "upload", full)
    base, tuned = drawn(2, SHAPES)
    with pytest.raises(mergekern.OptionError, match=r"too little free memory .* 3\.00 GiB\. .* max_memory, or use"):
        on_the_device(mergekern.merge, tuned, base, "ties")


@needs_gpu
def test_weights_that_are_on_the_device_stay_there(on_the_device, monkeypatch):
    base, tuned = drawn(2, SHAPES)
    resident = {model: {name: value.to(DEVICE) for name, value in tensors.items()} for model, tensors in tuned.items()}
    found = on_the_device(mergekern.merge, resident, {name: value.to(DEVICE) for name, value in base.items()}, "ties")
    assert_equal({name: value.cpu() for name, value in found.items()}, on_the_cpu(tuned, base, "ties"))
