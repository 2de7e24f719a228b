"""The page as a browser shows it. benchmarks/report.py measures how fast it opens."""

import numpy as np
import pytest

from mergekern.metrics import RANKED_BY
from mergekern.prediction import MergePredictor
from mergekern.report import write_report
from mergekern.report.contents import leaf_order
from mergekern.report.words import number
from tests.support.report_tables import HOSTILE, make_scores, make_table

PLOT = "const plot = document.getElementById(arguments[0]); "


@pytest.fixture(scope="module")
def table():
    return make_table(7, 4, names=["zoe", HOSTILE, "a&b", "d", "e", "f", "<b>g</b>"])


@pytest.fixture
def page(browser, path):
    browser.open(path)
    yield browser
    assert browser.messages() == []
    assert browser.requests() == [path.as_uri()]


def cells(page, column):
    """Return the texts in one column of the ranked table."""
    rows = "[...document.querySelectorAll('#ranking tbody tr')]"
    return page.run(f"return {rows}.map(row => row.cells[arguments[0]].firstChild.textContent)", column)


def table_of(page, selector):
    """Return the rows of a table as {heading: text}; those of headings within it are left out."""
    texts = page.run(
        "return [...document.querySelector(arguments[0]).rows].map(row => [...row.cells].map(c => c.textContent))",
        selector,
    )
    return [dict(zip(texts[0], row, strict=True)) for row in texts[1:] if len(row) == len(texts[0])]


def drawn(page, plot):
    """Bring a plot into sight and return its first trace's values once it is drawn."""
    page.run(PLOT + "plot.scrollIntoView()", plot)
    return page.wait(PLOT + "return plot.data?.[0].z?.map(r => Array.from(r, v => v === v ? v : null))", plot)


def choose(page, element, value):
    page.run(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('change'))", element, value,
    )  # fmt: skip


def expected_heatmap(values, models, more="higher"):
    order = leaf_order(values, models, more)
    matrix = np.full((models, models), np.nan)
    i, j = np.triu_indices(models, 1)
    matrix[i, j] = matrix[j, i] = values
    return matrix[np.ix_(order, order)]


def as_array(z):
    return np.array(z, dtype=np.float64)


def test_ranked_table_begins_with_the_most_mergeable_and_sorts(page, table):
    best = table.ranked(RANKED_BY)
    assert list(zip(cells(page, 1), cells(page, 2), strict=True)) == list(best.index)
    shown = [float(value) for value in cells(page, 3)]
    np.testing.assert_allclose(shown, best[RANKED_BY], rtol=6e-4)
    heading = "document.querySelectorAll('#ranking thead button')[0]"
    page.run(f"{heading}.click()")
    assert list(zip(cells(page, 1), cells(page, 2), strict=True)) == list(best.index[::-1])
    assert page.run(f"return {heading}.parentElement.ariaSort") == "descending"
    page.run("document.querySelectorAll('#ranking thead button')[1].click()")
    title = page.run("return document.querySelectorAll('#ranking thead button')[1].firstChild.textContent")
    name = {"Effective rank": "effective_rank"}[title]
    assert list(zip(cells(page, 1), cells(page, 2), strict=True)) == list(table.ranked(name).index)


def test_filter_and_columns(page, table):
    page.run("const f = document.getElementById('filter'); f.value = 'ZO'; f.dispatchEvent(new Event('input'))")
    assert len(cells(page, 1)) == 6
    assert all("zoe" in pair for pair in zip(cells(page, 1), cells(page, 2), strict=True))
    page.run("[...document.querySelectorAll('#column-choice label')].find(l => l.textContent.includes('Stable rank'))"
             ".querySelector('input').click()")  # fmt: skip
    headings = page.run("return [...document.querySelectorAll('#ranking thead th')].map(h => h.textContent.trim())")
    shown = [float(value) for value in cells(page, headings.index("Stable rank"))]
    frame = table.to_pandas()["stable_rank"]
    pairs = list(zip(cells(page, 1), cells(page, 2), strict=True))
    np.testing.assert_allclose(shown, frame.loc[pairs], rtol=6e-4)


def test_heatmap_shows_the_metric_and_the_layer_that_are_chosen(page, table):
    frame = table.to_pandas()
    first = as_array(drawn(page, "heatmap-plot"))
    np.testing.assert_array_equal(first, expected_heatmap(frame[RANKED_BY].to_numpy(), 7, "lower"))
    choose(page, "metric", "weight_space_angle")
    expected = expected_heatmap(frame["weight_space_angle"].to_numpy(), 7, "lower")
    np.testing.assert_array_equal(as_array(drawn(page, "heatmap-plot")), expected)
    choose(page, "layer", "3")
    layer = table.per_layer("weight_space_angle")["blocks.2.weight"].to_numpy()
    found = as_array(drawn(page, "heatmap-plot"))
    np.testing.assert_array_equal(found, expected_heatmap(layer, 7, "lower").astype(np.float32))
    # A metric without values per tensor shows the values of whole models.
    choose(page, "metric", "activation_l2_distance")
    expected = expected_heatmap(frame["activation_l2_distance"].to_numpy(), 7, "lower")
    np.testing.assert_array_equal(as_array(drawn(page, "heatmap-plot")), expected)
    assert page.run("return document.getElementById('layer').disabled")
    assert "not defined for single tensors" in page.run("return document.getElementById('layers-message').textContent")


def test_layers_follow_the_pair_that_is_chosen(page, table):
    choose(page, "pair-a", "3")
    choose(page, "pair-b", "5")
    page.run(PLOT + "plot.scrollIntoView()", "layers-plot")
    traces = page.wait(PLOT + "return plot.data?.map(t => Array.from(t.y))", "layers-plot")
    alone = table.per_layer(RANKED_BY)
    np.testing.assert_allclose(traces[-1], alone.loc[("d", "f")].to_numpy(np.float32))
    np.testing.assert_allclose(traces[-2], alone.median(), rtol=1e-12)
    choose(page, "pair-a", "5")
    assert page.run("return [document.getElementById('pair-a').value, document.getElementById('pair-b').value]") == [
        "5",
        "3",
    ]
    page.run("document.querySelector('#ranking tbody tr:nth-child(2) button').click()")
    second = table.ranked(RANKED_BY).index[1]
    traces = page.run(PLOT + "return plot.data.map(t => Array.from(t.y))", "layers-plot")
    np.testing.assert_allclose(traces[-1], alone.loc[second].to_numpy(np.float32))
    assert page.run("return document.querySelector('tr[aria-current]').rowIndex") == 2


def test_correlations(page, table):
    found = as_array(drawn(page, "correlations-plot"))
    np.testing.assert_allclose(found, table.to_pandas().corr(), rtol=1e-12)
    choose(page, "correlation-kind", "spearman")
    found = as_array(drawn(page, "correlations-plot"))
    np.testing.assert_allclose(found, table.to_pandas().corr("spearman"), rtol=1e-12)


def test_names_are_shown_as_text_everywhere(page):
    drawn(page, "heatmap-plot")
    for section in ("pairs", "heatmap", "metrics"):
        shown = page.run("return document.getElementById(arguments[0]).textContent", section)
        assert HOSTILE in shown or (section == "heatmap" and HOSTILE[:21] in shown)
    ticks = page.run("return [...document.querySelectorAll('#heatmap-plot .ytick text')].map(t => t.textContent)")
    assert sorted(ticks) == sorted(["zoe", f"{HOSTILE[:21]}…", "a&b", "d", "e", "f", "<b>g</b>"])
    assert page.run("return document.querySelectorAll('img').length") == 0


def test_keys_alone_are_enough(page, table):
    press = (
        "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: arguments[1], bubbles: true, cancelable: true}))"
    )
    drawn(page, "heatmap-plot")
    page.run("document.getElementById('heatmap-plot').focus()")
    focused = page.run("return document.activeElement")
    assert focused.get_attribute("id") == "heatmap-plot"
    order = leaf_order(table.to_pandas()[RANKED_BY].to_numpy(), 7, "lower")
    for _ in range(7):
        page.run(press, focused, "ArrowUp")
        page.run(press, focused, "ArrowLeft")
    page.run(press, focused, "ArrowRight")
    first, second = table.models[order[0]], table.models[order[1]]
    value = table.matrix(RANKED_BY)[order[0], order[1]]
    text = page.run("return document.getElementById('heatmap-readout').textContent")
    assert text.startswith(f"{first} and {second}: ")
    assert float(text.rpartition(" ")[2]) == pytest.approx(value, rel=6e-4)
    page.run(press, focused, "Enter")
    chosen = page.run("return [document.getElementById('pair-a').value, document.getElementById('pair-b').value]")
    assert [int(value) for value in chosen] == list(order[:2])
    controls = "document.querySelectorAll('#ranking button, select, #filter, .plot.square')"
    assert page.run(f"return [...{controls}].every(control => control.tabIndex === 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_plots_and_page_go_together(page, scheme):
    drawn(page, "heatmap-plot")
    choose(page, "scheme", scheme)
    ink = page.run("return getComputedStyle(document.body).color")
    assert page.run("return document.getElementById('heatmap-plot').layout.font.color") == ink
    dark = sum(int(part) for part in ink[4:-1].split(",")) > 380
    assert dark == (scheme == "dark")


def test_outcomes(browser, tmp_path):
    table = make_table(7, 0, names=[HOSTILE, *"bcdefg"], metrics=["stable_rank", "effective_rank", "subspace_overlap"])
    scores = make_scores(table, [HOSTILE, "tsv"])
    predictor = MergePredictor.fit(table, scores["tsv"], "tsv", "linear")
    write_report(table, tmp_path / "report.html", scores=scores, predictors=[predictor])
    browser.open(tmp_path / "report.html")
    predicted = predictor.predict(table)
    assert list(zip(cells(browser, 1), cells(browser, 2), strict=True)) == list(predicted.index)
    np.testing.assert_allclose([float(value) for value in cells(browser, 3)], predicted["prediction"], rtol=6e-4)
    browser.run("document.querySelector('#ranking tbody tr:nth-child(3) button').click()")
    scores_of_pair = table_of(browser, "#selected table")
    (of_tsv,) = (row for row in scores_of_pair if row["Method"] == "tsv")
    assert of_tsv["What moved it most"] == predicted["drivers"].iloc[2]
    assert of_tsv["Predicted"].split()[0] == number(predicted["prediction"].iloc[2])
    assert of_tsv["Measured"] == number(scores["tsv"][predicted.index[2]])
    for plot, traces in (
        ("accuracy-plot", 2), ("coefficients-plot", 2), ("effects-plot", 2), ("budgets-plot", 2), ("regret-plot", 4),
    ):  # fmt: skip
        browser.run(PLOT + "plot.scrollIntoView()", plot)
        names = browser.wait(PLOT + "return plot.data?.map(trace => trace.name)", plot)
        assert len(names) == traces
    legend = browser.run("return [...document.querySelectorAll('#effects-plot .legendtext')].map(t => t.textContent)")
    assert legend == [HOSTILE, "tsv"]
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.messages() == []
    assert browser.requests() == [(tmp_path / "report.html").as_uri()]


def test_a_thousand_models_open(browser, tmp_path):
    table = make_table(1000, 0, metrics=["task_vector_cosine_similarity", "stable_rank"])
    write_report(table, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert browser.run("return document.querySelectorAll('#ranking tbody tr').length") == 25
    assert "1–25 of 499,500 pairs" in browser.run("return document.getElementById('page-range').textContent")
    browser.run("document.getElementById('heatmap-plot').scrollIntoView()")
    size = browser.wait(PLOT + "return plot.data?.map(({z}) => [z.length, z[0].length])[0]", "heatmap-plot", seconds=60)
    assert size == [1000, 1000]
    browser.run("document.getElementById('page-last').click()")
    best = table.ranked("task_vector_cosine_similarity")
    worst = best.index[-1]
    assert (cells(browser, 1)[-1], cells(browser, 2)[-1]) == worst
    assert browser.run("return document.querySelectorAll('*').length") < 3000
    assert browser.messages() == []
