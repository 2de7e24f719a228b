"""Fixtures around one measured zoo; the conftest.py of a folder imports those that its tests use."""

import shutil

import pytest

import mergekern
from tests.support.zoos import write_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo in files, not to be written to."""
    return write_zoo(tmp_path_factory.mktemp("zoo") / "zoo")


@pytest.fixture(scope="module")
def expected(zoo):
    """The table of the zoo, with every layer."""
    return mergekern.compute_all(zoo, per_layer=True)


@pytest.fixture(scope="module")
def measured(zoo, tmp_path_factory):
    """The folder of a finished measurement of the zoo, not to be written to."""
    folder = tmp_path_factory.mktemp("measured") / "s"
    mergekern.measure(zoo, statistics=folder)
    return folder


@pytest.fixture(scope="module")
def shards(zoo, tmp_path_factory):
    """The folders of both of two shards of the zoo, not to be written to."""
    folder = tmp_path_factory.mktemp("shards")
    return [mergekern.measure_shard(zoo, shard=(index, 2), statistics=folder) for index in (1, 2)]


@pytest.fixture
def folder(measured, tmp_path):
    """A copy of the folder of a finished measurement, which a test may change."""
    return shutil.copytree(measured, tmp_path / "s")
