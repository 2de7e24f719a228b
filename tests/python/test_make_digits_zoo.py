"""make_digits_zoo.py: the files it writes, what the models learned, and that runs continue and repeat."""

import copy
import doctest
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import make_digits_zoo
import mergekern
from mergekern import cli
from mergekern.study.zoos import digits, encoders, making, tasks, texts

SCRIPT = Path(__file__).parents[2] / "python" / "make_digits_zoo.py"
TASKS = ("rotated", "parity", "three_or_eight")


@pytest.fixture(scope="module")
def script():
    """The program as a module, with short training."""
    options = copy.deepcopy(make_digits_zoo.OPTIONS)
    make_digits_zoo.OPTIONS["pretraining"]["steps"] = 100
    make_digits_zoo.OPTIONS["fine_tuning"]["steps"] = 40
    yield make_digits_zoo
    make_digits_zoo.OPTIONS.update(options)


@pytest.fixture(scope="module")
def zoo(script, tmp_path_factory) -> Path:
    """A zoo of the first three tasks, shared since it takes seconds to make; tests leave it as it was."""
    out = tmp_path_factory.mktemp("zoo") / "digits"
    result = run(script, out)
    assert result.exit_code == 0, result.output
    return out


def run(script: ModuleType, out: Path, *options: str) -> Result:
    """Run the program for three tasks."""
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(script.main, [str(out), "--tasks", "3", *options])
    finally:
        torch.set_num_threads(threads)


def contents(out: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("module", [make_digits_zoo, encoders, tasks, digits, texts, making], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("domain", [digits.DIGITS, texts.TEXTS], ids=["digits", "texts"])
def test_tasks_have_names_of_their_own_and_every_kind(domain):
    assert len({task.name for task in domain.tasks} | {"base"}) == 21
    assert {task.kind for task in domain.tasks} == {"transformed", "relabelled", "subset", "pairwise", "other"}


@pytest.mark.parametrize("domain", [digits.DIGITS, texts.TEXTS], ids=["digits", "texts"])
def test_every_task_has_examples_of_every_class_and_repeats(domain):
    inputs, classes = domain.load()
    for task in domain.tasks:
        first, second = (task.examples(inputs, classes, torch.Generator().manual_seed(0)) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True)), task.name
        kept = first[1][first[1] >= 0]
        assert first[0].shape == inputs.shape
        assert len(kept) >= 300, task.name
        assert kept.bincount().min() >= 60, task.name
        if task.kind in ("relabelled", "subset", "pairwise"):
            assert torch.equal(first[0], inputs)
        elif task.kind == "transformed":
            assert torch.equal(first[1], classes)
            assert not torch.equal(first[0], inputs)


def test_writes_just_the_files_of_a_zoo(zoo):
    models = {f"{name}.safetensors" for name in ("base", *TASKS)}
    calibration = {f"calibration/{name}.safetensors" for name in TASKS} | {"calibration/calibration.json"}
    assert set(contents(zoo)) == models | calibration | {"model.json"}


def test_every_parameter_tensor_of_the_encoder_moved(zoo):
    base = load_file(zoo / "base.safetensors")
    for name in TASKS:
        model = load_file(zoo / f"{name}.safetensors")
        assert {key: tensor.shape for key, tensor in model.items()} == {k: t.shape for k, t in base.items()}
        assert all(tensor.dtype == torch.float32 for tensor in model.values())
        for key, tensor in model.items():
            assert (tensor != base[key]).float().mean() > 0.99, key


def test_held_out_accuracy_clears_chance(zoo):
    config = json.loads((zoo / "model.json").read_text())
    assert tuple(config["tasks"]) == TASKS
    for record in (config["base"], *config["tasks"].values()):
        assert record["accuracy"] >= record["chance"] + 0.5 * (1 - record["chance"])
        assert record["description"]


def test_the_saved_files_give_the_recorded_accuracy(script, zoo):
    config = json.loads((zoo / "model.json").read_text())
    encoder = script.build_model(config)
    assert config["activations"] in dict(encoder.named_modules())
    for name, record in config["tasks"].items():
        encoder.load_state_dict(load_file(zoo / f"{name}.safetensors"))
        data = load_file(zoo / "calibration" / f"{name}.safetensors")
        with torch.no_grad():
            logits = encoder(data["test.inputs"]) @ data["head.weight"].T + data["head.bias"]
        accuracy = (logits.argmax(dim=1) == data["test.labels"]).double().mean().item()
        assert accuracy == pytest.approx(record["accuracy"], abs=0.01)  # threads may decide a near tie differently


@pytest.mark.parametrize(("name", "classes"), [("rotated", 10), ("parity", 2), ("three_or_eight", 2)])
def test_calibration_data_fit_the_task(zoo, name, classes):
    data = load_file(zoo / "calibration" / f"{name}.safetensors")
    assert json.loads((zoo / "model.json").read_text())["tasks"][name]["classes"] == classes
    assert data["inputs"].shape == (10, 1, 8, 8)
    assert data["labels"].shape == (10,)
    assert data["test.inputs"].shape == (len(data["test.labels"]), 1, 8, 8)
    assert data["head.weight"].shape == (classes, 64)
    assert data["head.bias"].shape == (classes,)
    assert {data[key].dtype for key in ("inputs", "test.inputs", "head.weight", "head.bias")} == {torch.float32}
    for labels in (data["labels"], data["test.labels"]):
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < classes


def test_mergekern_reads_the_folder(zoo):
    table = mergekern.compute_all(zoo, metrics="task_vector_cosine_similarity")
    assert sorted(table.models) == sorted(TASKS)


def test_mergekern_runs_the_models_on_the_samples(zoo, tmp_path):
    """The metrics command of `make demo` works on the zoo."""
    out = tmp_path / "metrics.parquet"
    arguments = ["metrics", zoo, "--calibration", zoo / "calibration", "--model-fn", f"{SCRIPT}:build_model"]
    result = CliRunner().invoke(cli.main, [*map(str, arguments), "--summary", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"MetricTable(3 models, 3 pairs, {len(mergekern.CATALOGUE)} metrics)" in result.stdout
    table = mergekern.MetricTable.load(out)
    assert table.to_pandas().notna().all(axis=None)
    assert not table.notes
    assert table.provenance["calibration"]["layer"] == "blocks.3"
    assert table.provenance["calibration"]["samples"] == dict.fromkeys(sorted(TASKS), 10)


def test_mergekern_finds_the_best_merge(zoo, tmp_path):
    """The last command of `make demo` works on the zoo."""
    out = tmp_path / "found"
    line = ["best", zoo, "--evaluate", "accuracy", "--data", zoo / "calibration", "--model-fn", f"{SCRIPT}:build_model"]
    line += ["--target", "normalized_accuracy", "--budget", "4", "--out", out]
    result = CliRunner().invoke(cli.main, [*map(str, line)])
    assert result.exit_code == 0, result.output
    scores, models = pd.read_csv(out / "scores.csv"), pd.read_csv(out / "models.csv")
    records = json.loads((zoo / "model.json").read_text())["tasks"]
    own = models.set_index("model")["own_accuracy"]
    np.testing.assert_allclose(own, [records[name]["accuracy"] for name in own.index])  # on the samples for tests
    assert len(scores) == 4
    assert (out / "report.html").exists()


def test_a_second_run_leaves_everything(script, zoo):
    before = contents(zoo)
    result = run(script, zoo)
    assert result.exit_code == 0
    assert result.output.count("done before") == 4
    assert contents(zoo) == before


def test_missing_and_broken_files_are_made_again_alike(script, zoo):
    before = contents(zoo)
    (zoo / "parity.safetensors").unlink()
    (zoo / "calibration" / "rotated.safetensors").write_bytes(before["calibration/rotated.safetensors"][:-1])
    result = run(script, zoo)
    assert result.exit_code == 0
    assert result.output.count("done before") == 2
    assert contents(zoo) == before


def test_other_options_need_force(script, zoo):
    before = contents(zoo)
    result = run(script, zoo, "--random-state", "1")
    assert result.exit_code == 1
    assert "other options (random_state)" in result.output
    assert "--force" in result.output
    assert contents(zoo) == before


def test_models_of_unknown_origin_need_force(script, zoo, tmp_path):
    (tmp_path / "base.safetensors").write_bytes((zoo / "base.safetensors").read_bytes())
    result = run(script, tmp_path)
    assert result.exit_code == 1
    assert "--force" in result.output
    assert list(contents(tmp_path)) == ["base.safetensors"]


def test_without_its_base_no_model_stays(script, zoo, tmp_path):
    for name, content in contents(zoo).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "base.safetensors").unlink()
    options = {"random_state": 0, **script.OPTIONS}
    assert making.take_over(tmp_path, options, force=False) == {}
    assert list(contents(tmp_path)) == ["calibration/calibration.json", "model.json"]


def test_a_task_that_was_not_learned_is_an_error(script):
    encoder = script.build_model(script.OPTIONS)
    recipe = {**script.OPTIONS["fine_tuning"], "steps": 5, "learning_rate": 1e-9}
    with pytest.raises(mergekern.MergekernError, match="shuffled_pixels was not learned"):
        making.learn({task.name: task for task in script.TASKS}["shuffled_pixels"], encoder, recipe, random_state=0)
