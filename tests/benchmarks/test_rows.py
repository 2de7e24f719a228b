"""Rows of benchmarks: their schema, which one counts, and that a run writes them."""

import doctest
import json

import pytest

from benchmarks import conftest, counts, machine, plots, rows, vit_zoo

pytest_plugins = ["pytester"]
KEYS = {
    *("case", "device", "commit", "dirty", "versions", "seconds", "bytes", "flops", "ceiling", "fraction"),
    "time",
}
# Of rows of some suites: bytes, seconds of the processor, and what disturbed the machine.
OPTIONAL = {"peak_memory", "processor_seconds", "remark"}
RATES = rows.Rates(bytes=100.0, flops=10.0)


def sample(case="a", device="x", time="2025-01-01", samples=(4.0,)):
    return rows.make(case, samples, 100, 30, RATES, {"device": device, "time": time})


@pytest.mark.parametrize("module", [counts, plots, rows, vit_zoo], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("bytes", "flops", "ceiling"), [(100, 30, 3.0), (500, 30, 5.0), (0, 0, 0.0)])
def test_the_ceiling_is_the_slower_of_reading_and_computing(bytes, flops, ceiling):
    row = rows.make("a", [10.0, 10.0, 1.0], bytes, flops, RATES, {})
    assert row["ceiling"] == ceiling
    assert row["fraction"] == pytest.approx(ceiling / 10.0)


def test_what_is_appended_is_read_in_the_order_of_time(tmp_path):
    assert rows.read(tmp_path / "absent") == []
    later, earlier = sample(time="2025-02-01"), sample("b", time="2025-01-01")
    rows.append(later, "a_suite", tmp_path)
    rows.append(earlier, "other", tmp_path)
    assert rows.read(tmp_path) == [earlier, later]


def test_newest_of_one_device():
    measured = [sample("a", "old"), sample("b", "old"), sample("a", "x"), sample("b", "x"), sample("a", "x", "later")]
    assert rows.newest_of_one_device(measured, "a") == {"a": measured[4], "b": measured[3]}
    assert rows.newest_of_one_device(measured, "none") == {}


def test_rows_of_the_repository_have_just_the_keys_of_the_schema():
    for row in rows.read():
        assert row.keys() - OPTIONAL == KEYS, row["case"]
        assert row["seconds"].keys() == {"median", "p25", "p75", "min", "rounds"}


def test_a_run_appends_a_row_for_what_passed(pytester, monkeypatch):
    monkeypatch.setattr(machine, "READ_ELEMENTS", 1000)
    monkeypatch.setattr(machine, "GEMM_SIZE", 10)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # beside which benchmarks are off
    pytester.makepyfile(
        test_suite="""
        import pytest
        from benchmarks.counts import Counts

        @pytest.mark.parametrize("right", [True, False])
        def test_case(benchmark, describe, right):
            describe(f"case/{right}", Counts(bytes=8, flops=8), per=2)
            benchmark.pedantic(int, rounds=3)
            assert right

        def test_without_a_benchmark():
            pass

        """
    )
    done = pytester.runpytest_inprocess("--results", "results", plugins=[conftest])
    done.assert_outcomes(passed=2, failed=1)
    (row,) = rows_in(pytester.path / "results" / "suite.jsonl")
    assert row.keys() == KEYS
    assert row["case"] == "case/True"
    assert row["seconds"]["rounds"] == 3
    assert row["device"] == machine.processor()
    read, gemm = rows_in(pytester.path / "results" / "machine.jsonl")
    assert (read["case"], gemm["case"]) == ("machine/read", "machine/gemm_float64")
    by_bytes, by_flops = 8 * read["ceiling"] / read["bytes"], 8 * gemm["ceiling"] / gemm["flops"]
    assert row["ceiling"] == pytest.approx(max(by_bytes, by_flops))


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
