"""interval_coverage.py, on few draws: intervals cover as often among low predictions as among high ones."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from marked_tables import with_table
from tests.support.measurements import PUBLISHED, needs_published

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("interval_coverage", ROOT / "python" / "interval_coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_third(script, zoos):
    """Return the coverage of the lowest, the middle and the highest predictions."""
    pairs = pd.concat([script.covered(zoo, "prior+additive") for zoo in zoos])
    return pairs.groupby(np.clip(pairs["tenth"] // 3, 0, 2))["inside"].mean()


@pytest.mark.parametrize("errors_grow", [True, False])
def test_intervals_cover_whether_errors_depend_on_the_prediction_or_not(script, errors_grow):
    assert by_third(script, script.simulated_zoos(14, 30, 6, errors_grow)).between(0.7, 0.9).all()


@needs_published
def test_intervals_cover_the_lowest_predictions_of_the_study(script):
    assert by_third(script, script.study_zoos(PUBLISHED, 20, 40, 6)).between(0.7, 0.9).all()


def test_the_table_of_a_page_is_replaced(script, monkeypatch):
    monkeypatch.setattr(script, "SIZES", ((6, 8),))
    found = script.coverage(None, 2, ("prior+additive",))
    table = script.as_markdown(found)
    assert len(found) == 2
    assert found["known"].between(0, 1).all()
    page = f"a\n{script.MARKS[0]}\nold\n{script.MARKS[1]}\nb\n"
    assert with_table(page, script.MARKS, table) == f"a\n{script.MARKS[0]}\n\n{table}\n\n{script.MARKS[1]}\nb\n"
    assert script.MARKS[0] in (ROOT / "docs" / "prediction.md").read_text("utf-8")
