"""Sketches: their estimates and errors, and that they depend on models, base, size and random state only."""

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import mergekern
from mergekern import MismatchError, NonFiniteError, OptionError, Sketches, StatisticsError
from mergekern.cli import main
from mergekern.sketches.measure import sketch
from mergekern.sketches.sketches import ESTIMATED
from tests.support.adapters import adapt, llama, seeded, state

SHAPES = {"embed": (40, 24), "norm": (24,), "up": (36, 24), "kernel": (3, 2, 2, 2), "scale": ()}


def make_zoo(shares=(0.0, 0.2, 0.5, 0.9, 0.999)):
    """Return a base and models whose changes have the given shares of one common change."""
    rng = np.random.default_rng(0)

    def draw():
        return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}

    base, common, zoo = draw(), draw(), {}
    for index, share in enumerate(shares):
        own = draw()
        changes = {n: (1 + index) * (share * common[n] + np.sqrt(1 - share**2) * own[n]) for n in SHAPES}
        zoo[f"m{index}"] = {name: base[name] + 0.1 * changes[name] for name in SHAPES}
    return base, zoo


@pytest.fixture(scope="module")
def zoo():
    return make_zoo()


@pytest.fixture(scope="module")
def draws(zoo):
    """Estimates, standard errors and true values, each of shape (metric, draw, pair)."""
    base, models = zoo
    exact = mergekern.compute_all(models, base, metrics=list(ESTIMATED)).to_pandas()
    found = [sketch(models, base, size=512, random_state=seed) for seed in range(120)]
    estimates = np.stack([each.table().to_pandas()[exact.columns].to_numpy().T for each in found], axis=1)
    errors = np.stack([each.standard_errors()[exact.columns].to_numpy().T for each in found], axis=1)
    return list(exact.columns), estimates, errors, exact.to_numpy().T[:, None]


def test_every_metric_of_whole_task_vectors_is_estimated(draws):
    assert draws[0] == list(ESTIMATED)
    assert len(ESTIMATED) >= 10


def test_standard_errors_are_those_of_the_estimates(draws):
    names, estimates, errors, exact = draws
    for name, estimate, error, truth in zip(names, estimates, errors, exact, strict=True):
        if name == "task_vector_magnitude_ratio":
            np.testing.assert_allclose(estimate, np.broadcast_to(truth, estimate.shape), rtol=1e-12)
            assert (error == 0).all()
            continue
        z = (estimate - truth) / np.sqrt(np.square(error).mean(0))
        assert (np.sqrt(np.square(z).mean(0)) < 1.3).all(), name
        # The change is counted from the estimate, so it is up to twice too large where the true value is a minimum.
        assert (np.sqrt(np.square(z).mean(0)) > 0.4).all(), name
        if name.startswith("task_vector") or name == "weight_space_angle":
            # The others are even in the inner product, and have a bias of that size where it is near 0.
            assert (np.abs(z.mean(0)) < 0.4).all(), name
            assert (z.std(0) > 0.75).all(), name


def test_errors_fall_with_the_root_of_the_size(zoo):
    base, models = zoo
    small, large = (sketch(models, base, size=size).standard_errors() for size in (256, 4096))
    name = "task_vector_cosine_similarity"
    np.testing.assert_allclose(small[name] / large[name], 4, rtol=0.5)
    assert large[name].max() <= 1 / 64


def test_nearly_equal_models_keep_their_distance():
    base, models = make_zoo((0.3,))
    rng = np.random.default_rng(1)
    changes = {name: 1e-8 * rng.standard_normal(shape) for name, shape in SHAPES.items()}
    models["near"] = {name: models["m0"][name] + changes[name] for name in SHAPES}
    models["same"] = models["m0"]
    exact = mergekern.compute_all(models, base, metrics="task_vector_l2_distance").to_pandas()
    found = sketch(models, base, size=1024)
    pairs = [("m0", "near"), ("near", "same")]
    estimates = found.table().to_pandas().loc[pairs, "task_vector_l2_distance"]
    np.testing.assert_allclose(estimates, exact.loc[pairs, "task_vector_l2_distance"], rtol=0.1)
    np.testing.assert_allclose(
        found.standard_errors().loc[pairs, "task_vector_l2_distance"] / estimates, 0.022, rtol=0.1
    )
    assert found.table().to_pandas().loc[("m0", "same"), "task_vector_l2_distance"] == 0.0


def test_an_unchanged_model_has_no_angles(zoo):
    base, models = zoo
    table = sketch({"same": base, **models}, base).table().to_pandas()
    assert np.isnan(table.loc[("same", "m0"), "task_vector_cosine_similarity"])
    assert table.loc[("same", "m0"), "task_vector_dot_product"] == 0.0


@pytest.mark.parametrize("options", [{"max_memory": 700}, {"max_memory": 5000}, {"io": "pread"}], ids=str)
def test_neither_memory_nor_reading_change_a_bit(zoo, options, tmp_path):
    base, models = zoo
    for name, tensors in {"base": base, **models}.items():
        save_file({n: torch.tensor(v) for n, v in tensors.items()}, tmp_path / f"{name}.safetensors")
    found, expected = sketch(tmp_path, **options), sketch(tmp_path)
    assert np.array_equal(found.values, expected.values)
    np.testing.assert_allclose(found.squares, expected.squares, rtol=1e-14)
    assert found.base == expected.base
    in_memory = sketch(models, base)  # with the tensors in another order
    np.testing.assert_allclose(found.values, in_memory.values, rtol=0, atol=1e-13)
    assert found.base == in_memory.base


def test_models_may_be_added_one_at_a_time(zoo, tmp_path):
    base, models = zoo
    together = sketch(models, base)
    parts = [sketch({name: model}, base) for name, model in models.items()]
    for index, part in enumerate(parts):
        part.save(tmp_path / f"{index}.sketch")
    joined = Sketches.load(tmp_path / "0.sketch")
    for index in range(1, len(parts)):
        joined = joined.joined(Sketches.load(tmp_path / f"{index}.sketch"))
    assert joined.models == together.models
    assert np.array_equal(joined.values, together.values)
    assert np.array_equal(joined.squares, together.squares)


def test_adapters_have_the_sketches_of_their_merged_models(tmp_path):
    model = seeded(llama)
    options = {"target_modules": ["q_proj", "down_proj"], "r": 4}
    merged = {name: adapt(model, tmp_path / name, seed=seed, **options) for seed, name in enumerate("ab")}
    folders = {name: tmp_path / name for name in merged}
    expected = sketch(merged, state(model))
    mixed = {**folders, "b": merged["b"]}
    for found in (sketch(folders), sketch(folders, state(model)), sketch(mixed, state(model))):
        np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.squares, expected.squares, rtol=1e-12)
    assert sketch(folders).base is None
    other = sketch({"c": merged["a"]}, state(model))
    assert sketch(folders).joined(other).base == other.base == expected.base


def test_what_cannot_be_compared(zoo, tmp_path):
    base, models = zoo
    one = sketch({"m0": models["m0"]}, base)
    for other, message in (
        (sketch({"m1": models["m1"]}, base, size=128), "of size 4096 and of size 128 cannot be compared"),
        (sketch({"m1": models["m1"]}, base, random_state=1), "of random_state 0 and of random_state 1"),
        (sketch({"m1": models["m1"]}, models["m2"]), "of base [0-9a-f]{32} and of base [0-9a-f]{32}"),
        (one, "there already: m0"),
    ):
        with pytest.raises(MismatchError, match=message):
            one.joined(other)
    one.save(tmp_path / "one")
    content = (tmp_path / "one").read_bytes()
    (tmp_path / "one").write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(StatisticsError, match="one"):
        Sketches.load(tmp_path / "one")
    with pytest.raises(StatisticsError, match="none"):
        Sketches.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 100}, "size must be a power of two, 64 at least, not 100"), ({"size": 32}, "64 at least"),
     ({"size": 64.0}, "size must be"), ({"random_state": "0"}, "random_state must be an integer")],
)  # fmt: skip
def test_bad_options(zoo, options, message):
    with pytest.raises(OptionError, match=message):
        sketch(zoo[1], zoo[0], **options)


def test_values_that_are_not_finite(zoo):
    base, models = zoo
    bad = {**models["m1"], "up": np.full(SHAPES["up"], np.nan)}
    with pytest.raises(NonFiniteError, match="'up' holds NaN or infinite values: 864 in 'm1'"):
        sketch({**models, "m1": bad}, base)


def test_on_the_command_line(zoo, tmp_path):
    base, models = zoo
    for name, tensors in {"base": base, **models}.items():
        save_file({n: torch.tensor(v) for n, v in tensors.items()}, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in models]
    out, common = str(tmp_path / "zoo.sketches"), ["--base", str(tmp_path / "base.safetensors")]

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == code, result.output
        return result.output

    assert "2 models, 256 numbers each" in run("sketch", *paths[:2], *common, "--out", out, "--size", "256")
    assert "5 models, 256 numbers each" in run("sketch", *paths[2:], *common, "--out", out)
    assert "there already: m0" in run("sketch", paths[0], *common, "--out", out, code=1)
    table = tmp_path / "table.csv"
    shown = run("compare", out, "--out", str(table), "--sort-by", "weight_space_angle")
    assert "standard error of weight_space_angle" in shown
    assert "estimated from Sketches(5 models, 256 numbers each)" in shown
    expected = sketch(models, base, size=256).table().to_pandas()
    pd.testing.assert_frame_equal(mergekern.MetricTable.load(table).to_pandas(), expected, rtol=1e-10)
