"""One browser for the tests of a process."""

import pytest

from tests.support import browser as chromium


@pytest.fixture(scope="package")
def browser():
    if not (chromium.CHROMIUM and chromium.DRIVER):
        pytest.skip(chromium.MISSING)
    found = chromium.Browser()
    yield found
    found.driver.quit()
