"""Write the metric table of README.md anew from the catalogue; `--check` only tells whether it is up to date."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from mergekern.metrics import CATALOGUE

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- metrics: begin (python/make_readme.py) -->", "<!-- metrics: end -->"


def metric_table() -> str:
    """Return the catalogue as a Markdown table."""
    rows = ["| metric | formula | range | more mergeable |", "|---|---|---|---|"]
    category = None
    for metric in CATALOGUE.values():
        if metric.category != category:
            category = metric.category
            rows.append(f"| **{category}** | | | |")
        low, high = ("∞" if v == math.inf else "−∞" if v == -math.inf else f"{v:g}" for v in metric.range)
        formula = metric.formula.replace("|", "\\|")
        rows.append(f"| `{metric.name}` | {formula} | [{low}, {high}] | {metric.more_mergeable} |")
    return "\n".join(rows)


def with_table(text: str) -> str:
    """Return the README's text with its metric table made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{metric_table()}\n{END}{after}"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if the table is out of date.")
def main(check: bool) -> None:
    """Write the metric table of README.md anew."""
    text = README.read_text("utf-8")
    if check and text != with_table(text):
        sys.exit("README.md: the metric table is out of date; run `make readme`")
    if not check:
        README.write_text(with_table(text), "utf-8")


if __name__ == "__main__":
    main()
