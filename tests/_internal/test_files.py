"""Files are written whole or not at all; what killed processes left is removed, and what cannot be written is said."""

import errno
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import mergekern
from mergekern import OutputError
from mergekern._internal import files
from mergekern._internal.files import check_output, hidden, link_or_copy, replacing, write_atomically, write_output
from mergekern.cli import main
from tests.support import faults


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(path):
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", ["table.csv", "n" * 250], ids=["short", "long"])
def test_what_killed_processes_left_is_removed(tmp_path, name):
    path = tmp_path / name
    for _ in range(2):
        process = faults.context.Process(target=killed_while_writing, args=(path,))
        process.start()
        process.join()
        assert len(names(tmp_path)) == 1
    write_atomically(path, b"whole")
    assert names(tmp_path) == [name]
    assert path.read_bytes() == b"whole"


def test_a_living_writer_is_left_alone(tmp_path):
    path = tmp_path / "table.csv"
    with replacing(path) as first:
        first.write_bytes(b"first")
        write_atomically(path, b"second")
        check_output(path)
        assert first.read_bytes() == b"first"
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["table.csv"]


def test_many_writers_of_one_file(tmp_path):
    path, contents = tmp_path / "table.csv", [bytes([65 + index]) * 5000 for index in range(8)]

    def write(content):
        for _ in range(20):
            write_atomically(path, content)
            assert path.read_bytes() in contents

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["table.csv"]


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("mergekern._internal.claims.fcntl.flock", unsupported)
    path = tmp_path / "table.csv"
    with replacing(path) as first:  # perhaps of a living process: nobody can tell
        first.write_bytes(b"first")
        write_atomically(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


def test_a_file_of_the_hidden_name_that_is_open_elsewhere_is_not_followed(tmp_path):
    block, target = tmp_path / "block", tmp_path / "target"
    block.write_bytes(b"never changes")
    link_or_copy(block, target)
    link_or_copy(block, target)
    write_atomically(target, b"other")
    assert block.read_bytes() == b"never changes"
    assert names(tmp_path) == ["block", "target"]


def readonly(tmp_path):
    """Return a folder that cannot be written to, whoever asks."""
    (tmp_path / "ro").mkdir(mode=0o555)
    return tmp_path / "ro" if os.getuid() else "/sys"


BAD = {
    "folder": (lambda folder: folder / "there.csv", "Is a directory"),
    "long": (lambda folder: folder / f"{'n' * 300}.csv", "File name too long"),
    "rights": (lambda folder: f"{readonly(folder)}/t.csv", "cannot be written"),
    "missing": (lambda folder: folder / "no" / "t.csv", "does not exist|no folder|no such folder"),
    "pipe": (lambda folder: folder / "pipe.csv", "neither a file nor new|Invalid argument"),
}
COMMANDS = {
    "metrics": ["metrics", "{zoo}"],
    "compare": ["compare", "{sketches}"],
    "plan": ["plan-measurements", "{table}", "-k", "1"],
    "table": ["table", "{statistics}"],
    "mergekit": ["merge", "{zoo}", "--method", "ties", "--mergekit-config"],
    "sketch": ["sketch", "{zoo}"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Paths of what commands read."""
    folder = tmp_path_factory.mktemp("given")
    kept = {"statistics": folder / "s", "table": folder / "t.csv", "sketches": folder / "k"}
    (folder / "zoo").mkdir()
    for index, name in enumerate(("base", "a", "b", "c")):
        save_file({"w": torch.eye(5) + index}, folder / "zoo" / f"{name}.safetensors")
    mergekern.compute_all(folder / "zoo", metrics="stable_rank", statistics=folder / "s").save(folder / "t.csv")
    mergekern.sketch(folder / "zoo", size=64).save(folder / "k")
    return {"zoo": folder / "zoo", **kept}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("place", "says"), BAD.values(), ids=BAD)
def test_one_error_before_anything_is_computed(tmp_path, given, monkeypatch, command, place, says):
    (tmp_path / "there.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    monkeypatch.setattr("mergekern.checkpoints.stream.LayerStream.__iter__", pytest.fail)
    monkeypatch.setattr("mergekern.checkpoints.stream.LayerStream.with_factors", pytest.fail)
    before = names(tmp_path)
    out = place(tmp_path)
    result = CliRunner().invoke(main, [*(part.format(**given) for part in command), "--out", str(out)])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert result.output.count("Error: ") == 1
    assert str(out) in result.output
    assert re.search(says, result.output)
    assert names(tmp_path) in (before, sorted([*before, "ro"]))


def test_a_table_is_kept_where_its_file_cannot_be_written(tmp_path, given, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "aside"))
    (tmp_path / "aside").mkdir()
    out = tmp_path / "t.csv"
    write = files.write_atomically

    def full(path, content):
        if path == out or not (tmp_path / "aside").is_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", full)
    arguments = ["metrics", str(given["zoo"]), "--metrics", "stable_rank", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    kept = result.output.rpartition("the table is kept in ")[2].strip()
    assert "No space left on device" in result.output
    assert Path(kept).read_text() == given["table"].read_text()
    (tmp_path / "aside").rename(tmp_path / "gone")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert given["table"].read_text() in result.output
    assert not out.exists()


def test_write_output_and_hidden_names(tmp_path):
    with pytest.raises(OutputError, match="Is a directory"):
        write_output(tmp_path, b"")
    assert len(os.fsencode(hidden(tmp_path / ("ü" * 120), "0").name)) <= 255
