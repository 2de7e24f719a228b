"""svd="randomized": errors of every value that hold, and the same bytes whatever the way of measuring."""

import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import mergekern
from mergekern import MetricTable, OptionError, StatisticsError
from mergekern.cli import main
from mergekern.kernels import native
from mergekern.kernels.randomized_spectrum import on_cpu
from mergekern.metrics import BOTTOM
from mergekern.metrics.subspace_errors import ERRORS
from mergekern.prediction.screening import screen
from mergekern.report.contents import gather
from mergekern.report.page import number, render
from mergekern.statistics.blocks import read_block, write_block
from tests.kernels.test_randomized_spectrum import SPECTRA
from tests.kernels.test_spectrum import with_values
from tests.support.adapters import adapt, llama, seeded, state

OPTIONS = mergekern.MeasureOptions(svd="randomized")
KINDS = ["power -1", "20 above noise", "exponential", "flat noise", "power -1/4", "rank 40"]
SHAPE = (520, 640)


@pytest.fixture(scope="module", autouse=True)
def iterated():
    """Iterate on matrices that are small enough for a full SVD."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_cpu, "DIRECT", 512)
        yield


@pytest.fixture(scope="module")
def zoo():
    """A base, and models whose large matrix has spectra of several kinds around one common part."""
    generator = torch.Generator().manual_seed(0)
    base = {
        "large": torch.randn(SHAPE, generator=generator),
        "norm": torch.randn(40, generator=generator),
        "small": torch.randn(40, 30, generator=generator),
    }
    common, models = with_values(SHAPE, SPECTRA["power -1"](SHAPE[0]), seed=9), {}
    for index, kind in enumerate(KINDS):
        own = with_values(SHAPE, SPECTRA[kind](SHAPE[0]), seed=index)
        models[f"m{index}"] = {
            "large": (base["large"] + 10 * own + 10 * common).float(),
            "norm": base["norm"] + 1,
            "small": base["small"] + torch.randn(40, 30, generator=generator),
        }
    models["m1"]["small"] = base["small"]
    return base, models


@pytest.fixture(scope="module")
def exact(zoo):
    return mergekern.compute_all(zoo[1], zoo[0], per_layer=True)


@pytest.fixture(scope="module")
def table(zoo):
    return mergekern.compute_all(zoo[1], zoo[0], per_layer=True, svd="randomized")


def assert_same(found, expected):
    assert found.metrics == expected.metrics
    for metric in expected.metrics:
        assert np.array_equal(found.matrix(metric), expected.matrix(metric), equal_nan=True), metric
        assert np.array_equal(found.error(metric), expected.error(metric), equal_nan=True), metric


def test_all_means_what_is_defined_and_says_so(exact, table):
    assert table.metrics == tuple(name for name in exact.metrics if name not in BOTTOM)
    assert table.estimated == tuple(ERRORS)
    (note,) = (note for note in table.notes if BOTTOM[0] in note)
    assert all(name in note for name in BOTTOM)
    assert "svd='exact'" in note
    assert not any("bottom-k averages" in note for note in table.notes)
    assert table.provenance["svd"] == {"kind": "randomized", "tolerance": 1e-3}
    assert "svd" not in exact.provenance


def test_errors_of_every_value_hold(exact, table):
    for metric in table.metrics:
        assert (np.abs(table.matrix(metric) - exact.matrix(metric)) <= 2 * table.error(metric)).all(), metric
    for metric in table.estimated:
        i, j = np.triu_indices(len(KINDS), 1)
        for tensor in ("large", "small"):
            found, expected = (t.per_layer(metric)[tensor].to_numpy() for t in (table, exact))
            error = table.error(metric, tensor)[i, j]
            assert np.array_equal(np.isnan(found), np.isnan(expected))
            assert (np.abs(found - expected) <= 2 * error)[~np.isnan(found)].all(), (metric, tensor)
            assert (error[~np.isnan(error)] < (1.0 if tensor == "large" else 1e-5)).all()
    assert not table.error("stable_rank").any()
    assert not exact.error("subspace_overlap").any()
    assert not exact.estimated


def test_pairs_with_more_in_common_are_not_worse_known(table):
    """An overlap that is determined has an error far below it."""
    assert table.error("right_subspace_overlap_top_k", "large")[0, 2] < 0.01


def test_a_category_has_the_metrics_that_are_defined(zoo, table):
    base, models = zoo
    some = {name: models[name] for name in ("m0", "m1")}
    found = mergekern.compute_all(some, base, metrics="subspace overlap", svd="randomized")
    assert found.metrics == table.estimated
    assert any(BOTTOM[0] in note for note in found.notes)


@pytest.mark.parametrize("name", BOTTOM)
def test_bottom_metrics_by_name_are_refused(zoo, name, tmp_path):
    base, models = zoo
    with pytest.raises(OptionError, match=f"{name}: svd='randomized' finds leading.*use svd='exact'"):
        mergekern.compute_all(models, base, metrics=["stable_rank", name], svd="randomized", statistics=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    statistics = mergekern.measure(
        {"a": {"w": torch.eye(3)}, "b": {"w": torch.ones(3, 3)}}, {"w": torch.zeros(3, 3)}, OPTIONS
    )
    with pytest.raises(OptionError, match=f"{name}: these statistics are of svd='randomized'.*svd='exact'"):
        MetricTable.from_statistics(statistics, name)


@pytest.mark.parametrize("tolerance", [0, 1, -1e-3, "small", None, float("nan"), True])
def test_a_tolerance_is_between_0_and_1(tolerance):
    with pytest.raises(OptionError, match="svd_tolerance must be a number between 0 and 1"):
        mergekern.MeasureOptions(svd_tolerance=tolerance)


@pytest.mark.skipif(native.extension is None, reason="BLAS gives other bits to other numbers of models")
def test_company_order_and_budget_do_not_change_a_bit(zoo, table):
    base, models = zoo
    some = {name: models[name] for name in ("m3", "m0")}
    at = np.ix_([3, 0], [3, 0])
    budget = 5 * (1 << 17) * 4  # the large matrix comes in blocks
    for found in (
        mergekern.compute_all(some, base, svd="randomized"),
        mergekern.compute_all(some, base, svd="randomized", max_memory=budget),
    ):
        for metric in table.metrics:
            assert np.array_equal(found.matrix(metric), table.matrix(metric)[at]), metric
            assert np.array_equal(found.error(metric), table.error(metric)[at]), metric


@pytest.fixture(scope="module")
def files(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    base, models = zoo
    for name, tensors in ({"base": base} | models).items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    return folder


def test_statistics_keep_errors_and_are_not_mixed(files, exact, table, tmp_path):
    folder = tmp_path / "statistics"
    assert_same(mergekern.compute_all(files, statistics=folder, svd="randomized"), table)
    blocks = {path.name for path in (folder / "blocks").iterdir()}
    assert_same(mergekern.compute_all(files, statistics=folder, svd="randomized"), table)
    assert {path.name for path in (folder / "blocks").iterdir()} == blocks
    assert mergekern.verify(folder) == []
    loaded = mergekern.ZooStatistics.load(folder)
    assert_same(MetricTable.from_statistics(loaded), table)
    loaded.save(tmp_path / "saved")
    assert_same(MetricTable.from_statistics(mergekern.ZooStatistics.load(tmp_path / "saved")), table)
    # Another tolerance and another kind find nothing of it.
    mergekern.compute_all(files, statistics=folder, svd="randomized", svd_tolerance=1e-2)
    others = {path.name for path in (folder / "blocks").iterdir()}
    assert not others & blocks
    assert_same(mergekern.compute_all(files, statistics=folder), exact)
    assert not {path.name for path in (folder / "blocks").iterdir()} & (blocks | others)


def without(name):
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def changed(name, change):
    return lambda arrays: arrays | {name: change(arrays[name].copy())} if name in arrays else arrays


WRONG = {
    "an error below 0": changed("error.values", lambda a: a - 1),
    "a sine above 1": changed("error.vectors", lambda a: a + 1.5),
    "an error that is no number": changed("error.values", lambda a: a * np.nan),
    "errors of fewer values": changed("error.values", lambda a: a[:, :-1]),
    "errors of fewer models": changed("error.vectors", lambda a: a[:-1]),
    "errors of values alone": without("error.vectors"),
    "no errors": lambda arrays: without("error.values")(without("error.vectors")(arrays)),
    "overlaps of bottom vectors": changed("overlap.right_bottom", np.zeros_like),
}


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    """Statistics of one small matrix: randomised in name, factorised directly."""
    draw = torch.Generator().manual_seed(1)
    models = {name: {"w": torch.randn(12, 9, generator=draw)} for name in "abc"}
    return mergekern.measure_into(tmp_path_factory.mktemp("small") / "s", models, {"w": torch.zeros(12, 9)}, OPTIONS)


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_wrong_errors_in_a_block_are_reported_and_refused(small_folder, damage, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(small_folder, folder)
    assert mergekern.verify(folder) == []
    for path in sorted((folder / "blocks").iterdir()):
        arrays, description = read_block(path)
        write_block(path, damage(arrays), description)
    assert {each.path.parent.name for each in mergekern.verify(folder)} == {"blocks"}
    with pytest.raises(StatisticsError, match="not a block of 'w'"):
        mergekern.ZooStatistics.load(folder)


def test_shards_blocks_and_added_models_give_the_same_bytes(files, zoo, table, tmp_path):
    folder = tmp_path / "sharded"
    for index in (1, 2, 3):
        mergekern.measure_shard(files, shard=(index, 3), statistics=folder, options=OPTIONS, block_size=2)
    mergekern.combine(folder)
    assert_same(MetricTable.from_statistics(mergekern.ZooStatistics.load(folder)), table)
    first = [files / f"m{index}.safetensors" for index in range(4)]
    mergekern.measure(first, files / "base.safetensors", OPTIONS, statistics=tmp_path / "grown")
    rest = [files / f"m{index}.safetensors" for index in (4, 5)]
    assert_same(MetricTable.from_statistics(mergekern.add_models(rest, tmp_path / "grown")), table)


def test_shards_of_other_factorisations_are_not_combined(files, tmp_path):
    for index, svd in ((1, "exact"), (2, "randomized")):
        options = mergekern.MeasureOptions("subspace overlap", svd=svd)
        mergekern.measure_shard(files, shard=(index, 2), statistics=tmp_path, options=options)
    with pytest.raises(StatisticsError, match="its svd differ"):
        mergekern.combine(tmp_path)


@pytest.mark.parametrize("per_layer", [True, False])
def test_parquet_keeps_errors(table, tmp_path, per_layer):
    if not per_layer:
        errors = {name: table.error(name) for name in table.estimated}
        values = {name: table.matrix(name) for name in table.metrics}
        table = MetricTable(table.models, values, None, table.notes, table.provenance, errors)
    table.save(tmp_path / "table.parquet")
    again = MetricTable.load(tmp_path / "table.parquet")
    assert again.notes == table.notes
    assert again.estimated == table.estimated
    pairs = np.triu_indices(len(table.models), 1)
    for name in table.metrics:
        assert np.array_equal(again.error(name)[pairs], table.error(name)[pairs])
        if per_layer:
            for tensor in table.per_layer(name):
                found, expected = (t.error(name, tensor)[pairs] for t in (again, table))
                assert np.array_equal(found, expected, equal_nan=True)
    for suffix in ("csv", "json"):
        table.save(tmp_path / f"table.{suffix}")
        assert MetricTable.load(tmp_path / f"table.{suffix}").metrics == table.metrics


def test_an_error_in_a_file_is_not_below_zero(table, tmp_path):
    errors = {"subspace_overlap": np.full((len(table.models),) * 2, -0.5)}
    MetricTable(table.models, {n: table.matrix(n) for n in table.metrics}, errors=errors).save(tmp_path / "t.parquet")
    with pytest.raises(StatisticsError, match=r"error\[subspace_overlap\] is -0.5"):
        MetricTable.load(tmp_path / "t.parquet")


def test_join_keeps_errors(table):
    values = {"solo_loss_mean[tsv]": np.zeros((len(table.models),) * 2)}
    joined = MetricTable(table.models[::-1], values).join(table)
    assert joined.models == table.models[::-1]
    assert np.array_equal(joined.error("subspace_overlap"), table.error("subspace_overlap")[::-1, ::-1])
    assert np.array_equal(
        joined.error("subspace_overlap", "large"), table.error("subspace_overlap", "large")[::-1, ::-1]
    )


def test_errors_of_what_is_not_there(table):
    with pytest.raises(OptionError, match="no metric 'subspace_overlp' in this table"):
        table.error("subspace_overlp")
    with pytest.raises(OptionError, match="no value of subspace_overlap for a tensor 'norm'"):
        table.error("subspace_overlap", "norm")


def test_screening_keeps_errors(files, table, tmp_path):
    mergekern.measure(files, options=OPTIONS, statistics=tmp_path / "statistics")
    screen(tmp_path / "statistics", out=tmp_path / "pairs.parquet", tile=4)
    found = MetricTable.load(tmp_path / "pairs.parquet")
    assert found.metrics == table.metrics
    pairs = np.triu_indices(len(table.models), 1)
    for name in table.estimated:
        assert np.array_equal(found.error(name)[pairs], table.error(name)[pairs])


def test_the_page_has_the_largest_error_of_every_metric(exact, table):
    pages = [render(gather(one), "Zoo") for one in (table, exact)]
    assert ["Largest error" in page for page in pages] == [True, False]
    for name, error in table.largest_errors.items():
        assert error == table.to_pandas(with_errors=True)[f"error[{name}]"].max()
        assert f'<td class="number">{number(error)}</td>' in pages[0]


def test_command_line(files, table, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    out = tmp_path / "table.parquet"
    result = run("metrics", files, "--svd", "randomized", "--svd-tolerance", "0.001", "--out", out)
    assert result.exit_code == 0, result.output
    assert "estimated errors, largest of all pairs: singular_value_overlap" in result.output.replace("\n", " ")
    assert_same_pairs(MetricTable.load(out), table)
    result = run("metrics", files, "--svd", "randomized", "--statistics", tmp_path / "sharded", "--shard", "1/1")
    assert result.exit_code == 0, result.output
    assert run("combine", tmp_path / "sharded").exit_code == 0
    assert run("table", tmp_path / "sharded", "--out", out).exit_code == 0
    assert_same_pairs(MetricTable.load(out), table)
    result = run("screen", files, "--svd", "randomized", "--out", tmp_path / "pairs.parquet")
    assert result.exit_code == 0, result.output
    assert_same_pairs(MetricTable.load(tmp_path / "pairs.parquet"), table)
    assert run("info", files, "--svd", "randomized").exit_code == 0
    for arguments, says in (
        (["--metrics", BOTTOM[0]], "use svd='exact'"),
        (["--sort-by", BOTTOM[0]], "is not among the metrics computed"),
        (["--svd-tolerance", "2"], "svd_tolerance must be a number between 0 and 1"),
    ):
        result = run("metrics", files, "--svd", "randomized", *arguments)
        assert result.exit_code != 0
        assert says in (result.output + str(result.exception))


def assert_same_pairs(found, expected):
    pairs = np.triu_indices(len(expected.models), 1)
    assert found.metrics == expected.metrics
    for name in expected.metrics:
        assert np.array_equal(found.matrix(name)[pairs], expected.matrix(name)[pairs], equal_nan=True), name
        assert np.array_equal(found.error(name)[pairs], expected.error(name)[pairs], equal_nan=True), name


def test_adapters_stay_exact(tmp_path):
    model = seeded(llama)
    models = {f"a{index}": tmp_path / f"a{index}" for index in range(2)}
    for index, path in enumerate(models.values()):
        adapt(model, path, seed=index, target_modules=["q_proj"], r=12)
    merged = adapt(model, tmp_path / "merged", seed=5, target_modules=["q_proj"], r=12)
    exact, found = (mergekern.compute_all(models | {"m": merged}, state(model), svd=svd) for svd in OF_SVD)
    for name in found.metrics:
        assert np.allclose(found.matrix(name), exact.matrix(name), rtol=0, atol=1e-6, equal_nan=True)
        assert not (found.error(name)[:2, :2] > 1e-5).any()


OF_SVD = ("exact", "randomized")


def test_cost_counts_the_passes(zoo):
    base, models = zoo
    opened = mergekern.checkpoints.open_zoo(models, base)
    budget = 5 * (1 << 17) * 4
    costs = [
        mergekern.estimate_cost(opened, mergekern.MeasureOptions(svd=svd, max_memory=budget)).bytes_read
        for svd in OF_SVD
    ]
    assert costs[1] > 3 * costs[0]
