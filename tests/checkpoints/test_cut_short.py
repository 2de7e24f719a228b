"""Files that are cut short while a process has them mapped, and files that are more than it may hold open."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mergekern.checkpoints import open_checkpoint

TENSORS = 12

# Cuts the file of model b when the third tensor begins.
RUN = """
import os, sys, mergekern
suffix, io = sys.argv[1:]
seen = []

def cut(progress):
    seen.append(progress)
    if len(seen) == 3:
        os.truncate("b" + suffix, 100_000)

try:
    mergekern.compute_all(
        ["a" + suffix, "b" + suffix], "base" + suffix, metrics="task-vector geometry", max_memory=500_000, io=io,
        progress=cut,
    )
except mergekern.CheckpointError as error:
    print(error)
"""


def write(path, value):
    # Of many pages each: what lies in the last page before the cut stays.
    state = {f"t{i:02d}": torch.full((128, 160), float(value + i)) for i in range(TENSORS)}
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_cut_short_during_a_run_is_an_error_that_names_it(tmp_path, suffix, io):
    for value, name in enumerate(("base", "a", "b")):
        write(tmp_path / f"{name}{suffix}", value)
    process = subprocess.run(
        [sys.executable, "-c", RUN, suffix, io], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, (process.returncode, process.stderr)
    assert f"b{suffix}" in process.stdout


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_values_beyond_the_end_are_zeros_and_the_file_is_known_to_be_changed(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    write(path, 5)
    code = (
        "import os, sys, torch\n"
        "from mergekern.checkpoints import open_checkpoint\n"
        "model = open_checkpoint(sys.argv[1])\n"
        "os.truncate(sys.argv[1], 100_000)\n"
        "print(float(model.read('t00')[0, 0]), float(model.read('t11').sum()), float(model.read('t07').sum()))\n"
        "try: model.check_unchanged()\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert process.stdout.split() == ["5.0", "0.0", "0.0", "CheckpointError"], process


@pytest.mark.parametrize("signal", ["SIGBUS", "SIGSEGV"])
def test_other_signals_end_the_process_as_before(tmp_path, signal):
    write(tmp_path / "m.safetensors", 1)
    code = (
        "import os, signal, sys\n"
        "from mergekern.checkpoints import open_checkpoint\n"
        "model = open_checkpoint(sys.argv[1])\n"
        f"os.kill(os.getpid(), signal.{signal})\n"
        "print('still there')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.safetensors"], capture_output=True, text=True, timeout=120
    )
    assert process.returncode < 0
    assert "still there" not in process.stdout


def test_a_mapped_file_of_another_library_is_not_guarded(tmp_path):
    write(tmp_path / "m.safetensors", 1)
    (tmp_path / "other").write_bytes(bytes(1 << 16))
    code = (
        "import mmap, os, sys\n"
        "from mergekern.checkpoints import open_checkpoint\n"
        "model = open_checkpoint('m.safetensors')\n"
        "with open('other', 'r+b') as file: mapped = mmap.mmap(file.fileno(), 0)\n"
        "os.truncate('other', 0)\n"
        "print(mapped[5000])\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert process.returncode < 0


def test_reading_by_pread_holds_half_of_the_descriptors_at_most(tmp_path):
    resource = pytest.importorskip("resource")
    for i in range(40):
        write(tmp_path / f"m{i}.safetensors", i)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(60, held + 45), before[1]))
    try:
        opened = [open_checkpoint(tmp_path / f"m{i}.safetensors", io="pread") for i in range(40)]
        assert [float(model.read("t03")[0, 0]) for model in opened] == [float(i + 3) for i in range(40)]
        assert sum(model._descriptor._descriptor is not None for model in opened) <= max(60, held + 45) // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
