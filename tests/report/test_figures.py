import io
import re

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from mergekern import MetricTable
from mergekern.cli import main
from mergekern.report import write_report
from mergekern.report.contents import gather
from mergekern.report.figures import as_pdf, as_png, draw
from tests.support.report_tables import HOSTILE, make_table


def test_figures_show_the_numbers_of_the_table():
    table = make_table(missing=[("stable_rank", [(0, 3)])])
    contents = gather(table, "stable_rank")
    figures = draw(contents)
    assert list(figures) == ["pairs", "heatmap", "layers", "correlations"]
    best = table.ranked("stable_rank")["stable_rank"].dropna()
    (points,) = figures["pairs"].axes[0].lines
    np.testing.assert_array_equal(points.get_xdata(), best.to_numpy())
    labels = [label.get_text() for label in figures["pairs"].axes[0].get_yticklabels()]
    assert labels == [f"{a}, {b}" for a, b in best.index]
    axes = figures["heatmap"].axes[0]
    order = [table.models.index(label.get_text()) for label in axes.get_yticklabels()]
    expected = table.matrix("stable_rank")
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), expected[np.ix_(order, order)])
    (median,) = figures["layers"].axes[0].lines
    np.testing.assert_allclose(median.get_ydata(), table.per_layer("stable_rank").median())
    np.testing.assert_allclose(figures["correlations"].axes[0].images[0].get_array(), table.to_pandas().corr())


def test_colours_of_a_metric_with_a_sign_are_around_0():
    table = make_table()
    image = draw(gather(table, "task_vector_cosine_similarity"))["heatmap"].axes[0].images[0]
    most = table.to_pandas()["task_vector_cosine_similarity"].abs().max()
    assert image.get_clim() == (-most, most)
    assert image.get_cmap().name == "PuOr_r"
    assert draw(gather(table, "stable_rank"))["heatmap"].axes[0].images[0].get_cmap().name == "cividis_r"


def test_names_are_drawn_as_they_are():
    names = [HOSTILE, "$x^2$", r"\frac", "a_b", "100%", "#"]
    labels = {label.get_text() for label in draw(gather(make_table(names=names)))["heatmap"].axes[0].get_yticklabels()}
    assert labels == set(names)
    as_png(draw(gather(make_table(names=names)))["heatmap"])


def test_pdf_has_a_page_for_each_figure_and_no_date():
    contents = gather(make_table())
    pdf = as_pdf(draw(contents))
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 4
    assert pdf == as_pdf(draw(contents))


def test_png_is_an_image():
    image = matplotlib.image.imread(io.BytesIO(as_png(draw(gather(make_table()))["heatmap"])))
    assert image.shape[:2] == (1560, 1800)
    assert image[..., :3].std() > 0.1


@pytest.mark.parametrize(
    ("out", "files"),
    [
        ("figures.pdf", ["figures.pdf"]),
        ("f.png", ["f-correlations.png", "f-heatmap.png", "f-layers.png", "f-pairs.png"]),
        (None, ["report.pdf"]),
    ],
)
def test_the_command_writes_figures(tmp_path, monkeypatch, out, files):
    monkeypatch.chdir(tmp_path)
    make_table().save("table.parquet")
    result = CliRunner().invoke(main, ["report", "table.parquet", "--static", *(["--out", out] if out else [])])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*files, "table.parquet"])


def test_one_metric_alone(tmp_path):
    table = MetricTable(["a", "b"], {"stable_rank": np.ones((2, 2))})
    assert [path.name for path in write_report(table, tmp_path / "r.png")] == ["r-pairs.png", "r-heatmap.png"]
