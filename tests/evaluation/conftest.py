import pytest

from tests.support.digits import write_digits_zoo


@pytest.fixture(scope="session")
def digits_zoo(tmp_path_factory):
    """A folder with a base and six trained models."""
    return write_digits_zoo(tmp_path_factory.mktemp("digits") / "zoo")
