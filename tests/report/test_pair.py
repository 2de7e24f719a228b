"""One pair on the page, its address, and what can be downloaded, as a browser does it."""

import io
from urllib.parse import quote

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from mergekern import MetricTable
from mergekern.metrics import metric_of
from mergekern.report.contents import metric_title
from mergekern.report.words import number
from mergekern.tables.cells import from_cell
from tests.support.report_tables import HOSTILE, make_table

NAMES = ["zoe", HOSTILE, 'a,"b"', "d", "=e()", "f", "100%"]
METRICS = ["task_vector_cosine_similarity", "stable_rank", "weight_space_angle", "subspace_overlap"]
SAVED = """
const done = arguments[arguments.length - 1], [selector] = arguments;
const made = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  URL.createObjectURL = made;
  const reader = new FileReader();
  reader.onload = () => done([document.querySelector("a[download]")?.download, reader.result]);
  setTimeout(() => reader.readAsText(blob), 0);
  return made(blob);
};
document.querySelector(selector).click();
"""


@pytest.fixture(scope="module")
def table():
    missing = [("stable_rank", [(0, 2), (3, 4)])]
    made = make_table(7, 3, names=NAMES, metrics=METRICS, missing=missing)
    values = {name: made.matrix(name) for name in METRICS}
    layers = {name: {tensor: made.matrix(name) for tensor in made.per_layer(name)} for name in METRICS}
    # Some pairs are as good as others.
    values["subspace_overlap"] = np.round(values["subspace_overlap"], 1)
    error = np.abs(np.random.default_rng(1).standard_normal((7, 7))) * 1e-3
    of_layers = {"subspace_overlap": {tensor: 2 * (error + error.T) for tensor in layers["subspace_overlap"]}}
    errors = {"subspace_overlap": error + error.T}
    return MetricTable(made.models, values, layers, errors=errors, layer_errors=of_layers)


@pytest.fixture
def page(browser, path):
    browser.open(path)
    yield browser
    assert browser.messages() == []


def chosen(page):
    return page.run("return [...document.querySelectorAll('#pair-a, #pair-b')].map(e => e.selectedOptions[0].text)")


def choose(page, element, value):
    page.run("const e = document.getElementById(arguments[0]); e.value = arguments[1];"
             "e.dispatchEvent(new Event('change'))", element, value)  # fmt: skip


def saved(page, selector):
    """Press a button, and return what it saves: the text, and the name of the file."""
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "deny"})
    _, text = page.driver.execute_async_script(SAVED, selector)
    return text, page.run("return document.getElementById('said').textContent").removesuffix(" was saved")


def test_a_pair_has_its_values_with_rank_and_percentile(page, table):
    choose(page, "pair-a", 3)
    choose(page, "pair-b", 5)
    rows = page.run("return [...document.querySelectorAll('#pair-metrics tbody tr:not(.category)')]"
                    ".map(row => [...row.cells].map(cell => cell.textContent))")  # fmt: skip
    frame = table.to_pandas()
    assert [row[0] for row in rows] == [metric_title(name) for name in table.metrics]
    for name, row in zip(table.metrics, rows, strict=True):
        values = frame[name].dropna()
        better = metric_of(name).more_mergeable
        rank = values.rank(method="min", ascending=better == "lower").loc[("d", "f")]
        value = values.loc[("d", "f")]
        worse = (values < value).sum() if better == "higher" else (values > value).sum()
        error = f"± {number(table.error(name)[3, 5])}" if name == "subspace_overlap" else ""
        expected = [f"{number(value)}{error}", f"{rank:.0f} of {len(values)}"]
        expected += [f"{100 * worse / (len(values) - 1):.0f} %", better]
        assert row[1:] == expected


def test_a_pair_without_a_value_has_no_rank(page):
    choose(page, "pair-a", 0)
    choose(page, "pair-b", 2)
    rows = page.run("return [...document.querySelectorAll('#pair-metrics tr')].map(row => row.innerText.split('\\t'))")
    (row,) = (row for row in rows if row[0].strip() == "Stable rank")
    assert [cell.strip() for cell in row[1:4]] == ["—", "—", "—"]


def encoded(name):
    """Return a name as encodeURIComponent of JavaScript does."""
    return quote(name, safe="!'()*")


def test_the_address_names_the_pair(browser, page, path):
    page.run("document.querySelector('#ranking tbody tr:nth-child(3) button').click()")
    pair = chosen(page)
    assert page.run("return location.href") == f"{path.as_uri()}#pair={encoded(pair[0])},{encoded(pair[1])}"
    for first, second in (('a,"b"', "100%"), (HOSTILE, "zoe")):
        browser.driver.get("about:blank")
        browser.driver.get(f"{path.as_uri()}#pair={encoded(first)},{encoded(second)}")
        assert chosen(browser) == [first, second]
        assert browser.wait("return Math.abs(document.getElementById('pair').getBoundingClientRect().top) < 200")
    browser.run("location.hash = '#pair=d,f'")
    browser.wait("return ['pair-a', 'pair-b'].map(id => document.getElementById(id).value).join() === '3,5'")


@pytest.mark.parametrize("wrong", ["d,nobody", "d,d", "d", "%,d", "d,f,zoe"])
def test_a_wrong_address_shows_another_pair_and_says_so(browser, path, wrong):
    browser.driver.get("about:blank")
    browser.driver.get(f"{path.as_uri()}#pair={wrong}")
    assert "not in the table" in browser.run("return document.getElementById('pair-message').textContent")
    first, second = chosen(browser)
    assert first != second
    assert browser.messages() == []


def test_pairs_are_downloaded_with_every_digit_and_column(page, table):
    page.run("const f = document.getElementById('filter'); f.value = 'zoe'; f.dispatchEvent(new Event('input'))")
    text, name = saved(page, "[data-csv=ranking]")
    assert name == "ranking.csv"
    found = pd.read_csv(io.StringIO(text), index_col=["model_a", "model_b"])
    expected = table.to_pandas(with_errors=True)
    expected = expected[["zoe" in pair for pair in expected.index]]
    assert list(found) == ["task_vector_cosine_similarity", "weight_space_angle", "stable_rank", "subspace_overlap",
                           "error[subspace_overlap]"]  # fmt: skip
    ranked = expected.sort_values("task_vector_cosine_similarity", ascending=False, kind="stable")
    assert [tuple(map(from_cell, pair)) for pair in found.index] == list(ranked.index)
    for column in found:
        rtol = 1e-6 if column.startswith("error") else 0
        np.testing.assert_allclose(found[column], ranked[column], rtol=rtol)


def test_the_file_of_all_pairs_is_a_table_again(page, table, tmp_path):
    text, _ = saved(page, "[data-csv=ranking]")
    (tmp_path / "pairs.csv").write_text(text)
    assert ",'=e()," in text
    loaded = MetricTable.load(tmp_path / "pairs.csv")
    assert set(loaded.models) == set(NAMES)
    order = [loaded.models.index(name) for name in NAMES]
    for name in METRICS:
        found, expected = loaded.matrix(name)[np.ix_(order, order)], table.matrix(name)
        off_diagonal = ~np.eye(7, dtype=bool)
        np.testing.assert_array_equal(found[off_diagonal], expected[off_diagonal])


def test_a_pair_and_tables_of_the_page_are_downloaded(page, table):
    choose(page, "pair-a", 3)
    choose(page, "pair-b", 5)
    text, name = saved(page, "[data-csv=pair-metrics]")
    assert name == "pair-metrics.csv"
    found = pd.read_csv(io.StringIO(text)).set_index("metric")
    assert list(found["value"]) == list(table.to_pandas().loc[("d", "f")])
    assert list(found.index) == list(table.metrics)
    text, name = saved(page, "[data-csv=metrics-table]")
    assert name == "metrics.csv"
    lowest = pd.read_csv(io.StringIO(text)).set_index("Metric")["Lowest"]
    formula = metric_of("stable_rank").formula
    assert float(lowest[f"Stable rank{formula}"]) == pytest.approx(table.to_pandas()["stable_rank"].min(), rel=1e-3)


def test_a_plot_is_downloaded_as_it_is_seen(page, tmp_path):
    page.run("document.getElementById('heatmap-plot').scrollIntoView()")
    page.wait("return document.getElementById('heatmap-plot').data")
    # Only the file itself says whether it is an image.
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.run("document.querySelector('[data-png=heatmap-plot]').click()")
    page.wait("return document.getElementById('said').textContent === 'heatmap.png was saved'")
    target = tmp_path / "heatmap.png"
    for _ in range(200):
        if target.exists():
            break
        page.run("return new Promise(done => setTimeout(done, 50))")
    image = matplotlib.image.imread(target)
    size = page.run("const e = document.getElementById('heatmap-plot'); return [e.clientHeight, e.clientWidth]")
    assert image.shape[:2] == (2 * size[0], 2 * size[1])
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    assert image[..., :3].std() > 0.05


def test_commands_are_copied(page):
    page.run("document.querySelector('[data-copy]').click()")
    page.wait("return document.getElementById('said').textContent === 'The command was copied'")
    assert page.run("return document.activeElement.dataset.copy") == "command-1"


def test_metrics_with_a_sign_have_their_middle_at_0(page, table):
    page.run("document.getElementById('heatmap-plot').scrollIntoView()")
    ends = "const t = document.getElementById('heatmap-plot').data?.[0]; return t && [t.zmin, t.zmax]"
    values = table.to_pandas()
    most = values["task_vector_cosine_similarity"].abs().max()
    assert page.wait(ends) == [-most, most]
    choose(page, "metric", "stable_rank")
    assert page.run(ends) == [values["stable_rank"].min(), values["stable_rank"].max()]


def test_estimated_errors_are_seen_in_every_view(page, table):
    text = page.run(
        "return [...document.querySelectorAll('#column-choice label')].map(label => label.textContent.trim())"
    )
    assert "Subspace overlap" in text
    shown = page.run("return [...document.querySelectorAll('#ranking tbody td small')].map(cell => cell.textContent)")
    assert len(shown) == 21
    assert all(cell.startswith("± ") for cell in shown)
    choose(page, "metric", "subspace_overlap")
    page.run("document.getElementById('layers-plot').scrollIntoView()")
    bars = page.wait("return document.getElementById('layers-plot').data?.at(-1).error_y?.array")
    a, b = (table.models.index(name) for name in chosen(page))
    expected = [table.error("subspace_overlap", tensor)[a, b] for tensor in table.per_layer("subspace_overlap")]
    np.testing.assert_allclose(bars, expected, rtol=1e-6)
