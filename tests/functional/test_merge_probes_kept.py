"""Merge probes continue where a killed run stopped; and what is refused."""

import pandas as pd
import pytest
import torch

import mergekern
from mergekern import CalibrationError, MismatchError, OptionError, StatisticsError
from mergekern.metrics import MERGE_PROBES
from tests.functional.merge_probes import catch_merges, run
from tests.support.encoders import make_case

SOLO = [name for name in MERGE_PROBES if name.startswith("solo")]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_that_was_killed_continues(tmp_path, monkeypatch):
    case = make_case("transformer", models=4)
    folder = tmp_path / "kept"
    arguments = {"methods": ["tsv", "weight_average"], "direct": True}
    whole = run(case, **arguments).to_pandas()
    measured = catch_merges(monkeypatch)
    taken, real = [], mergekern.functional.merge_probes._MethodProbes.put

    def killed(self, *arguments):
        taken.append(arguments)
        if len(taken) > 9:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mergekern.functional.merge_probes._MethodProbes, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            run(case, statistics=folder, **arguments)
    assert sorted(path.name for path in folder.iterdir()) == ["tsv.safetensors", "weight_average.safetensors"]
    first = len(measured)
    measured.clear()
    pd.testing.assert_frame_equal(run(case, statistics=folder, **arguments).to_pandas(), whole, check_exact=True)
    assert 0 < len(measured) < 20 - 7 < first + 20
    measured.clear()
    pd.testing.assert_frame_equal(run(case, statistics=folder, **arguments).to_pandas(), whole, check_exact=True)
    assert not measured
    more = run(case, ["tsv", "weight_average", "ties"], statistics=folder)
    assert {method for method, _ in measured} == {"ties"}
    pd.testing.assert_frame_equal(
        more.to_pandas()[[f"{name}[tsv]" for name in SOLO]], whole[[f"{n}[tsv]" for n in SOLO]]
    )


@pytest.mark.parametrize("what", ["weights", "base", "samples", "options", "names", "damaged"])
def test_what_belongs_to_other_inputs_is_measured_again(what, tmp_path):
    case, folder = make_case("transformer"), tmp_path / "kept"
    run(case, "ties", statistics=folder)
    options = {}
    if what == "weights":
        case.models["m1"]["patches.bias"] = case.models["m1"]["patches.bias"] + 1
    elif what == "base":
        case.base["patches.bias"] = case.base["patches.bias"] + 1
    elif what == "samples":
        inputs, labels, head = case.tasks["m1"]
        case.tasks["m1"] = (inputs + 1, labels, head)
    elif what == "options":
        options["options"] = {"ties": {"density": 0.5}}
    elif what == "names":
        case.models = {name: case.models[f"m{(int(name[1]) + 1) % 3}"] for name in case.models}
    else:
        (folder / "ties.safetensors").write_bytes(b"nothing")
    found, expected = run(case, "ties", statistics=folder, **options), run(case, "ties", **options)
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), check_exact=True)


def test_progress_counts_merges():
    seen = []
    run(make_case("transformer"), ["ties", "tsv"], direct=True, progress=seen.append)
    assert [step.activity for step in seen][:3] == ["ties of m0", "tsv of m0", "ties of m1"]
    assert seen[-1].activity == ""
    assert seen[-1].tensors_done == seen[-1].tensors_total > 0
    assert len(seen) == 2 * (3 + 3) + 1


def test_bad_input_is_named(tmp_path):
    case = make_case("transformer")
    with pytest.raises(OptionError, match=r"unknown merge method 'tis' \(did you mean 'ties'"):
        run(case, "tis")
    with pytest.raises(CalibrationError, match="no calibration samples for 'extra'"):
        run(case, "ties", {**case.models, "extra": case.models["m0"]})
    (tmp_path / "file").write_text("")
    with pytest.raises(StatisticsError, match="is a file"):
        run(case, "ties", statistics=tmp_path / "file")
    bad = {name: {k: v * torch.nan if v.is_floating_point() else v for k, v in state.items()} if name == "m1" else state
           for name, state in case.models.items()}  # fmt: skip
    with pytest.raises(mergekern.NonFiniteError, match="m1"):
        run(case, "ties", bad, statistics=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    lacking = {name: values for name, values in case.base.items() if name != "patches.bias"}
    with pytest.raises(MismatchError, match=r"'base' does not fit.*missing: patches.bias"):
        run(case, "ties", base=lacking, on_mismatch="skip")
