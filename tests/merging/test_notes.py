"""What takes no part in a merge is shown and in its record, briefly however much it is."""

import json
import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mergekern
from mergekern._internal.notes import bounded
from mergekern._internal.text import NAMED
from mergekern.merging.merge import merge


def make_zoo(folder, base, model, as_folders=False):
    folder.mkdir()
    for name, tensors in {"base": base, "a": model, "b": model}.items():
        if as_folders:
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(f'{{"num_labels": {len(tensors["head"])}}}')
        save_file(tensors, folder / name / "model.safetensors" if as_folders else folder / f"{name}.safetensors")
    return folder


def test_skipped_tensors_are_shown_and_recorded(tmp_path, caplog):
    base = {"w": torch.zeros(3, 5), "emb": torch.zeros(7, 5), "ids": torch.arange(3)}
    model = {"w": torch.ones(3, 5), "emb": torch.ones(9, 5), "head": torch.ones(4, 5), "ids": torch.arange(3)}
    zoo = make_zoo(tmp_path / "zoo", base, model)
    expected = [
        "tensors that do not match, and are the base's (1): emb",
        "tensors that the base does not have, and are left out (1): head",
        "integer tensors, which are the base's (1): ids",
        "1 integer tensor takes no part (10.7 % of the bytes): ids (in base)",
        "1 integer tensor takes no part (7.0 % of the bytes): ids (in all 2 models)",
    ]
    with caplog.at_level(logging.INFO, "mergekern.notes"):
        path = merge(zoo, method="ties", output=tmp_path / "m.safetensors", on_mismatch="skip")
    assert [(record.levelname, record.message) for record in caplog.records] == list(
        zip(["WARNING", "WARNING", "INFO", "INFO", "INFO"], expected, strict=True)
    )
    record = json.loads((tmp_path / "m.mergekern.json").read_text())
    assert record["notes"] == expected
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["mergekern"]) == record
    caplog.clear()
    merge(zoo, method="ties", on_mismatch="skip")
    assert expected[0] in caplog.text
    mergekern.merge_all(zoo, methods="ties", output=tmp_path / "all", on_mismatch="skip")
    assert json.loads((tmp_path / "all/ties/a+b.mergekern.json").read_text())["notes"] == expected


def test_a_skipped_head_is_the_bases(tmp_path):
    base = {"body": torch.zeros(3, 5), "head": torch.zeros(11, 5)}
    zoo = make_zoo(tmp_path / "zoo", base, {"body": torch.ones(3, 5), "head": torch.ones(3, 5)}, as_folders=True)
    out = merge(zoo, method="weight_average", output=tmp_path / "m", on_mismatch="skip")
    assert json.loads((out / "mergekern.json").read_text())["notes"] == [
        "tensors that do not match, and are the base's (1): head"
    ]
    assert json.loads((out / "config.json").read_text()) == {"num_labels": 11}


@pytest.mark.parametrize("count", [NAMED, 5000])
def test_records_stay_short(tmp_path, count):
    skipped = {f"t{index:04d}": torch.zeros(1) for index in range(count)}
    zoo = make_zoo(tmp_path / "zoo", {"w": torch.zeros(2), **skipped}, {"w": torch.ones(2)})
    merge(zoo, method="ties", output=tmp_path / "m.safetensors", on_mismatch="skip")
    text = (tmp_path / "m.mergekern.json").read_text()
    assert len(text) < 2000
    assert f"({count:,}): t0000, t0001" in text
    assert ("and 4,980 more" in text) == (count == 5000)


def test_notes_of_a_record_are_bounded():
    found = bounded([f"note {index}" for index in range(4321)])
    assert len(found) == 101
    assert found[-1] == "and 4,221 more notes"
