"""Folders of merges load as the base's does: other files, sub-folders, and what config.json says of the weights."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoints.configuration import configuration_of_result
from mergekern.checkpoints.folder_files import folder_files


@pytest.fixture
def folders(tmp_path):
    """Folders base, a and b, with weights 0, 1 and 3."""
    for name, value in {"base": 0.0, "a": 1.0, "b": 3.0}.items():
        make_model(tmp_path / name, {"w": torch.full((3, 5), value)})
    return tmp_path


def make_model(folder, tensors, config="{}"):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(config)


def merged(folders, out="m", **how):
    models = [folders / "a", folders / "b"]
    return mergekern.merge(models, folders / "base", "weight_average", output=folders / out, **how)


def record(out):
    return json.loads((out / "mergekern.json").read_text())


def test_files_and_folders_beside_the_weights(folders):
    # arcee-ai/mergekit#286, huggingface/transformers#36588
    base = folders / "base"
    kept = [
        "tokenizer.json",
        "vocab.txt",
        "LICENSE",
        "modeling_x.py",
        "1_Pooling/config.json",
        "templates/deep/rag.jinja",
    ]
    stale = [
        "README.md", "training_args.bin", "tf_model.h5", "adapter_config.json", "quantize_config.json",
        "trainer_state.json", "all_results.json", "onnx/model.onnx", "openvino/openvino_model.bin", "runs/events",
        "checkpoint-50/model.safetensors",
    ]  # fmt: skip
    for name in (*kept, *stale, ".git/HEAD", ".gitattributes", "1_Pooling/.DS_Store"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(f"of {name}")
    (base / "merges.txt").symlink_to(base / "vocab.txt")
    (base / "gone.txt").symlink_to(base / "nothing")
    (base / "templates/again").symlink_to(base)
    (base / "templates/itself").symlink_to(base / "templates")
    os.mkfifo(base / "pipe")
    out = merged(folders)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {*kept, "merges.txt", "config.json", "mergekern.json", "model.safetensors"}
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert (out / "merges.txt").read_text() == "of vocab.txt"
    names = sorted({name.partition("/")[0] for name in stale} | {"gone.txt", "pipe"})
    assert folder_files(base, ["model.safetensors"]).left == tuple(names)
    note = next(note for note in record(out)["notes"] if note.startswith("not copied"))
    assert note == f"not copied from the base's folder ({len(names)}): {', '.join(names)}"


def test_weights_in_a_sub_folder_are_merged_by_themselves(folders, caplog):
    # huggingface/sentence-transformers#3776
    for name, value in {"base": 1.0, "a": 2.0, "b": 6.0}.items():
        make_model(folders / name / "2_Dense", {"linear.weight": torch.full((2, 5), value)}, '{"in_features": 5}')
    out = merged(folders)
    assert (load_file(out / "model.safetensors")["w"] == 2).all()
    assert (load_file(out / "2_Dense/model.safetensors")["linear.weight"] == 4).all()
    assert json.loads((out / "2_Dense/config.json").read_text()) == {"in_features": 5}
    assert "sub-folders with weights, each merged by itself: 2_Dense" in record(out)["notes"]
    assert [model["name"] for model in record(out / "2_Dense")["models"]] == ["a/2_Dense", "b/2_Dense"]
    paths = mergekern.merge_all([folders / "a", folders / "b"], folders / "base", "ties", output=folders / "all")
    assert (paths[0] / "2_Dense/model.safetensors").is_file()
    caplog.clear()
    file = merged(folders, "m.safetensors")
    assert list(load_file(file)) == ["w"]
    assert "sub-folders with weights, which are left out: 2_Dense" in caplog.text
    table = mergekern.compute_all([folders / "a", folders / "b"], folders / "base", metrics="stable_rank")
    assert "weights in sub-folders take no part in metrics: 2_Dense (in the base and all 2 models)" in table.notes


def test_weights_in_a_sub_folder_that_a_model_lacks_are_the_bases(folders):
    for name in ("base", "a"):
        make_model(folders / name / "2_Dense", {"linear.weight": torch.ones(2, 5) * len(name)})
    make_model(folders / "b" / "3_Other", {"x": torch.ones(1)})
    out = merged(folders)
    assert (load_file(out / "2_Dense/model.safetensors")["linear.weight"] == 4).all()
    notes = record(out)["notes"]
    assert "sub-folders with weights that not all models have, and are the base's: 2_Dense" in notes
    assert "sub-folders with weights, which are left out: 3_Other" in notes


def test_sub_folders_that_do_not_fit_are_refused(folders):
    for name, rows in {"base": 2, "a": 2, "b": 3}.items():
        make_model(folders / name / "2_Dense", {"linear.weight": torch.ones(rows, 5)})
    with pytest.raises(
        mergekern.MismatchError, match=r"linear.weight: shape \(2, 5\) in 'base', \(3, 5\) in 'b/2_Dense'"
    ):
        merged(folders)
    assert not (folders / "m").exists()


CONFIGURATIONS = {
    "dtype": ({"dtype": "float32"}, {"dtype": "bfloat16"}),
    "older": ({"torch_dtype": "float16", "hidden_size": 8}, {"torch_dtype": "bfloat16", "hidden_size": 8}),
    "none": ({"hidden_size": 8, "torch_dtype": None}, {"hidden_size": 8, "torch_dtype": None}),
    "parts": (
        {"dtype": "float32", "text_config": {"dtype": "float32"}, "decoder": {"torch_dtype": "float32", "x": [1]}},
        {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "decoder": {"torch_dtype": "bfloat16", "x": [1]}},
    ),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}, "x": 1}, {"x": 1}),
    "parts of fp8": ({"text_config": {"quantization_config": {}}}, {"text_config": {}}),
    "mlx": ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, {}),
    "labels": ({"label2id": {"quantization": 3, "dtype": 1}}, {"label2id": {"quantization": 3, "dtype": 1}}),
}


@pytest.mark.parametrize(("config", "expected"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_config_says_what_was_written(folders, config, expected):
    # unslothai/unsloth#1601
    (folders / "base/config.json").write_text(json.dumps(config))
    out = merged(folders, dtype="bfloat16")
    assert json.loads((out / "config.json").read_text()) == expected


def test_a_config_that_is_true_is_copied_as_it_is(folders):
    text = '{"dtype":   "float32"}'
    (folders / "base/config.json").write_text(text)
    assert (merged(folders) / "config.json").read_text() == text


def test_a_tie_that_a_merge_undoes():
    config = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}, "vision_config": {"x": 1}}
    assert configuration_of_result(config, dtype=None, is_tied=False) == {
        "tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False}, "vision_config": {"x": 1}
    }  # fmt: skip
