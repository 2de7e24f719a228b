"""The page of a report: seconds to write it and to open it, and its size.

python -m benchmarks.report

Opened means that the ranked table and the first heatmap are drawn, in the system's Chromium, from a file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click

from mergekern.report import write_report
from tests.support.browser import CHROMIUM, DRIVER, MISSING, Browser
from tests.support.report_tables import make_table

REPEATS = 5
SETTLED = "const d = document.getElementById('heatmap-plot').data; return d && performance.now()"


def opening_seconds(browser: Browser, path: Path) -> float:
    """Open the page, the heatmap in sight, and return the seconds until it was drawn."""
    browser.open(path)
    browser.run("document.getElementById('heatmap').scrollIntoView({behavior: 'instant'})")
    return browser.wait(SETTLED, seconds=120) / 1000


@click.command()
@click.option("--repeats", default=REPEATS, show_default=True)
def main(repeats: int) -> None:
    """Measure a zoo of 20 models with 50 layers, and one of 1000 models."""
    if not (CHROMIUM and DRIVER):
        raise click.ClickException(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        for models, layers in ((20, 50), (1000, 0)):
            table = make_table(models, layers, all_have_layers=True)
            path = Path(folder) / "report.html"
            start = time.perf_counter()
            write_report(table, path)
            written = time.perf_counter() - start
            browser = Browser()
            try:
                opened = [opening_seconds(browser, path) for _ in range(repeats)]
            finally:
                browser.driver.quit()
            pairs = models * (models - 1) // 2
            click.echo(
                f"{pairs:,} pairs × {len(table.metrics)} metrics × {layers} layers: written in {written:.2f} s, "
                f"{path.stat().st_size / 1e6:.2f} MB, opened in {statistics.median(opened):.2f} s "
                f"(of {repeats}: {min(opened):.2f} to {max(opened):.2f})"
            )


if __name__ == "__main__":
    main()
