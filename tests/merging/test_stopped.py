"""Merges that are killed, stopped or run twice: the next run gives the same bytes, and nothing else is left."""

import json
import os
import signal
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import cli
from mergekern._internal import claims
from mergekern._internal.claims import workspace
from mergekern.checkpoints import writer
from mergekern.errors import CheckpointError, OutputError
from tests.merging.zoos import SHAPES, drawn
from tests.support import faults

TENSORS = len(SHAPES)


def make_zoo(folder, models=3, as_folders=False):
    base, tuned = drawn(models, SHAPES)
    for name, tensors in {"base": base, **tuned}.items():
        path = folder / name / "model.safetensors" if as_folders else folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
        if as_folders:
            (folder / name / "config.json").write_text("{}")
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def killed_at(zoo, out, method, step, move):
    """Merge all pairs, and be killed at a step of the pass, or after a number of renames."""

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def progress(_):
        progress.calls += 1
        if progress.calls == step:
            die()

    def renamed(rename):
        def call(*arguments):
            if renamed.left == 0:
                die()
            renamed.left -= 1
            return rename(*arguments)

        return call

    progress.calls, renamed.left = 0, move
    if move is not None:
        writer.Path.replace, writer.Path.rename = renamed(Path.replace), renamed(Path.rename)
    mergekern.merge_all(zoo, methods=method, output=out, progress=progress)


def in_a_process(function, *arguments):
    process = faults.context.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("as_folders", [False, True], ids=["files", "folders"])
def test_merges_that_are_killed_again_and_again(tmp_path, as_folders):
    zoo, out = make_zoo(tmp_path / "zoo", as_folders=as_folders), tmp_path / "out"
    mergekern.merge_all(zoo, methods=["ties", "tsv"], output=tmp_path / "expected")
    renames = 1 if as_folders else 2
    for step, move in (
        (1, None),
        (TENSORS, None),
        (TENSORS + 1, None),
        (None, 0),
        (None, renames),
        (None, renames + 1),
    ):
        assert in_a_process(killed_at, zoo, out, ["ties", "tsv"], step, move) == -signal.SIGKILL
        for path in [path for path in out.glob("[!.]*/*") if path.suffix == ".safetensors" or path.is_dir()]:
            assert mergekern.checkpoints.records.record_path(path).is_file()
    there = [path for path in out.glob("[!.]*/*") if path.suffix != ".json"]
    assert there
    before = {path: path.stat().st_ino for path in there}
    assert len(mergekern.merge_all(zoo, methods=["ties", "tsv"], output=out)) == 6
    assert content(out) == content(tmp_path / "expected")
    assert {path: path.stat().st_ino for path in there} == before


def test_what_is_there_already_is_kept_only_if_it_is_the_same_merge(tmp_path, caplog):
    zoo, out = make_zoo(tmp_path / "zoo"), tmp_path / "out"
    paths = mergekern.merge_all(zoo, methods="ties", output=out)
    first = content(out)
    (out / ".mergekern-0.lock").touch()
    (out / ".mergekern-0").mkdir()
    mergekern.merge_all(zoo, methods="ties", output=out)
    assert content(out) == first
    paths[1].unlink()
    (out / "ties/model_1+model_2.mergekern.json").unlink()
    assert mergekern.merge_all(zoo, methods="ties", output=out) == paths
    assert content(out) == first
    assert "kept, as they are there already, made in the same way of the same models: 2" in caplog.text
    for how in ({"dtype": "bfloat16"}, {"options": {"ties": {"density": 0.4}}}):
        with pytest.raises(OutputError, match=r"in another way or of other models; pass overwrite=True"):
            mergekern.merge_all(zoo, methods="ties", output=out, **how)
    changed = load_file(zoo / "model_2.safetensors")
    changed["a"][0] += 1
    save_file(changed, zoo / "model_2.safetensors")
    with pytest.raises(OutputError, match=r"model_0\+model_2.safetensors: is there already"):
        mergekern.merge_all(zoo, methods="ties", output=out)
    assert content(out) == first
    mergekern.merge_all(zoo, methods="ties", output=out, overwrite=True)
    assert {name for name, what in content(out).items() if what == first[name]} == {
        "ties", "ties/model_0+model_1.safetensors", "ties/model_0+model_1.mergekern.json"
    }  # fmt: skip


def test_one_merge_that_is_killed_and_made_again(tmp_path):
    zoo, out = make_zoo(tmp_path / "zoo", models=2), tmp_path / "out"
    expected = mergekern.merge(zoo, method="ties", output=tmp_path / "m.safetensors").read_bytes()
    out.mkdir()
    for step in (1, TENSORS):
        assert in_a_process(killed_alone, zoo, out, step) == -signal.SIGKILL
        assert {path.name[:11] for path in out.iterdir()} == {".mergekern-"}
    mergekern.merge(zoo, method="ties", output=out / "m.safetensors")
    assert sorted(path.name for path in out.iterdir()) == ["m.mergekern.json", "m.safetensors"]
    assert (out / "m.safetensors").read_bytes() == expected


def killed_at_the_end(zoo, out):
    """Merge, and be killed when the result is in place and the workspace is not yet removed."""
    claims._remove = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    mergekern.merge(zoo, method="ties", output=out / "m.safetensors")


def test_what_a_finished_merge_left_behind_is_removed_though_its_result_is_there(tmp_path):
    zoo, out = make_zoo(tmp_path / "zoo", models=2), tmp_path / "out"
    out.mkdir()
    assert in_a_process(killed_at_the_end, zoo, out) == -signal.SIGKILL
    assert ".mergekern-" in {path.name[:11] for path in out.iterdir()}
    with pytest.raises(mergekern.OutputError, match="is there already"):
        mergekern.merge(zoo, method="ties", output=out / "m.safetensors")
    assert sorted(path.name for path in out.iterdir()) == ["m.mergekern.json", "m.safetensors"]


def killed_alone(zoo, out, step):
    def progress(p):
        if p.tensors_done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    mergekern.merge(zoo, method="ties", output=out / "m.safetensors", progress=progress)


def test_a_workspace_of_a_living_process_is_left_alone(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", models=2)
    out = tmp_path / "out"
    out.mkdir()
    with workspace(out) as place:
        (place / "half").write_text("of a merge")
        mergekern.merge(zoo, method="ties", output=out / "m.safetensors")
        assert (place / "half").is_file()
    assert sorted(path.name for path in out.iterdir()) == ["m.mergekern.json", "m.safetensors"]


def stopped(zoo, out, number):
    @contextmanager
    def display():
        yield lambda p: p.tensors_done == 1 and os.kill(os.getpid(), number)

    signal.signal(number, signal.SIG_DFL)  # under nohup a hang-up is ignored, and stays so
    cli.merging.progress_display = display
    cli.main(["merge", str(zoo), "--method", "ties", "--out", str(out / "m.safetensors")])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["terminated", "hung up"])
def test_a_command_that_is_told_to_end_cleans_up(tmp_path, number):
    zoo, out = make_zoo(tmp_path / "zoo"), tmp_path / "out"
    out.mkdir()
    assert in_a_process(stopped, zoo, out, number) == 128 + number
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("into", ["memory", "a file", "files"])
def test_a_model_that_is_rewritten_meanwhile(tmp_path, into):
    zoo, out = make_zoo(tmp_path / "zoo", models=2), tmp_path / "out"
    out.mkdir()
    other = {name: tensor * 3 for name, tensor in load_file(zoo / "model_1.safetensors").items()}
    save_file(other, tmp_path / "other.safetensors")

    def progress(p):
        if p.tensors_done == 1:  # as cp writes it
            with (zoo / "model_1.safetensors").open("r+b") as file:
                file.write((tmp_path / "other.safetensors").read_bytes())

    how = {"progress": progress, "max_memory": 200}
    if into == "files":
        job = partial(mergekern.merge_all, zoo, methods="ties", output=out, **how)
    else:
        path = out / "m.safetensors" if into == "a file" else None
        job = partial(mergekern.merge, zoo, method="ties", output=path, **how)
    with pytest.raises(CheckpointError, match=r"model_1.safetensors: was changed while"):
        job()
    assert not [path for path in out.rglob("*") if path.is_file()]


COLLIDING = {
    "plus signs": (("a", "b+c", "a+b", "c"), r"'a' and 'b\+c' and of 'a\+b' and 'c' would both be called"),
    "capitals": (("m", "M", "k"), r"'m' and 'k' and of 'M' and 'k' would both be called"),
}


@pytest.mark.parametrize(("names", "says"), COLLIDING.values(), ids=COLLIDING)
def test_no_two_merges_have_one_name(tmp_path, names, says):
    models = {name: {"w": torch.full((2, 2), float(value))} for value, name in enumerate(names)}
    with pytest.raises(mergekern.OptionError, match=says):
        mergekern.merge_all(models, {"w": torch.zeros(2, 2)}, "ties", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_too_long(tmp_path):
    models = {letter * 130: {"w": torch.ones(2)} for letter in "ab"}
    with pytest.raises(OutputError, match="name too long"):
        mergekern.merge_all(models, {"w": torch.zeros(2)}, "ties", output=tmp_path / "out")
    with pytest.raises(OutputError, match="name too long"):  # of its record
        mergekern.merge(models, {"w": torch.zeros(2)}, "ties", output=tmp_path / f"{'m' * 243}.safetensors")
    assert list(tmp_path.iterdir()) == []
    mergekern.merge(models, {"w": torch.zeros(2)}, "ties", output=tmp_path / f"{'m' * 240}.safetensors")


@pytest.mark.parametrize("name", ["k.mergekern.json", "k.safetensors"])
@pytest.mark.parametrize("what", ["mine", '{"version": 1}'])
def test_files_of_others_are_not_replaced(tmp_path, name, what):
    zoo = make_zoo(tmp_path / "zoo", models=2)
    (tmp_path / name).write_text(what)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=name):
            mergekern.merge(zoo, method="ties", output=tmp_path / "k.safetensors", overwrite=overwrite)
    assert (tmp_path / name).read_text() == what
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "zoo"])


def test_a_record_without_its_merge_is_replaced(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", models=2)
    path = mergekern.merge(zoo, method="ties", output=tmp_path / "k.safetensors")
    path.unlink()
    mergekern.merge(zoo, method="tsv", output=path)
    assert json.loads((tmp_path / "k.mergekern.json").read_text())["method"] == "tsv"
