"""The page by an accessibility checker, axe-core, in Chromium, and on a phone."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from mergekern.prediction import MergePredictor
from mergekern.report.answer import Answer, Step
from mergekern.report.contents import gather
from mergekern.report.page import render
from tests.support.report_tables import HOSTILE, make_scores, make_table

METRICS = ["task_vector_cosine_similarity", "stable_rank", "subspace_overlap"]
CHECK = """
const done = arguments[arguments.length - 1];
axe.run({ resultTypes: ["violations"] }).then(({ violations, passes }) => done({ violations, passes: passes.length }));
"""


@pytest.fixture(scope="module")
def axe():
    found = find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("needs axe-core: pip install axe-playwright-python")
    return (Path(found.origin).parent / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind: of metrics alone, with predictions, and as `best_merge` writes it."""
    folder = tmp_path_factory.mktemp("pages")
    table = make_table(6, 2, names=[HOSTILE, *"bcdef"], metrics=METRICS)
    scores = make_scores(table)
    predictor = MergePredictor.fit(table, scores["tsv"], "tsv", "linear")
    answer = Answer(["Merge b and c by tsv."], ["model a", "score"], [["b", "0.5"]], "Best", steps=[Step("Rest.")])
    alone, predicted = gather(table), gather(table, scores=scores, predictors=[predictor])
    given = {"metrics": (alone,), "predictions": (predicted,), "best": (predicted, answer)}
    for name, (contents, *said) in given.items():
        (folder / f"{name}.html").write_text(render(contents, name, *said))
    return {name: folder / f"{name}.html" for name in given}


def phone(browser, width=360):
    size = {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def as_it_was(browser):
    yield
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(
    ("kind", "scheme", "width"),
    [("metrics", "light", None), ("predictions", "dark", None), ("predictions", "light", 360), ("best", "light", None)],
    ids=str,
)
def test_no_serious_violation(browser, axe, pages, as_it_was, kind, scheme, width):
    if width:
        phone(browser, width)
    browser.open(pages[kind])
    browser.run("const e = document.getElementById('scheme'); e.value = arguments[0];"
                "e.dispatchEvent(new Event('change'));"
                "for (const more of document.querySelectorAll('details')) more.open = true;", scheme)  # fmt: skip
    browser.run(axe)
    found = browser.driver.execute_async_script(CHECK)
    assert found["passes"] > 20
    serious = [violation for violation in found["violations"] if violation["impact"] in ("serious", "critical")]
    assert [(one["id"], one["help"], [node["html"] for node in one["nodes"]][:3]) for one in serious] == []


@pytest.mark.parametrize("kind", ["metrics", "predictions", "best"])
def test_a_narrow_window_needs_no_sideways_scrolling(browser, pages, as_it_was, kind):
    phone(browser)
    browser.open(pages[kind])
    for plot in ("heatmap-plot", "correlations-plot"):
        browser.run("document.getElementById(arguments[0]).scrollIntoView()", plot)
        browser.wait("return document.getElementById(arguments[0]).data", plot)
    assert browser.run("return document.documentElement.scrollWidth") == 360
    outside = "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .plot, .hidden') && "
    outside += "e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 80))"
    assert browser.run(outside) == []
    assert browser.messages() == []


def test_the_menu_of_a_phone_folds_and_leads_to_every_section(browser, pages, as_it_was):
    phone(browser)
    browser.open(pages["predictions"])
    seen = "return document.querySelector('#sections').checkVisibility()"
    assert not browser.run(seen)
    browser.run("document.getElementById('menu').click()")
    assert browser.run(seen)
    assert browser.run("return document.getElementById('menu').ariaExpanded") == "true"
    linked = browser.run("return [...document.querySelectorAll('#sections a')].map(link => link.hash.slice(1))")
    assert linked == browser.run("return [...document.querySelectorAll('main section')].map(section => section.id)")
    browser.run("document.querySelector('#sections a[href=\"#notes\"]').click()")
    assert not browser.run(seen)
    top = "return Math.abs(document.getElementById('notes').getBoundingClientRect().top) < innerHeight"
    assert browser.wait(top)
    browser.run("document.getElementById('menu').click(); document.getElementById('menu').dispatchEvent("
                "new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))")  # fmt: skip
    assert not browser.run(seen)


def test_headings_stay_in_sight(browser, pages, as_it_was):
    phone(browser)
    browser.open(pages["metrics"])
    gap = "const region = document.querySelector('#pair-metrics').parentElement; region.scrollTop = 200;"
    gap += "const heading = region.querySelector('thead th').getBoundingClientRect();"
    gap += "return [region.scrollTop, heading.top - region.getBoundingClientRect().top]"
    browser.run("document.querySelector('#pair-metrics').parentElement.style.maxHeight = '8rem'")
    scrolled, distance = browser.run(gap)
    assert scrolled > 50
    assert abs(distance) < 3
