"""What the command line says of itself, and how much it says while it works."""

import logging
from collections import namedtuple

import click
import pytest
from click.testing import CliRunner

import mergekern
from mergekern.cli import display, main, versions
from mergekern.cli.group import SECTIONS
from tests.merging.test_stopped import make_zoo


@pytest.fixture(autouse=True)
def as_before():
    """Leave the level of notes as it was."""
    notes = logging.getLogger("mergekern.notes")
    level = notes.level
    yield
    notes.setLevel(level)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_help_lists_every_command_once_by_what_it_is_for():
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(main.commands)
    lines = run("--help").output.splitlines()
    # A continued line is indented further.
    found = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert [name for name in found if name in main.commands] == listed
    assert all(f"{title}:" in lines for title in SECTIONS)


def test_help_of_every_command_begins_with_what_it_does():
    for name, command in main.commands.items():
        assert command.help, name
        options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
        assert [each.name for each in options if not each.help] == [], name


def test_version_says_what_computes(monkeypatch):
    found = run("--version").output
    assert found.startswith(f"mergekern {mergekern.__version__}\ncompiled kernels: ")
    assert "torch " in found
    monkeypatch.setattr(versions, "find_spec", lambda name: None)
    assert f"compiled kernels: {versions.MISSING}" in versions.version_lines()


def test_quiet_shows_results_alone(zoo, tmp_path):
    out = tmp_path / "m.safetensors"
    loud, quiet = run("merge", zoo, "--method", "ties", "--out", out), run("-q", "merge", zoo, "--method", "ties",
                                                                            "--out", out, "--overwrite")  # fmt: skip
    assert loud.exit_code == quiet.exit_code == 0
    assert "tensor 1/" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == f"wrote {out}\n"
    assert "exclude each other" in run("-q", "-v", "info", zoo).output


def test_at_most_one_line_of_progress_in_five_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    lines = display.ProgressLines()
    for second in range(12):
        now[0] = float(second)
        lines.show(f"at {second}", is_last=second == 11)
    assert capsys.readouterr().err.splitlines() == ["at 0", "at 5", "at 10", "at 11"]


def test_merges_that_the_disk_has_no_room_for_are_refused_before_they_are_made(zoo, tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("mergekern.merging.to_files.shutil.disk_usage", lambda place: usage(1000, 900, 100))
    found = run("merge-all", zoo, "--methods", "ties", "--out", tmp_path / "all")
    assert found.exit_code == 1
    assert "3 merges need" in found.stderr
    assert "are free; make room" in found.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_merge_all_says_what_it_needs(zoo, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "mergekern.notes"):
        mergekern.merge_all(zoo, methods="weight_average", output=tmp_path / "all")
    assert any("3 merges need" in line and "are free" in line for line in caplog.messages)
