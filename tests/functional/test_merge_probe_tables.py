"""Merge probes in the catalogue, in tables and reports, and on the command line."""

import itertools

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

import mergekern
from mergekern import MetricTable, OptionError
from mergekern.cli import main
from mergekern.metrics import CATALOGUE, MERGE_PROBES, is_metric, metric_of
from mergekern.prediction import ablate_categories
from mergekern.report import write_report
from tests.functional.merge_probes import run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_metrics_of_the_catalogue_stay_what_all_is():
    assert len(CATALOGUE) >= 28
    assert not CATALOGUE.keys() & MERGE_PROBES.keys()
    case = make_case("transformer")
    table = mergekern.compute_all(case.models, case.base, calibration=case.calibration())
    assert list(table.metrics) == list(CATALOGUE)
    for name in ("merge probes", "solo_loss_mean"):
        with pytest.raises(OptionError, match=r"mergekern\.merge_probes"):
            mergekern.compute_all(case.models, case.base, metrics=["all", name])


@pytest.mark.parametrize("name", MERGE_PROBES)
def test_entries_are_complete(name):
    entry = MERGE_PROBES[name]
    assert entry.name == name == entry.function.__name__
    assert entry.category == "merge probes"
    assert entry.runs_models
    assert entry.range[0] < entry.range[1]
    assert entry.more_mergeable == ("lower" if "loss" in name else "higher")
    assert entry.explanation.startswith("What a merge method does")
    column = metric_of(f"{name}[ties]")
    assert (column.name, column.formula) == (f"{name}[ties]", entry.formula)
    assert not is_metric(name)
    assert not is_metric("stable_rank[ties]")
    with pytest.raises(OptionError, match="did you mean"):
        metric_of(f"{name}s[ties]")


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_a_table_of_both_is_kept_and_reported(tmp_path, suffix):
    case = make_case("transformer", models=4)
    metrics = mergekern.compute_all(case.models, case.base, calibration=case.calibration(), per_layer=True)
    probed = run(case, ["ties", "tsv"], {name: case.models[name] for name in ("m3", "m1", "m0", "m2")}, direct=True)
    table = metrics.join(probed)
    assert table.models == metrics.models
    assert table.metrics == (*metrics.metrics, *probed.metrics)
    assert table.matrix("direct_loss_mean[tsv]")[0, 3] == probed.matrix("direct_loss_mean[tsv]")[2, 0]
    assert table.provenance["merge_probes"]["calibration"]["samples"] == dict.fromkeys(case.models, 10)
    table.save(tmp_path / f"table.{suffix}")
    loaded = MetricTable.load(tmp_path / f"table.{suffix}")
    pd.testing.assert_frame_equal(loaded.to_pandas(), table.to_pandas(), check_exact=True)
    assert loaded.per_layer("solo_loss_mean[ties]").shape[1] == 0
    assert loaded.ranked("solo_loss_mean[ties]")["solo_loss_mean[ties]"].is_monotonic_increasing
    write_report(loaded, tmp_path / "report.html", metric="direct_accuracy_worst[tsv]")
    page = (tmp_path / "report.html").read_text()
    assert "merge probes" in page
    assert "Direct accuracy worst, tsv" in page
    write_report(loaded, tmp_path / "figures.pdf", metric="direct_accuracy_worst[tsv]")


def test_tables_that_do_not_fit_are_not_joined():
    one = MetricTable("ab", {"stable_rank": np.ones((2, 2))})
    with pytest.raises(OptionError, match="both tables have stable_rank"):
        one.join(one)
    with pytest.raises(OptionError, match="only one has b, c"):
        one.join(MetricTable("ac", {"spectral_gap": np.ones((2, 2))}))


def test_ablation_knows_the_category():
    draw = np.random.default_rng(0)
    index = pd.MultiIndex.from_tuples(list(itertools.combinations("abcdef", 2)), names=["model_a", "model_b"])
    columns = ["stable_rank", "solo_loss_mean[ties]", "solo_loss_worst[ties]"]
    X = pd.DataFrame(draw.standard_normal((15, 3)), index, columns)
    found = ablate_categories(mergekern.prediction.make_predictor("linear"), X, X.sum(axis=1))
    assert found["metrics"].to_dict() == {"all metrics": 3, "effective rank": 1, "merge probes": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out, case = tmp_path_factory.mktemp("zoo"), make_case("transformer")
    for name, state in {"base": case.base, **case.models}.items():
        save_file(state, out / f"{name}.safetensors")
    case.calibration().save(out / "samples")
    return out


def command(*arguments):
    result = CliRunner().invoke(main, ["metrics", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_metrics_with_merge_probes(folder, tmp_path):
    given = ["--calibration", folder / "samples", "--model-fn", "tests.support.encoders:Transformer"]
    given += ["--merge-probes", "ties,tsv", "--direct-probes", "--statistics", tmp_path / "statistics"]
    given += ["--out", tmp_path / "table.parquet", "--sort-by", "direct_loss_worst[tsv]"]
    for _ in range(2):
        result = command(folder, *given)
        assert result.exit_code == 0, result.output
        assert "ranked by direct_loss_worst[tsv] (lower is more mergeable)" in result.stdout
    found = MetricTable.load(tmp_path / "table.parquet")
    assert len(found.metrics) == len(CATALOGUE) + 2 * len(MERGE_PROBES)
    case = make_case("transformer")
    expected = run(case, ["ties", "tsv"], direct=True).to_pandas()
    pd.testing.assert_frame_equal(found.to_pandas()[expected.columns], expected, check_exact=True)
    assert "tsv of m0 + m1" not in result.stderr  # the second time nothing is measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merge-probes", "ties"], "give --calibration and --model-fn"),
        (["--merge-probes", "tis"], "no method 'tis' (did you mean 'ties'?)"),
        (["--direct-probes"], "of use with --merge-probes only"),
    ],
)
def test_what_the_command_refuses(folder, arguments, message):
    result = command(folder, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_list_has_them():
    lines = {line.split()[0]: line for line in command("--list").stdout.splitlines() if line.strip()}
    for name, entry in MERGE_PROBES.items():
        assert entry.formula in lines[name]
