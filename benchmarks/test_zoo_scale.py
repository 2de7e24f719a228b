"""Large zoos: how time and memory grow with the number of models, and what one more model costs."""

import shutil

import pandas as pd
import pytest

import mergekern
from benchmarks import counts
from benchmarks.conftest import ZOOS, ZooFolder
from benchmarks.peak_memory import PeakMemory
from benchmarks.vit_zoo import make_zoo
from mergekern.prediction.screening import screen

# Small encoders: 0.25 M parameters.
WIDTH, DEPTH = 64, 3


@pytest.fixture(scope="session")
def small():
    """500 models of 1 MB each."""
    folder = ZOOS / f"vit_w{WIDTH}_d{DEPTH}"
    make_zoo(folder, 500, WIDTH, DEPTH)
    return ZooFolder("small_vit", folder)


@pytest.fixture(scope="session")
def one_more(vit_b16):
    """A 21st model of the zoo of ViT-B/16."""
    folder = ZOOS / "vit_b16_one_more"
    make_zoo(folder, 1)  # the base of that zoo, and a model that is the first of it
    path = folder / "model_20.safetensors"
    if not path.exists():
        from safetensors.torch import save_file

        from benchmarks.vit_zoo import make_model, vit_shapes

        save_file(make_model(vit_shapes(), 20), path)
    path.read_bytes()
    return path


def screened(models, base, folder):
    """From files to a Parquet file of all pairs, in memory of a few models."""
    shutil.rmtree(folder, ignore_errors=True)
    mergekern.measure_into(folder, models, base)
    return screen(folder, out=folder.parent / "pairs.parquet")


@pytest.mark.parametrize("models", [50, 150, 500])
def test_pairs_of_many_models(benchmark, describe, small, tmp_path, models):
    some = small.first(models)
    if models == 50:
        found = screened(some, small.base_path, tmp_path / "s")
        table = mergekern.compute_all(some, small.base_path)
        written = pd.read_parquet(tmp_path / "pairs.parquet").set_index(["model_a", "model_b"])
        pd.testing.assert_frame_equal(written, table.to_pandas(), check_exact=True)
        assert found.pairs == len(table.to_pandas())
    describe(f"screen/{small.name}x{models}/files", counts.compute_all(small.base, models))
    with PeakMemory() as memory:
        found = benchmark.pedantic(screened, (some, small.base_path, tmp_path / "s"), rounds=2, iterations=1)
    benchmark.extra_info["peak_memory"] = memory.bytes
    assert found.pairs == models * (models - 1) // 2


def test_all_at_once(benchmark, describe, vit_b16, one_more, tmp_path):
    models = {**vit_b16.models, "model_20": one_more}
    describe("measure/vit_b16x21/files", counts.compute_all(vit_b16.base, 21), group="one more")

    def measure():
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        return mergekern.measure(models, vit_b16.base_path, statistics=tmp_path / "s")

    benchmark.pedantic(measure, rounds=1, iterations=1)


def test_one_more(benchmark, describe, vit_b16, one_more, tmp_path):
    """The same statistics, of which those of 20 models are there."""
    mergekern.measure(vit_b16.models, vit_b16.base_path, statistics=tmp_path / "s20")
    describe("add/vit_b16x20+1/files", counts.compute_all(vit_b16.base, 1), group="one more")

    def setup():
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        shutil.copytree(tmp_path / "s20", tmp_path / "s")

    with PeakMemory() as memory:
        found = benchmark.pedantic(
            lambda: mergekern.add_models(one_more, tmp_path / "s"), setup=setup, rounds=3, iterations=1
        )
    benchmark.extra_info["peak_memory"] = memory.bytes
    assert len(found.models) == 21
