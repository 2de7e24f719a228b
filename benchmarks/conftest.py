"""Turns the results of pytest-benchmark into rows, with --results FOLDER; and the zoos that suites share.

A benchmark says what it measures by `benchmark.extra_info`: case, bytes, flops and, where one call does the work of
several, `per`, their number; and, where it was measured, the `peak_memory`. A test that fails leaves no row.
"""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks import machine, rows
from benchmarks.vit_zoo import make_zoo, vit_shapes

ZOOS = Path(__file__).parents[1] / "bench_zoo"
RUN = pytest.StashKey[tuple[rows.Rates, dict]]()


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="append rows to the files of this folder")


def pytest_sessionstart(session):
    folder = session.config.getoption("--results")
    if folder is not None:
        provenance = machine.provenance()
        rates, cases = machine.measure_rates()
        session.config.stash[RUN] = rates, provenance
        for case, measured in cases.items():
            rows.append(rows.make(case, *measured, rates, provenance), "machine", folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if call.when == "call" and report.passed and RUN in item.config.stash and benchmark and benchmark.stats:
        info = benchmark.extra_info
        samples = [seconds / info.get("per", 1) for seconds in benchmark.stats.stats.data]
        row = rows.make(info["case"], samples, info["bytes"], info["flops"], *item.config.stash[RUN])
        row |= {name: info[name] for name in ("peak_memory",) if name in info}
        rows.append(row, item.path.stem.removeprefix("test_"), item.config.getoption("--results"))
    return report


@pytest.fixture
def describe(benchmark):
    """Name the case of a benchmark and its counts; alternatives of one thing share its group."""

    def named(case, counts, group=None, per=1):
        benchmark.group = group or case
        benchmark.extra_info.update(case=case, bytes=counts.bytes, flops=counts.flops, per=per)

    return named


class ZooFolder:
    """A folder of checkpoints: its name in cases, the base, and the models' paths by name."""

    def __init__(self, name, folder):
        self.name, self.base_path = name, folder / "base.safetensors"
        self.base = load_file(self.base_path)
        self.models = {path.stem: path for path in sorted(folder.glob("*.safetensors")) if path != self.base_path}
        for path in (self.base_path, *self.models.values()):
            path.read_bytes()  # into the page cache

    def first(self, count):
        return dict(list(self.models.items())[:count])


@pytest.fixture(scope="session")
def vit_b16():
    """20 models of ViT-B/16 shape, or the folder MERGEKERN_BENCH_ZOO under a name that says how it differs."""
    folder = Path(os.environ.get("MERGEKERN_BENCH_ZOO", ZOOS / "vit_b16"))
    if "MERGEKERN_BENCH_ZOO" not in os.environ:
        make_zoo(folder, models=20)
    zoo = ZooFolder("vit_b16", folder)
    if {name: tuple(tensor.shape) for name, tensor in zoo.base.items()} != vit_shapes():
        zoo.name = f"other_{sum(tensor.numel() for tensor in zoo.base.values())}"
    return zoo


@pytest.fixture(scope="session")
def small_vit():
    """40 models of width 384 and depth 4, of which cases take the first few."""
    make_zoo(ZOOS / "vit_w384_d4", models=40, width=384, depth=4)
    return ZooFolder("vit_w384_d4", ZOOS / "vit_w384_d4")
