"""What a head is survives a folder, or is refused; and what a folder says is checked."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mergekern
from mergekern import Calibration, CalibrationError, OptionError

METRICS = ["encoder_gradient_l2_distance", "input_gradient_dot_product", "encoder_gradient_cosine_similarity"]
DRAW = torch.Generator().manual_seed(11)
ENCODER = nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 4))
WEIGHTS = {name: torch.randn(3, 4, generator=DRAW) for name in "ab"}
SAMPLES = {name: (torch.randn(13, 7, generator=DRAW), torch.arange(13) % 3) for name in "ab"}
MODELS = {
    name: {key: value + 0.1 * torch.randn(value.shape, generator=DRAW) for key, value in ENCODER.state_dict().items()}
    for name in "ab"
}


class ZeroShot(nn.Linear):
    """A head as CLIP has it: cosines with the classes, times a scale."""

    def forward(self, features):
        return 20.0 * nn.functional.linear(features / features.norm(dim=-1, keepdim=True), self.weight)


def zero_shot(name):
    head = ZeroShot(4, 3, bias=False)
    head.weight.data = WEIGHTS[name].clone()
    return head


def measured(calibration):
    table = mergekern.compute_all(MODELS, ENCODER.state_dict(), metrics=METRICS, calibration=calibration)
    return table.to_pandas().to_numpy()


def test_a_folder_says_that_features_are_normalised(tmp_path):
    by_code = measured(Calibration(ENCODER, {name: (*SAMPLES[name], zero_shot(name)) for name in "ab"}, "1"))
    tasks = {name: (*SAMPLES[name], (WEIGHTS[name], None)) for name in "ab"}
    said = Calibration(ENCODER, tasks, "1", normalize_features=True, logit_scale=20.0)
    assert measured(said) == pytest.approx(by_code, rel=1e-5)
    said.save(tmp_path)
    again = Calibration.from_folder(tmp_path, ENCODER)
    assert (again.normalize_features, again.logit_scale) == (True, 20.0)
    assert (measured(again) == measured(said)).all()
    assert said.content_hash(ENCODER) == again.content_hash(ENCODER)
    plain = Calibration.from_folder(tmp_path, ENCODER, normalize_features=False, logit_scale=1.0)
    assert plain.content_hash(ENCODER) != said.content_hash(ENCODER)
    assert not (measured(plain) == measured(said)).any()


def hooked():
    head = nn.Linear(4, 3)
    head.register_forward_hook(lambda *_: None)
    return head


def replaced():
    head = nn.Linear(4, 3)
    head.forward = lambda features: features[:, :3]
    return head


@pytest.mark.parametrize("head", [
    zero_shot("a"), hooked(), replaced(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    nn.Sequential(nn.Linear(4, 3)),
], ids=["subclass", "hook", "another forward", "weight norm", "sequence"])  # fmt: skip
def test_a_head_that_is_code_is_not_saved_as_a_plain_one(tmp_path, head):
    calibration = Calibration(ENCODER, {"a": (*SAMPLES["a"], head)}, "1")
    with pytest.raises(CalibrationError, match="cannot be saved: it is code, which no file holds"):
        calibration.save(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_options_of_heads_are_of_weights(tmp_path):
    with pytest.raises(CalibrationError, match="does so itself"):
        Calibration(ENCODER, {"a": (*SAMPLES["a"], nn.Linear(4, 3))}, "1", normalize_features=True)
    for scale in (0, -1.0, float("nan"), float("inf"), True, "2"):
        with pytest.raises(OptionError, match="logit_scale"):
            Calibration(ENCODER, {"a": (*SAMPLES["a"], (WEIGHTS["a"], None))}, "1", logit_scale=scale)
    with pytest.raises(CalibrationError, match="the head holds NaN"):
        Calibration(ENCODER, {"a": (*SAMPLES["a"], (WEIGHTS["a"] * torch.nan, None))}, "1")


SAID = {
    "brackets": "[" * 100_000, "a list": "[]", "a size in a list": json.dumps({"batch_size": [8]}),
    "no size": json.dumps({"batch_size": 0}), "a huge size": '{"batch_size": 1' + "0" * 300 + "}",
    "another dtype": json.dumps({"dtype": "Tensor"}), "an unknown option": json.dumps({"layers": "1"}),
    "twice": '{"layer": "0", "layer": "1"}', "a scale of zero": json.dumps({"logit_scale": 0.0}),
    "a nested layer": json.dumps({"layer": ["1"]}), "no text": b"\xff\xfe",
}  # fmt: skip


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_wrong_options_are_refused(tmp_path, said):
    inputs, labels = SAMPLES["a"]
    save_file({"inputs": inputs, "labels": labels, "head.weight": WEIGHTS["a"]}, tmp_path / "a.safetensors")
    (tmp_path / "calibration.json").write_bytes(said if isinstance(said, bytes) else said.encode())
    with pytest.raises(CalibrationError, match=r"calibration\.json: not readable options") as caught:
        Calibration.from_folder(tmp_path, ENCODER)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
