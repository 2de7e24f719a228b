"""Files of sketches: two processes lose nothing of each other, notes stay with the models, inputs must not change."""

import os
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekern import CheckpointError, MismatchError, OutputError, Sketches, sketch
from mergekern._internal.locks import locked_file
from mergekern.sketches import sketches as module
from tests.support import faults

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def zoo(tmp_path):
    generator = torch.Generator().manual_seed(3)
    for name in ("base", *NAMES):
        save_file({f"t{i}": torch.randn(9, 7, generator=generator) for i in range(6)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def add(zoo, name, out):
    sketch([zoo / f"{name}.safetensors"], zoo / "base.safetensors", size=64).add_to(out)


def test_processes_that_add_at_the_same_time(zoo):
    out = zoo / "kept"
    processes = [faults.context.Process(target=add, args=(zoo, name, out)) for name in NAMES]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(NAMES)
    assert sorted(Sketches.load(out).models) == list(NAMES)
    assert not [path for path in zoo.iterdir() if path.name.startswith(".")]


def test_one_that_comes_waits_for_the_other(zoo):
    out = zoo / "kept"
    add(zoo, "a", out)
    with locked_file(out):
        other = threading.Thread(target=add, args=(zoo, "b", out))
        found = Sketches.load(out)
        other.start()
        other.join(0.3)
        found.joined(sketch([zoo / "c.safetensors"], zoo / "base.safetensors", size=64)).save(out)
    other.join()
    assert Sketches.load(out).models == ("a", "c", "b")


def test_one_that_waits_too_long_says_so(zoo):
    with locked_file(zoo / "kept"), pytest.raises(OutputError, match="another process is adding to it"):  # noqa: SIM117
        with locked_file(zoo / "kept", seconds=0.1):
            pass


def test_sketches_that_do_not_fit_change_nothing(zoo):
    out = zoo / "kept"
    add(zoo, "a", out)
    before = out.read_bytes()
    with pytest.raises(MismatchError, match="there already"):
        add(zoo, "a", out)
    assert out.read_bytes() == before


def test_notes_stay_with_the_sketches(zoo):
    for name in ("a", "b"):
        save_file(load_file(zoo / f"{name}.safetensors") | {"head": torch.ones(2)}, zoo / f"{name}.safetensors")
    out = zoo / "kept"
    for name in ("a", "b"):
        found = sketch([zoo / f"{name}.safetensors"], zoo / "base.safetensors", size=64, on_mismatch="skip")
        assert found.notes == (f"tensors left out of the sketches of {name} (1): head",)
        found.add_to(out)
    kept = Sketches.load(out)
    assert kept.notes == tuple(f"tensors left out of the sketches of {name} (1): head" for name in ("a", "b"))
    assert kept.table().notes[:2] == list(kept.notes)


def test_a_file_without_notes_is_read(zoo, monkeypatch):
    write = module.write_block
    monkeypatch.setattr(
        module, "write_block",
        lambda path, arrays, about: write(path, arrays, {k: v for k, v in about.items() if k != "notes"}),
    )  # fmt: skip
    add(zoo, "a", zoo / "kept")
    assert Sketches.load(zoo / "kept").notes == ()


def test_a_model_that_is_rewritten_meanwhile(zoo):
    other = (zoo / "c.safetensors").read_bytes()

    def progress(p):
        if p.tensors_done == 2:
            with (zoo / "b.safetensors").open("r+b") as file:
                file.write(other)

    models = [zoo / "a.safetensors", zoo / "b.safetensors"]
    with pytest.raises(CheckpointError, match=r"b.safetensors: was changed while"):
        sketch(models, zoo / "base.safetensors", size=64, progress=progress)


def test_sketches_in_a_missing_folder(zoo):
    with pytest.raises(OutputError, match=r"kept: cannot be written \(No such file"):
        add(zoo, "b", zoo / "nowhere" / "kept")


def killed(zoo, out, step):
    def progress(p):
        if p.tensors_done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    found = sketch([zoo / "b.safetensors"], zoo / "base.safetensors", size=64, progress=progress)
    if step == "locked":
        with locked_file(out):
            os.kill(os.getpid(), signal.SIGKILL)
    write = os.fsync
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL) if step == "written" else write(file)
    found.add_to(out)


def test_processes_that_are_killed(zoo):
    out, expected = zoo / "kept", zoo / "expected"
    for name in ("a", "b"):
        add(zoo, name, expected)
    add(zoo, "a", out)
    before = out.read_bytes()
    for step in (0, 3, 6, "locked", "written"):
        process = faults.context.Process(target=killed, args=(zoo, out, step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert out.read_bytes() == before
    add(zoo, "b", out)
    assert out.read_bytes() == expected.read_bytes()
    assert not [path for path in zoo.iterdir() if path.name.startswith(".")]
