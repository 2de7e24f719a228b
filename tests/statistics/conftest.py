"""The zoo that the tests of statistics measure, and its table."""

import pytest

import mergekern
from tests.statistics.zoos import write_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("zoo") / "zoo")


@pytest.fixture(scope="module")
def expected(zoo):
    return mergekern.compute_all(zoo, per_layer=True)
