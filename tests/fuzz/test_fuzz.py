import pytest

from mergekern.cli import main
from tests.fuzz.killing import WRITING
from tests.fuzz.running import run_commands, run_inputs
from tests.fuzz.targets import TARGETS
from tests.fuzz.world import make_world
from tests.support.faults import run

INPUTS = 1500


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    make_world(folder)
    return folder


# It reads no file but its own, and tests/study stops it at every stage.
WITHOUT_WORLD = {"study"}


def test_every_command_gets_hostile_files_and_every_writing_one_is_killed():
    read = {command[0] for commands in TARGETS.values() for command in commands} | {command[0] for command in WRITING}
    assert read == set(main.commands) - WITHOUT_WORLD
    with_out = {name for name, command in main.commands.items() if any(p.name == "out" for p in command.params)}
    assert with_out - WITHOUT_WORLD <= {command[0] for command in WRITING}


def test_commands_end_well_where_no_file_is_changed(world):
    commands = sorted({command for commands in TARGETS.values() for command in commands})
    ends = run(run_commands, world, commands)
    assert not [(command, end) for command, end in zip(commands, ends, strict=True) if end != (0, "")]


def test_hostile_files_end_in_one_error_in_words(world):
    outcomes = list(run_inputs(world, 0, range(INPUTS)))
    assert sorted(outcome.number for outcome in outcomes) == list(range(INPUTS))
    faults = [f"{outcome.number}: {outcome.what}\n{outcome.fault}" for outcome in outcomes if outcome.fault]
    assert not faults, "\n".join(faults[:5])
    # Or the inputs would be of one kind, and show nothing.
    assert {outcome.exit for outcome in outcomes} >= {0, 1}
    assert sum(outcome.exit == 1 for outcome in outcomes) > INPUTS // 5
