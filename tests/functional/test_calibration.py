"""Calibration data: which are refused, and how they are saved to folders and read back."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mergekern import Calibration, CalibrationError, MergekernError, OptionError, OutputError
from mergekern._internal.files import write_atomically
from mergekern.cli.calibration import _check_output
from tests.support.encoders import make_case

INPUTS, LABELS = torch.ones(6, 4), torch.arange(6) % 3
HEAD = (torch.ones(3, 5), torch.zeros(3))


def give(inputs=INPUTS, labels=LABELS, head=HEAD, layer="0", model=None, **options):
    model = model or nn.Sequential(nn.Linear(4, 5), nn.GELU())
    return Calibration(model, {"a": (INPUTS, LABELS, HEAD), "b": (inputs, labels, head)}, layer, **options)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"labels": torch.tensor([0, 1, 2, 3, 1, 9])}, "label 3 of sample 3 is outside the head's 3 classes, 0 to 2"),
        ({"labels": torch.tensor([0, 1, -100, 3, 1, 1])}, "label -100 of sample 2 is outside"),
        ({"labels": LABELS, "head": nn.Linear(5, 2)}, "label 2 of sample 2 is outside the head's 2 classes, 0 to 1"),
        ({"labels": LABELS - 1, "head": nn.Sequential()}, "label -1 of sample 0 is negative"),
        ({"labels": LABELS.float()}, "labels are torch.float32, but cross-entropy takes the integers of classes"),
        ({"labels": LABELS > 1}, "labels are torch.bool"),
        ({"labels": LABELS[:4]}, "the samples do not match: 6 of inputs, 4 of labels"),
        ({"labels": torch.tensor(1)}, "6 of inputs, a scalar of labels"),
        ({"labels": [0, 1]}, "labels: a tensor or array is needed, not a list"),
        ({"inputs": INPUTS[:0], "labels": LABELS[:0]}, "no samples"),
        ({"inputs": "images"}, "inputs: a tensor or array is needed, not a str"),
        ({"inputs": {}}, "an empty mapping"),
        ({"inputs": {"ids": INPUTS, "mask": INPUTS[:5]}}, "6 of ids, 5 of mask, 6 of labels"),
        ({"inputs": {"ids": None}}, "inputs 'ids': a tensor or array is needed, not a NoneType"),
        ({"inputs": INPUTS / 0}, "inputs holds NaN or infinite values"),
        ({"head": HEAD[0]}, "a head is an nn.Module or"),
        ({"head": (HEAD[0], HEAD[1], 1)}, "not a tuple of 3"),
        ({"head": (HEAD[0], torch.zeros(5))}, "not (3, 5) and (5,)"),
        ({"head": (torch.ones(3), None)}, "not (3,) and None"),
        ({"head": (HEAD[0].long(), None)}, "a head is floating-point weight"),
        ({"layer": "1.mlp"}, "layer '1.mlp' is not a module of the Sequential"),
        ({"layer": "nothing"}, "; it has 0, 1, …"),
        ({"input_layer": "o"}, "input_layer 'o' is not a module"),
        ({"model": 3}, "a function that returns one, not a int"),
        ({"loss": 3}, "loss is a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_refused_when_it_is_given(given, says):
    with pytest.raises(CalibrationError) as caught:
        give(**given)
    assert says in str(caught.value)
    if given.keys() <= {"inputs", "labels", "head"}:
        assert str(caught.value).startswith("task 'b': ")


@pytest.mark.parametrize("tasks", [{}, [], {"a": 1}, {"a": (INPUTS, LABELS)}, None], ids=str)
def test_tasks_that_are_none(tasks):
    with pytest.raises(CalibrationError, match=r"\(inputs, labels, head\)"):
        Calibration(nn.Linear(4, 5), tasks, "")


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0}, {"batch_size": True}, {"activation_batch_size": 2.5}, {"batch_weighting": "mean"},
        {"token_dim": 3}, {"token_dim": True}, {"dtype": torch.int64}, {"dtype": "float32"},
        {"dtype": torch.float8_e5m2},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        give(**options)


def test_names_of_layers_that_are_near():
    case = make_case("transformer")
    with pytest.raises(CalibrationError, match=r"did you mean 'blocks\.\d\.linear1' or .* or "):
        case.calibration(layer="block.0.linear1")


def test_arrays_and_their_own_values():
    images = np.zeros((6, 4), dtype=np.float32)
    images.flags.writeable = False
    task = give(images, LABELS.numpy().astype(np.int32), [np.ones((3, 5)), None]).tasks["b"]
    assert task.inputs.shape == (6, 4)
    assert task.labels.dtype == torch.int64
    assert task.head[1] is None


def test_other_losses_take_other_labels():
    loss = nn.functional.mse_loss
    assert give(labels=torch.full((6, 3), 0.5), loss=loss).tasks["b"].labels.shape == (6, 3)
    assert give(labels=LABELS + 100, loss=loss).tasks["b"].labels.max() == 102


# --- folders


def test_a_saved_folder_gives_the_same_calibration(tmp_path):
    case = make_case("text")
    case.tasks["m1"] = (*case.tasks["m1"][:2], (case.tasks["m1"][2][0], None))
    head = nn.Linear(10, 5)
    case.tasks["m2"] = (*case.tasks["m2"][:2], head)
    given = case.calibration(batch_size=5, batch_weighting="sample", dtype=torch.float64)
    given.save(tmp_path / "samples")
    read = Calibration.from_folder(tmp_path / "samples", case.make)
    assert read.batch_size == 5
    assert read.dtype == torch.float64
    assert (read.layer, read.input_layer) == ("block", "embed")
    for name, task in given.tasks.items():
        again = read.tasks[name]
        assert {key: values.tolist() for key, values in again.inputs.items()} == {
            key: values.tolist() for key, values in task.inputs.items()
        }
        assert torch.equal(again.labels, task.labels)
    assert torch.equal(read.tasks["m2"].head[0], head.weight)
    assert read.tasks["m1"].head[1] is None
    model = case.make()
    assert read.content_hash(model) != given.content_hash(model)  # a head module is read back as a pair of tensors
    read.save(tmp_path / "again")
    assert Calibration.from_folder(tmp_path / "again", model).content_hash(model) == read.content_hash(model)


def test_options_go_before_those_of_the_folder(tmp_path):
    calibration = give(batch_size=4)
    calibration.save(tmp_path)
    read = Calibration.from_folder(tmp_path, calibration.model, "1", batch_size=2)
    assert (read.layer, read.batch_size) == ("1", 2)
    (tmp_path / "calibration.json").unlink()
    assert Calibration.from_folder(tmp_path, calibration.model, "1").batch_size == 8
    with pytest.raises(CalibrationError, match=r"no calibration\.json names the layer.*layer="):
        Calibration.from_folder(tmp_path, calibration.model)


def test_a_loss_is_not_in_the_folder(tmp_path):
    give(labels=torch.zeros(6), loss=nn.functional.mse_loss).save(tmp_path)
    model = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(CalibrationError, match="give loss="):
        Calibration.from_folder(tmp_path, model)
    assert Calibration.from_folder(tmp_path, model, loss=nn.functional.mse_loss).batch_size == 8


def test_a_save_that_is_stopped_is_known_to_be(tmp_path, monkeypatch):
    case = make_case("text")
    written = []

    def stopped(path, content):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr("mergekern.functional.calibration.folder.write_atomically", stopped)
    with pytest.raises(KeyboardInterrupt):
        case.calibration().save(tmp_path / "s")
    with pytest.raises(CalibrationError, match="s: the calibration was not written to its end"):
        Calibration.from_folder(tmp_path / "s", case.make)
    _check_output(tmp_path / "s", overwrite=False)
    case.calibration().save(tmp_path / "s")
    with pytest.raises(OutputError, match="is there already"):
        _check_output(tmp_path / "s", overwrite=False)
    assert Calibration.from_folder(tmp_path / "s", case.make).tasks.keys() == case.tasks.keys()


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(CalibrationError, match="a head that is a Sequential cannot be saved"):
        give(head=nn.Sequential()).save(tmp_path / "s")
    calibration = Calibration(nn.Linear(4, 5), {"../a": (INPUTS, LABELS, HEAD)}, "")
    with pytest.raises(CalibrationError, match=r"task '\.\./a': cannot be the name of a file"):
        calibration.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_folders_that_are_none(tmp_path):
    model = nn.Sequential(nn.Linear(4, 5))

    def refused(says):
        with pytest.raises(MergekernError, match=says) as caught:
            Calibration.from_folder(tmp_path, model)
        assert type(caught.value) is CalibrationError

    (tmp_path / "calibration.json").write_text('{"layer": "0"}')
    refused("not a folder of calibration samples")
    with pytest.raises(CalibrationError, match="not a folder of calibration samples"):
        Calibration.from_folder(tmp_path / "gone", model, "0")
    (tmp_path / "a.safetensors").write_bytes(b"half")
    refused(r"a\.safetensors: not a readable safetensors file")
    save_file({"test.inputs": INPUTS}, tmp_path / "a.safetensors")
    refused(r"a\.safetensors: lacks labels, head\.weight, inputs; it holds test\.inputs")
    for content in ("[1]", "{", '{"batch": 3}', '{"dtype": "float31"}', '{"dtype": 3}'):
        (tmp_path / "calibration.json").write_text(content)
        refused(r"calibration\.json: not readable options")
    (tmp_path / "calibration.json").write_text('{"layer": "0", "batch_size": "many"}')
    save_file({"inputs": INPUTS, "labels": LABELS, "head.weight": HEAD[0]}, tmp_path / "a.safetensors")
    with pytest.raises(OptionError, match="batch_size"):
        Calibration.from_folder(tmp_path, model)


def test_files_are_plain(tmp_path):
    give().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "calibration.json"]
    assert set(load_file(tmp_path / "a.safetensors")) == {"inputs", "labels", "head.weight", "head.bias"}
    assert json.loads((tmp_path / "calibration.json").read_text())["layer"] == "0"
