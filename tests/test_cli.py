import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import mergekern
from mergekern.cli import main
from mergekern.metrics import CATALOGUE
from tests.golden.zoo import SPECS, make_zoo


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
