"""What svd="randomized" saves on a language model: processor time of all metrics of weights, both ways in one run.

MERGEKERN_BENCH_LAYERS says how many of TinyLlama's 22 layers the models have; embedding and head are whole. Of 22, the
files take 9 GB and the exact way minutes.
"""

import os
import time

import numpy as np
import pytest

import mergekern
from benchmarks.conftest import ZOOS
from benchmarks.counts import Counts
from benchmarks.llama_zoo import make_zoo

MODELS, DIRECTIONS = 3, 200
# Rates of the machine are of all threads and of the time that passes: processor time has no ceiling by them.
NO_CEILING = Counts(0, 0)
LAYERS = int(os.environ.get("MERGEKERN_BENCH_LAYERS", "2"))
TABLES = {}


@pytest.fixture(scope="module")
def zoo():
    folder = ZOOS / f"llama_l{LAYERS}_d{DIRECTIONS}"
    make_zoo(folder, MODELS, LAYERS, directions=DIRECTIONS)
    for path in folder.glob("*.safetensors"):
        path.read_bytes()  # into the page cache
    return folder


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_language_model(benchmark, describe, zoo, svd):
    case = f"compute_all/llama_l{LAYERS}x{MODELS}/processor_time"
    describe(f"{case}/{svd}", NO_CEILING, group=case)
    TABLES[svd] = benchmark.pedantic(mergekern.compute_all, args=(zoo,), kwargs={"svd": svd}, rounds=1)
    if svd == "randomized" and "exact" in TABLES:
        for name in TABLES[svd].estimated:
            missed = np.abs(TABLES[svd].matrix(name) - TABLES["exact"].matrix(name))
            assert (missed <= 2 * TABLES[svd].error(name)).all(), name
