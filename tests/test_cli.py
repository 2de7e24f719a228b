import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

import mergekern
from mergekern.cli import main
from mergekern.metrics import CATALOGUE
from tests.golden.zoo import SPECS, make_zoo
from tests.support.encoders import make_case


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    base, tuned = make_zoo(SPECS["mixed"])
    save_file(base, folder / "base.safetensors")
    for index, model in enumerate(tuned):
        save_file(model, folder / f"task_{index}.safetensors")
    (folder / "notes.txt").write_text("not a checkpoint")
    return folder


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_metrics_writes_and_shows_the_ranked_table(zoo, tmp_path):
    out = tmp_path / "table.parquet"
    result = run("metrics", zoo, "--out", out, "--sort-by", "weight_space_angle")
    assert result.exit_code == 0, result.output
    expected = mergekern.compute_all(zoo)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected.to_pandas(), check_exact=True)
    best = expected.ranked("weight_space_angle").index[0]
    first = next(line for line in result.stdout.splitlines() if line.strip().startswith("1 "))
    assert tuple(first.split()[1:3]) == best
    assert "tensor 1/10 blocks.0.attn.bias" in result.stderr
    assert "10 tensors done" in result.stderr
    assert "B/s" in result.stderr


def test_rows_metrics_and_base_elsewhere(zoo, tmp_path):
    base = tmp_path / "pretrained.safetensors"
    base.write_bytes((zoo / "base.safetensors").read_bytes())
    result = run("metrics", zoo, "--base", base, "--metrics", "stable_rank", "--rows", 3)
    assert "MetricTable(5 models, 10 pairs, 1 metrics)" in result.stdout
    assert "7 more pairs" in result.stdout


def test_list_is_the_catalogue():
    result = run("metrics", "--list")
    for name, metric in CATALOGUE.items():
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        assert metric.formula in line
        assert metric.more_mergeable in line


def test_info_tells_sizes_and_mismatches(zoo, tmp_path):
    result = run("info", zoo)
    assert "5 models, 10 pairs; 10 shared tensors, 5 matrices" in result.stdout
    parameters = f"{sum(v.size for v in make_zoo(SPECS['mixed'])[0].values() if v.dtype == 'float32'):,}"
    assert result.stdout.count(parameters) == 6
    other = tmp_path / "zoo"
    other.mkdir()
    for path in zoo.glob("*.safetensors"):
        (other / path.name).write_bytes(path.read_bytes())
    tensors = make_zoo(SPECS["mixed"])[1][1]
    del tensors["embed.position"]
    tensors["blocks.0.attn.weight"] = make_zoo(SPECS["wide"])[0]["layer.0.weight"]
    save_file(tensors, other / "task_1.safetensors")
    result = run("info", other)
    assert "2 tensors do not match" in result.stdout
    assert "embed.position: in 'base' but missing in 'task_1'" in result.stdout
    assert "blocks.0.attn.weight: shape (48, 48) in 'base', (160, 160) in 'task_1'" in result.stdout


@pytest.fixture
def encoders(tmp_path):
    """A folder zoo/, samples/ and encoder.py."""
    case = make_case("transformer")
    (tmp_path / "zoo").mkdir()
    for name, state in {"base": case.base, **case.models}.items():
        save_torch_file(state, tmp_path / "zoo" / f"{name}.safetensors")
    case.calibration().save(tmp_path / "samples")
    (tmp_path / "encoder.py").write_text(
        "from dataclasses import dataclass\n\nfrom tests.support.encoders import Transformer\n\n\n"
        "@dataclass\nclass Config:\n    width: 'int' = 3\n\n\ndef build():\n    return Transformer()\n"
    )
    return tmp_path, case


@pytest.mark.parametrize("how", ["file", "module"])
def test_metrics_that_run_models(encoders, how, monkeypatch):
    monkeypatch.setattr("mergekern.cli.display.SECONDS", 0.0)  # between lines of progress
    folder, case = encoders
    model = f"{folder / 'encoder.py'}:build" if how == "file" else "tests.support.encoders:Transformer"
    given = ["--calibration", folder / "samples", "--model-fn", model]
    result = run("metrics", folder / "zoo", *given, "--out", folder / "t.parquet", "--summary")
    assert result.exit_code == 0, result.output
    assert f"MetricTable(3 models, 3 pairs, {len(mergekern.CATALOGUE)} metrics)" in result.stdout
    assert "gradients of m1: " in result.stderr
    expected = mergekern.compute_all(case.models, case.base, calibration=case.calibration())
    # Files keep tensors in another order, which changes the last bits of sums.
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "t.parquet"), expected.to_pandas(), rtol=1e-9)
    for name, metric in CATALOGUE.items():
        line = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == [name])
        values = expected.to_pandas()[name]
        pair = values.idxmax() if metric.more_mergeable == "higher" else values.idxmin()
        spread = [f"{value:.4g}" for value in (values.min(), values.median(), values.max())]
        assert line[1:] == [*spread, f"{pair[0]},", pair[1]]
    other = ["--layer", "blocks.1", "--batch-weighting", "sample", "--metrics", "activation,gradient"]
    run("metrics", folder / "zoo", *given, *other, "--out", folder / "t.json")
    found = mergekern.MetricTable.load(folder / "t.json")
    assert found.provenance["calibration"]["layer"] == "blocks.1"
    assert found.provenance["calibration"]["batch_weighting"] == "sample"
    assert len(found.metrics) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibration", "samples"], "samples: does not say what builds the model; give model= (--model-fn)"),
        (["--model-fn", "encoder.py:build"], "--calibration and --model-fn are given together"),
        (["--layer", "blocks.1"], "--layer is of use with --calibration only"),
        (["--metrics", "gradient"], "models must be run for these; give calibration="),
        (["--sort-by", "input_gradient_l2_distance"], "is not among the metrics computed"),
        (["--calibration", "gone", "--model-fn", "encoder.py:build"], "no calibration.json names the layer"),
        (["--calibration", "samples", "--model-fn", "encoder.py"], "is not package.module:function"),
        (["--calibration", "samples", "--model-fn", "encoder.py:made"], "encoder.py has no function 'made'"),
        (["--calibration", "samples", "--model-fn", "gone.py:build"], "cannot be imported: no file gone.py"),
        (["--calibration", "samples", "--model-fn", "not_a_module:build"], "cannot be imported: No module named"),
        (
            ["--calibration", "samples", "--model-fn", "encoder.py:build", "--layer", "blocks.2"],
            "did you mean 'blocks.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_calibration_is_told_before_anything_runs(encoders, monkeypatch, arguments, message):
    monkeypatch.chdir(encoders[0])
    result = run("metrics", "zoo", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "tensor 1/" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sort-by", "nonsense"], "nonsense"),
        (["--metrics", "stabel_rank"], "did you mean 'stable_rank'"),
        (["--out", "table.xlsx"], ".parquet"),
        (["--out", "nowhere/table.csv"], "does not exist"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--max-memory", "lots"], "500M"),
        (["--max-memory", "10"], "max_memory=10 bytes"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_are_told_before_anything_runs(zoo, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("metrics", zoo, *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_names_are_shown_as_they_are(zoo, tmp_path):
    for path in zoo.glob("*.safetensors"):
        (tmp_path / path.name.replace("task_", "task[red]")).write_bytes(path.read_bytes())
    assert "task[red]3" in run("metrics", tmp_path, "--metrics", "stable_rank").stdout
    assert "task[red]3" in run("info", tmp_path).stdout


def test_merge_writes_what_the_function_gives(zoo, tmp_path):
    models, out = [zoo / "task_0.safetensors", zoo / "task_2.safetensors"], tmp_path / "out.safetensors"
    base = zoo / "base.safetensors"
    arguments = ["--base", base, "--method", "ties", "-o", "density=0.5", "--weights", "1,2"]
    result = run("merge", *models, *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    expected = mergekern.merge(models, base, "ties", options={"density": 0.5}, weights=[1, 2])
    found = load_file(out)
    assert found.keys() == expected.keys()
    assert all((found[name] == tensor.numpy()).all() for name, tensor in expected.items())
    assert "is there already" in run("merge", *models, *arguments, "--out", out).output
    assert run("merge", *models, *arguments, "--out", out, "--overwrite").exit_code == 0


@pytest.mark.parametrize("word", ["none", "None", "null", "False", "false"])
def test_options_that_are_words(zoo, tmp_path, word):
    out = tmp_path / "out.safetensors"
    result = run("merge", zoo, "--method", "isotropic", "-o", f"truncate={word}", "--out", out)
    assert result.exit_code == 0, result.output
    expected = mergekern.merge(zoo, None, "isotropic", options={"truncate": None})
    assert all((load_file(out)[name] == tensor.numpy()).all() for name, tensor in expected.items())


def test_merge_writes_a_mergekit_configuration(zoo, tmp_path):
    out = tmp_path / "merge.yaml"
    result = run("merge", zoo, "--method", "dare_ties", "-o", "rate=0.75", "--out", out, "--mergekit-config")
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert 'merge_method: "dare_ties"' in text
    assert text.count('parameters: {"weight": 1.0, "density": 0.25}') == 5
    assert f"run it by: mergekit-pytorch {out} merged" in result.output
    refused = run("merge", zoo, "--method", "tsv", "--out", tmp_path / "b.yaml", "--mergekit-config")
    assert "mergekit has no method like tsv" in refused.output
    assert refused.exit_code == 1


def test_merge_all_writes_every_pair(zoo, tmp_path):
    out = tmp_path / "merged"
    result = run("merge-all", zoo, "--methods", "weight_average,tsv", "--out", out)
    assert result.exit_code == 0, result.output
    assert len(list(out.glob("*/*.safetensors"))) == 20
    result = run("merge-all", zoo, "--methods", "ties", "--group", "task_0+task_1+task_4", "--out", out)
    assert [path.name for path in out.glob("ties/*.safetensors")] == ["task_0+task_1+task_4.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "tise"], "did you mean 'ties'"),
        (["--method", "ties", "-o", "density"], "NAME=VALUE"),
        (["--method", "ties", "-o", "density=2"], "at most 1"),
        (["--method", "ties", "--weights", "a"], "not a list of numbers"),
    ],
)
def test_wrong_merges_are_refused(zoo, tmp_path, arguments, message):
    result = run("merge", zoo, "--out", tmp_path / "out.safetensors", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert not list(tmp_path.iterdir())
