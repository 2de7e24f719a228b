"""One browser for the tests of a process, and the file of a module's table."""

import pytest

from mergekern.report import write_report
from tests.support import browser as chromium


@pytest.fixture(scope="package")
def browser():
    if not (chromium.CHROMIUM and chromium.DRIVER):
        pytest.skip(chromium.MISSING)
    found = chromium.Browser()
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def path(table, tmp_path_factory):
    """Write the page of the `table` of a module."""
    (written,) = write_report(table, tmp_path_factory.mktemp("report") / "report.html")
    return written
