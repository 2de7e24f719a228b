"""What running the models costs: forward and backward passes, memory, files of gradients."""

import pytest
import torch

import mergekern
from mergekern import OptionError
from mergekern.functional import gradients
from tests.functional.tables import assert_close, run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_model_runs_once(monkeypatch):
    """4 models, 10 samples a task: one sweep over 40 samples for activations, one over its own 10 for gradients."""
    case = make_case("transformer", models=4)
    forwards, backwards = [], []
    forward, backward = case.make.forward, torch.Tensor.backward
    monkeypatch.setattr(
        case.make, "forward", lambda self, x: forwards.append((len(x), torch.is_grad_enabled())) or forward(self, x)
    )
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **k: backwards.append(1) or backward(self, **k))
    run(case, metrics="all")
    assert forwards == [(32, False), (8, False), (8, True), (2, True)] * 4
    assert len(backwards) == 2 * 4
    for metrics, expected in {
        "activation": ([(40, False)] * 4, 0),
        "gradient": ([(10, True)] * 4, 4),
        "input_gradient_l2_distance": ([(10, True)] * 4, 4),
        "task-vector geometry": ([], 0),
    }.items():
        forwards.clear()
        backwards.clear()
        run(case, metrics=metrics, batch_size=10, activation_batch_size=40)
        assert (forwards, len(backwards)) == expected


def test_runs_cause_no_factorisation_and_input_gradients_no_others():
    case = make_case("transformer")
    statistics = mergekern.measure(
        case.models,
        case.base,
        calibration=case.calibration(),
        options=mergekern.MeasureOptions("input_gradient_l2_distance"),
    )
    assert not statistics.has_spectra
    assert list(statistics.functional.kinds) == ["input_gradients"]


def test_progress_tells_what_runs():
    seen = []
    run(make_case("transformer"), metrics="all", progress=seen.append)
    told = [p.activity for p in seen if p.activity]
    assert told == [f"{what} of m{index}" for index in range(3) for what in ("activations", "gradients")]
    assert all(p.tensors_done == p.tensors_total and not p.tensor for p in seen if p.activity)
    assert (seen[-1].tensor, seen[-1].activity) == ("", "")


def test_what_the_budget_does_not_hold_goes_to_files(monkeypatch, tmp_path):
    case = make_case("convolutions")
    expected = run(case)
    written = []
    save = gradients.save_file
    monkeypatch.setattr(gradients, "save_file", lambda tensors, path: written.append(path) or save(tensors, path))
    assert_close(run(case), expected, rel=0, abs=0)
    assert not written
    # The gradients of a model take 1.3 KB, those of its inputs 4.3 KB.
    for budget, files in ((100_000, 0), (8_000, 3), (500, 6)):
        written.clear()
        assert_close(run(case, max_memory=budget, statistics=tmp_path / str(budget)), expected, rel=1e-13)
        assert len(written) == files
        assert all(path.parent.parent == tmp_path / str(budget) for path in written)
        left = {path.name for path in (tmp_path / str(budget)).iterdir()}
        assert left == {".lock", "bases", "blocks", "manifest.json"}


def test_gradient_files_are_gone_after_errors_and_kills(tmp_path, monkeypatch):
    case = make_case("convolutions")
    folder = tmp_path / "s"
    run(case, metrics="activation", statistics=folder)
    (folder / f"{gradients.FOLDER_PREFIX}killed").mkdir()
    (folder / f"{gradients.FOLDER_PREFIX}killed" / "encoder_0.safetensors").write_bytes(b"half")
    monkeypatch.setattr(
        gradients.GradientKeeper, "compare", lambda self, every: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run(case, statistics=folder, max_memory=500)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "bases", "blocks", "manifest.json"]


def test_no_room_for_gradients(monkeypatch):
    usage = gradients.shutil.disk_usage("/")
    monkeypatch.setattr(gradients.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OptionError, match=r"max_memory=500; .* has 10 left.*TMPDIR"):
        run(make_case("transformer"), max_memory=500)
