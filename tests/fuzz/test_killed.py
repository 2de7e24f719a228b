"""Every command that writes is killed, and run again: the same bytes, and nothing left over."""

import os
import random
import time

import pytest

from tests.fuzz.killing import WRITING, contents, copy_world, finish, kill
from tests.fuzz.world import make_world

# Of each command; 20 by hand.
KILLS = int(os.environ.get("MERGEKERN_KILLS", "1"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    # What commands write says where its inputs lie, so the world is made where they will run.
    folder = tmp_path_factory.mktemp("world")
    make_world(folder / "here")
    (folder / "here").rename(folder / "world")
    return folder / "world"


@pytest.mark.parametrize("command", WRITING, ids=" ".join)
def test_a_killed_command_run_again_gives_the_same_bytes(world, command):
    here = copy_world(world, world.with_name("here"))
    start = time.monotonic()
    status, events = finish(here, command)
    assert status == 0
    seconds = time.monotonic() - start
    expected = contents(here)
    draw = random.Random(" ".join(command))
    for _ in range(KILLS):
        copy_world(world, here)
        kill(here, command, draw, events, seconds)
        status, _ = finish(here, command)
        found = contents(here)
        assert status in (0, 1)  # 1: the killed run had done all of its work, and it is not done twice
        assert sorted(found) == sorted(expected)
        assert [name for name in expected if found[name] != expected[name]] == []
