import doctest
import importlib.util
import re
from pathlib import Path

import pytest

from mergekern import METHODS
from mergekern.metrics import CATALOGUE, MERGE_PROBES, MODEL_SCORES

SCRIPT = Path(__file__).parents[2] / "python" / "make_readme.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_readme", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(script):
    return {page.name: page.read_text("utf-8") for page in script.PAGES}


@pytest.fixture(scope="module")
def text(pages):
    return pages["speed.md"]


def rows_of(script, seconds, device="abacus"):
    provenance = {"device": device, "time": "2025-01-01"}
    rates = script.rows.Rates(bytes=10.0, flops=10.0)
    return [script.rows.make(case, [median], 10, 10, rates, provenance) for case, median in seconds.items()]


def test_examples_in_docstrings(script):
    assert doctest.testmod(script).failed == 0


def test_tables_are_up_to_date(script, pages):
    for name, text in pages.items():
        assert script.with_tables(text, script.rows.read()) == text, f"{name}: run `make readme`"
    assert all(f"| `{name}` |" in pages["metrics.md"] for name in (*CATALOGUE, *MODEL_SCORES, *MERGE_PROBES))
    assert all(f"| `{name}` |" in pages["README.md"] for name in METHODS)
    for name, page in (("| `stable_rank` |", "metrics.md"), ("| `isotropic_cts` |", "README.md")):
        changed = pages[page].replace(name, "| `gone` |")
        assert script.with_tables(changed, script.rows.read()) == pages[page] != changed


def test_metrics_are_shown_with_their_caveats(pages):
    for metric in (*CATALOGUE.values(), *MODEL_SCORES.values(), *MERGE_PROBES.values()):
        for part in (metric.explanation, metric.undefined, metric.remark):
            assert part in pages["metrics.md"]


def test_the_readme_is_short(pages):
    text = pages["README.md"]
    generated = sum(len(part.splitlines()) for part in re.findall(r": begin .*?: end -->", text, re.DOTALL))
    assert len(text.splitlines()) - generated <= 125


def test_speed_of_what_runs_models(script, text):
    seconds = {script.COMPUTE_ALL: 2.0, script.ONE_PAIR: 10.0, script.PROBES: 20.0, script.ONE_PAIR_OF_RUNS: 40.0}
    measured = rows_of(script, seconds)
    for row in measured:
        row["peak_memory"] = 1.25e9
    written = script.with_tables(text, measured)
    assert "| every model once, 190 pairs (1.2 GB of memory beside mapped files) | 20.0 s | 5% |" in written
    assert "| both models anew for every metric: **one** pair | 40.0 s | 2% |" in written
    assert "that is 380 times the speed." in written


@pytest.mark.parametrize("name", ["speed.md", "README.md"])
def test_speed_stays_where_a_whole_run_was_not_measured(script, pages, name):
    assert script.with_tables(pages[name], []) == pages[name], "run `make readme`"
    assert script.with_tables(pages[name], rows_of(script, {script.COMPUTE_ALL: 2.0})) == pages[name]


def test_summary_of_the_speed(script, pages):
    seconds = {script.COMPUTE_ALL: 2.0, script.ONE_PAIR: 10.0, script.PROBES: 20.0, script.ONE_PAIR_OF_RUNS: 40.0}
    measured = [row | {"peak_memory": 1.25e9} for row in rows_of(script, seconds)]
    written = script.with_tables(pages["README.md"], measured)
    assert "| 18 metrics of the weights | 2.0 s | 0.5 h (950 times as long) |" in written
    assert "samples a task | 20.0 s | 2.1 h (380 times as long) |" in written
    assert "\nOn abacus.\n" in written


def test_speed_table_of_rows(script, text):
    seconds = {
        script.COMPUTE_ALL: 2.0,
        script.ONE_PAIR: 10.0,
        script.WITH_EXTENSION: 1.0,
        f"{script.WITH_EXTENSION}/numpy": 1.5,
        script.GRAM: 0.25,
        f"{script.GRAM}/torch": 0.5,
    }
    earlier = rows_of(script, {case: 100.0 for case in seconds}) + rows_of(script, {script.COMPUTE_ALL: 7.0}, "other")
    written = script.with_tables(text, earlier + rows_of(script, seconds))
    speed = written.split("<!-- speed: begin (python/make_readme.py) -->\n")[1].split("<!-- speed: end -->")[0]
    assert speed.startswith("On abacus ")
    assert "190 pairs | 2.0 s | 50% |" in speed
    assert "**one** pair | 10.0 s | 10.0% |" in speed
    assert "that is 950 times the speed" in speed
    assert "takes 1.5 times as long" in speed
    assert "| 250 ms | 400% | plain torch: 500 ms |" in speed
    assert script.with_tables(written, []) == written
