import importlib.util
from pathlib import Path

from mergekern.metrics import CATALOGUE

SCRIPT = Path(__file__).parents[2] / "python" / "make_readme.py"


def test_metric_table_of_the_readme_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_readme", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.README.read_text("utf-8")
    assert script.with_table(text) == text, "run `make readme`"
    assert all(f"`{name}`" in text for name in CATALOGUE)
    assert script.with_table(text.replace("`stable_rank`", "`gone`")) == text
