import base64
import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import mergekern
from mergekern import MetricTable, OptionError
from mergekern.cli import main
from mergekern.errors import OutputError
from mergekern.metrics import CATALOGUE
from mergekern.report import contents, document, page, write_report
from mergekern.report.contents import QUANTILES, gather
from mergekern.report.page import number, render
from tests.report.parsed import Page
from tests.support.report_tables import HOSTILE, make_table


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_every_number_is_in_the_files_of_the_table(tmp_path, suffix):
    made = make_table(missing=[("input_gradient_l2_distance", [(1, 4)])])
    made.save(tmp_path / f"table.{suffix}")
    write_report(MetricTable.load(tmp_path / f"table.{suffix}"), tmp_path / "report.html")
    found = Page((tmp_path / "report.html").read_text())
    assert found.document["models"] == list(made.models)
    frame = made.to_pandas()
    assert [metric["name"] for metric in found.document["metrics"]] == list(frame)
    tensors = found.document["tensors"]
    for metric in found.document["metrics"]:
        name = metric["name"]
        np.testing.assert_array_equal(found.arrays[metric["values"]], frame[name].to_numpy())
        alone = made.per_layer(name)
        assert [tensors[index] for index in metric["tensors"]] == list(alone)
        if metric["tensors"]:
            values = found.arrays[metric["layers"]].reshape(alone.shape[::-1])
            np.testing.assert_array_equal(values, alone.to_numpy(np.float32).T)
            spread = found.arrays[metric["spread"]].reshape(len(QUANTILES), -1)
            np.testing.assert_allclose(spread, np.quantile(alone, QUANTILES, axis=0), rtol=1e-12)
        orders = found.arrays[metric["orders"]].reshape(-1, 6)
        assert len(orders) == 1 + len(metric["tensors"])
        assert (np.sort(orders, axis=1) == np.arange(6)).all()
    for kind, array in found.document["correlations"].items():
        np.testing.assert_allclose(found.arrays[array].reshape(len(CATALOGUE), -1), frame.corr(kind), rtol=1e-12)


def test_the_table_of_metrics_is_the_tables(tmp_path):
    table = make_table()
    rows = {row[0]: row for row in Page(render(gather(table), "t")).rows if row}
    for name, column in table.to_pandas().items():
        metric = mergekern.CATALOGUE[name]
        row = rows[f"{page.metric_title(name)}{metric.formula}"]
        assert row[2] == metric.more_mergeable
        assert row[3:6] == [number(value) for value in (column.min(), column.median(), column.max())]
        for shown, value in zip(row[3:6], (column.min(), column.median(), column.max()), strict=True):
            assert float(shown) == pytest.approx(value, rel=6e-4)
        assert " ".join(row[7].split()) == ", ".join(table.ranked(name).index[0])


def test_names_and_notes_are_text(tmp_path):
    names = [HOSTILE, "</script><script>alert(1)</script>", "a'b\"c", "{{ 7 * 7 }}", "&lt;", "<!--"]
    html = render(gather(make_table(names=names)), HOSTILE)
    found = Page(html)
    assert found.document["models"] == names
    assert not [attributes for tag, attributes in found.tags if tag == "img"]
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert len(scripts) == len(Page(render(gather(make_table()), "t")).arrays) + 1 + len(page.SCRIPTS) + 2
    text = "".join(found.text)
    assert text.count(HOSTILE) >= 2
    assert "{{ 7 * 7 }}" in text
    assert "a tensor & its <note>" in text


def test_nothing_is_fetched():
    found = Page(render(gather(make_table()), "t"))
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "poster", "srcset", "data"):
            assert re.match(r"#|data:,$", attributes.get(name, "#")), (tag, attributes)
    policy = next(a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:", policy)


def test_provenance_and_notes_are_there():
    found = Page(render(gather(make_table()), "t"))
    assert ["options.frozen", "exclude"] in found.rows
    assert ["options.top_k", "10"] in found.rows
    plain = MetricTable(["a", "b"], {"stable_rank": np.ones((2, 2))})
    text = "".join(Page(render(gather(plain), "t")).text)
    assert "does not say how it was made" in text
    assert "no tensor was left out" in text


def test_twenty_models_with_fifty_layers_stay_small():
    html = render(gather(make_table(20, 50, all_have_layers=True)), "t")
    assert sum("layers" in metric for metric in Page(html).document["metrics"]) == len(CATALOGUE)
    assert len(html.encode()) < 3_000_000
    alone = render(gather(make_table(20, 0)), "t")
    assert len(alone.encode()) < 1_000_000


def test_two_hundred_models_stay_small_and_say_what_is_left_out(monkeypatch):
    monkeypatch.setattr(contents, "SPLIT_MODELS", 100)  # shares of the models take no room, and half of the time
    html = render(gather(make_table(200, 0)), "t")
    assert len(html.encode()) < 4_000_000
    found = Page(html)
    assert page.TOO_MANY_PAIRS in "".join(found.text)
    assert all(found.arrays[f"values/{name}"].size == 19_900 for name in CATALOGUE)


def test_each_section_has_one_plain_sentence():
    html = render(gather(make_table()), "t")
    sections = re.findall(r'<section id="([\w-]+)".*?</h2>\s*<p class="(\w+)">(.*?)</p>', html, re.DOTALL)
    assert len(sections) == html.count("<section ") == 9
    for name, kind, sentence in sections:
        assert kind == ("lead" if name == "answer" else "summary")
        assert re.fullmatch(r"[A-Z][^.]*\.", sentence) or name == "answer", sentence


def test_the_library_of_plots_is_the_one_that_is_named():
    folder = Path(page.__file__).parent / "plotly"
    text = gzip.decompress((folder / "plotly-cartesian.min.js.gz").read_bytes()).decode()
    version = re.search(r"plotly\.js \(cartesian - minified\) v([\d.]+)", text[:400]).group(1)
    assert f"version {version}" in " ".join((folder / "README.md").read_text().split())
    assert (folder / "LICENSE").read_text().startswith("MIT License")
    html = render(gather(make_table(3, 0)), "t")
    assert f"v{version}; Copyright" in html
    (packed,) = re.findall(r'<script type="text/plain" id="plotly">(.*?)</script>', html)
    assert gzip.decompress(base64.b64decode(packed)).decode() == text


def test_tensors_that_are_too_many_are_noted(monkeypatch):
    monkeypatch.setattr(contents, "LAYER_VALUES", 10)
    found = Page(render(gather(make_table()), "t"))
    assert not [metric for metric in found.document["metrics"] if "layers" in metric]
    assert "spread/stable_rank" in found.arrays
    assert page.TOO_MANY_LAYERS in "".join(found.text)


def test_large_tables_keep_seven_digits(monkeypatch):
    monkeypatch.setattr(document, "EXACT_PAIRS", 14)
    table = make_table(6, 0)
    found = Page(render(gather(table), "t"))
    assert page.TOO_MANY_PAIRS in "".join(found.text)
    values = found.arrays["values/stable_rank"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, table.to_pandas()["stable_rank"].to_numpy(np.float32))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1.000"), (-0.5, "-0.5000"), (0.001, "0.001000"), (0.00099, "9.900e-4"), (9999.6, "10000"),
     (9999.4, "9999"), (99999, "99999"), (1e5, "1.000e+5"),
     (1e-12, "1.000e-12"), (123.456, "123.5"), (float("inf"), "—")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_the_command_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = make_table()
    table.save("table.parquet")
    result = CliRunner().invoke(main, ["report", "table.parquet", "--metric", "stable_rank", "--title", "My zoo"])
    assert result.output == "wrote report.html\n"
    found = Page((tmp_path / "report.html").read_text())
    assert found.document["first"] == "stable_rank"
    assert "My zoo" in found.text
    result = CliRunner().invoke(main, ["report", "table.parquet", "--out", "other.html"])
    assert "Mergeability of 6 models" in Page((tmp_path / "other.html").read_text()).text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table.csv", "--metric", "stabel_rank"], "did you mean 'stable_rank'"),
        (["gone.csv"], "gone.csv"),
        (["table.csv", "--out", "report.docx"], "report.docx"),
        (["table.csv", "--out", "gone/report.html"], "no such folder"),
        (["table.csv", "--out", "report.pdf"], "--static"),
        (["table.csv", "--out", "report.html", "--static"], "--static"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_table().save("table.csv")
    result = CliRunner().invoke(main, ["report", *arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_errors_of_the_function(tmp_path):
    with pytest.raises(OptionError, match=r"report\.docx.*\.html"):
        write_report(make_table(), tmp_path / "report.docx")
    with pytest.raises(OutputError, match="no such folder"):
        write_report(make_table(), tmp_path / "gone" / "report.html")


def test_a_missing_extra_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "mergekern.report.page")
    with pytest.raises(OptionError, match=r"jinja2.*mergekern\[report\]"):
        write_report(make_table(2, 0), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_same_table_gives_the_same_page():
    assert render(gather(make_table()), "t") == render(gather(make_table()), "t")
