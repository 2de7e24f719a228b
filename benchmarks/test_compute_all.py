"""compute_all against the plain per-pair implementation, side by side on the same checkpoints.

By default a ViT of width 384 with 4 models, made once; MERGEKERN_BENCH_ZOO names a folder to measure on instead,
such as one that benchmarks/vit_zoo.py made.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mergekern
from benchmarks.baseline import pair_metrics
from benchmarks.vit_zoo import make_zoo
from mergekern.metrics import CATALOGUE


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    if folder := os.environ.get("MERGEKERN_BENCH_ZOO"):
        return Path(folder)
    folder = tmp_path_factory.mktemp("zoo")
    make_zoo(folder, models=4, width=384, depth=4)
    return folder


@pytest.fixture(scope="module")
def first_pair(zoo):
    paths = [path for path in sorted(zoo.glob("*.safetensors")) if path.stem != "base"][:2]
    return load_file(zoo / "base.safetensors"), *(load_file(path) for path in paths)


def test_all_pairs(benchmark, zoo, first_pair):
    table = benchmark.pedantic(mergekern.compute_all, args=(zoo,), rounds=1)
    expected = pair_metrics(*first_pair, dtype=torch.float64)
    for name in CATALOGUE:
        near = {"abs": 1e-4, "rel": 0} if CATALOGUE[name].needs == "spectra" else {"rel": 1e-5, "abs": 0}
        assert table.to_pandas().iloc[0][name] == pytest.approx(expected[name], **near), name
    benchmark.extra_info["pairs"] = len(table.to_pandas())


def test_one_pair_by_the_baseline(benchmark, first_pair):
    benchmark.pedantic(pair_metrics, args=first_pair, rounds=1)
    benchmark.extra_info["pairs"] = 1
