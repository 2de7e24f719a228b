"""The program behind `make gpu-check`, without a GPU: small sizes through the interpreters."""

import doctest
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import device, device_groups, device_machine, device_session, device_table
from benchmarks.counts import Counts
from benchmarks.device_session import SMALL, Journal, Session
from mergekern.kernels.device_backend import DeviceBackend
from tests.benchmarks.test_rows import KEYS, rows_in

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton", reason="Triton is for Linux only")
from benchmarks import device_spectrum  # noqa: E402


@pytest.fixture
def session(tmp_path):
    backend = DeviceBackend("none", "none", torch.device("cpu"), 1, None)
    provenance = {"device": "abacus", "time": "2025-01-01"}
    deadline = time.time() + 100
    return Session(backend, SMALL, Journal(tmp_path / "journal"), tmp_path, "abacus", provenance, deadline, (), 0)


def medians(path):
    return {row["case"]: row["seconds"]["median"] for row in rows_in(path)}


@pytest.mark.parametrize(
    "module", [device_machine, device_session, device_spectrum, device_table], ids=lambda m: m.__name__
)
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_a_dry_run_writes_rows(tmp_path):
    wanted = ["kernel/overlap", "kernel/spectrum/2x20x20", f"compute_all/{SMALL.zoo}/files", "baseline_pair"]
    wanted += [f"merge/ties/{SMALL.zoo}", "kernel/trim/2x1600", "kernel/polar/20x20"]
    options = [*(f"--only={each}" for each in wanted), f"--results={tmp_path}", "--commit=abc1234-dirty"]
    command = [sys.executable, "benchmarks/device.py", "--dry-run", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No GPU" in done.stdout
    assert "all passed" in done.stdout.splitlines()[-1]
    found = rows_in(tmp_path / "cpu_dry_run.jsonl")
    for row in found:
        assert row.keys() == KEYS, row["case"]
        assert (row["device"], row["commit"], row["dirty"]) == ("cpu (dry run)", "abc1234", True)
        assert row["versions"]["triton"]
    cases = {row["case"] for row in found}
    assert cases >= {
        *(
            "machine/copy",
            "machine/host_to_device",
            "machine/gemm_float64",
            "machine/gemm_float32",
            "machine/gemm_tf32",
        ),
        *("kernel/overlap/8x2x20x10", "kernel/overlap/3x2x80x10", f"compute_all/{SMALL.zoo}/files"),
        *("kernel/spectrum/2x20x20", "kernel/spectrum/2x20x20/chase", "kernel/spectrum/2x20x20/krylov_top"),
        "baseline_pair/vit_w20_d1",
        *(f"merge/ties/{SMALL.zoo}/{where}" for where in ("files", "device", "cpu_of_2_threads")),
        *("kernel/trim/2x1600", "kernel/trim/2x1600/torch_kthvalue", "kernel/trim/2x1600/torch_sort"),
        *("kernel/polar/20x20", "kernel/polar/20x20/torch_svd"),
    }
    ratio = f"merge/ties/{SMALL.zoo}/cpu_of_2_threads: [0-9.]+ times as long as merge/ties/{SMALL.zoo}/files"
    assert re.search(ratio, done.stdout)
    unwanted = (
        "kernel/gram",
        "kernel/task_product",
        "kernel/spectrum/2x80x20",
        "merge/dare",
        "kernel/combine",
        "probes",
    )
    assert not any(case.startswith(unwanted) for case in cases)
    by_case = {row["case"]: row for row in found}
    assert by_case[f"compute_all/{SMALL.zoo}/files"]["ceiling"] > 0


def test_what_fails_is_named_and_the_rest_goes_on(session):
    session.measure("a/raises", Counts(8, 8), lambda: 1 / 0)
    session.measure("a/wrong", Counts(8, 8), lambda: 1, lambda found: device_session.expect_small("it", found, 0.1))
    session.measure("a/right", Counts(8, 8), lambda: 1, lambda found: None)
    assert [line["case"] for line in session.journal.read("failed")] == ["a/raises", "a/wrong"]
    assert medians(session.results / "abacus.jsonl").keys() == {"a/right"}


def test_what_is_not_begun_in_time_is_skipped(session):
    session.deadline = time.time()
    session.measure("a", Counts(8, 8), pytest.fail)
    session.only = ["b"]
    session.measure("a", Counts(8, 8), pytest.fail)
    assert [line["case"] for line in session.journal.read("skipped")] == ["a"]


def test_nan_is_not_small():
    device_session.expect_small("it", 0.1, 0.1)
    for error in (0.2, float("nan")):
        with pytest.raises(AssertionError, match="it is off by"):
            device_session.expect_small("it", error, 0.1)


def test_unwritten_memory_is_poisoned():
    with device_session.poisoned_memory():
        inside = torch.empty(3)
    assert inside.isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_ceiling_of_a_row_is_that_of_its_rates(session):
    for name, rate in {"copy": 4.0, "host_to_device": 1.0, "gemm_float64": 8.0}.items():
        session.journal.add("rate", name=name, rate=rate)
    session.add_row("by bytes", [10.0], Counts(16, 8))
    session.add_row("by the bus", [32.0], Counts(16, 8), bytes_rate="host_to_device")
    session.add_row("by flops", [16.0], Counts(0, 64))
    session.add_row("unknown", [1.0], Counts(0, 64), flops_rate="gemm_tf32x3")
    found = {row["case"]: (row["ceiling"], row["fraction"]) for row in rows_in(session.results / "abacus.jsonl")}
    assert found == {"by bytes": (4.0, 0.4), "by the bus": (16.0, 0.5), "by flops": (8.0, 0.5), "unknown": (0.0, 0.0)}


def test_the_table_ends_with_floor_and_ratio(session):
    for name, rate in {"copy": 1e9, "gemm_float64": 1e12}.items():
        session.journal.add("rate", name=name, rate=rate)
    whole, pair = f"compute_all/{SMALL.zoo}/device", "baseline_pair/vit_w20_d1"
    session.journal.add("work", bytes=10**9, flops=10**11, device_case=whole, pair_case=pair, pairs=190)
    session.add_row(whole, [2.0], Counts(10**9, 10**11))
    session.add_row(pair, [30.0], Counts(10**9, 10**11))
    for stage, seconds in {"chase": 1.0, "values": 0.001}.items():
        session.add_row(f"{whole}/{stage}", [seconds], Counts(0, 0))
    table = "\n".join(device_table.table(session.journal))
    assert "floor of compute_all: 1000.0 ms by bytes, 100.0 ms by operations" in table
    assert "compute_all from device: 2.000 s, 2.0 times the floor" in table
    assert "190 pairs, one after the other by the plain way: 2850 times as long" in table
    assert f"{whole}/chase" in table
    assert f"{whole}/values" not in table  # less than a hundredth of the whole


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(device_machine, "NEEDED", ("json", "no_such_package"))
    done = CliRunner().invoke(device.main, [])
    assert done.exit_code == 1
    assert "not installed: no_such_package" in done.output


def test_a_group_that_breaks_its_process_stops_nothing_else(tmp_path, monkeypatch):
    """On a machine with a GPU, each group of cases runs as a program of its own."""
    monkeypatch.setattr(device, "_has_gpu", lambda: True)
    monkeypatch.setattr(device, "_device_name", lambda has_gpu: "abacus")
    monkeypatch.setattr(device_machine, "missing", lambda packages: [])
    monkeypatch.setattr(device_machine, "build_extension", lambda seconds: True)
    monkeypatch.setattr(device_machine, "run_tests", lambda seconds, marks: True)
    begun = []

    def run(command, seconds):
        begun.append(command[command.index("--group") + 1])
        path = Path(command[command.index("--journal") + 1])
        assert json.loads(path.read_text().splitlines()[0])["kind"] == "versions"
        return -11 if begun[-1] == "spectrum" else 0

    monkeypatch.setattr(device_machine, "run", run)
    done = CliRunner().invoke(device.main, [f"--results={tmp_path}"], catch_exceptions=False)
    assert begun == list(device.GROUPS)
    assert done.exit_code == 1
    assert "FAILED: spectrum (its process broke)" in done.output


def pretend(monkeypatch, run):
    """Let a machine seem to have a GPU, and its programs be a function."""
    monkeypatch.setattr(device, "_has_gpu", lambda: True)
    monkeypatch.setattr(device, "_device_name", lambda has_gpu: "abacus")
    monkeypatch.setattr(device_machine, "missing", lambda packages: [])
    monkeypatch.setattr(device_machine, "build_extension", lambda seconds: True)
    monkeypatch.setattr(device_machine, "run", run)


@pytest.mark.parametrize("part", [1, 2])
def test_a_part_has_its_own_tests_and_groups_within_their_time(tmp_path, monkeypatch, part):
    begun, marks = {}, []

    def run(command, seconds):
        if "--group" in command:
            begun[command[command.index("--group") + 1]] = seconds
        else:
            marks.append(command[command.index("pytest") + 2])
        return 0

    pretend(monkeypatch, run)
    done = CliRunner().invoke(device.main, ["--part", str(part)], env={"OUT": str(tmp_path)}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert marks == [["gpu_only", "gpu and not gpu_only"][part - 1]]
    wanted = [name for name, group in device.GROUPS.items() if group.part == part or name == "machine"]
    assert list(begun) == wanted
    assert all(seconds <= device.GROUPS[name].seconds for name, seconds in begun.items())
    # The journal and the table are where the rows are, whatever comes back of the machine.
    assert {f"journal{part}", f"table{part}.txt"} <= {path.name for path in tmp_path.iterdir()}
    assert "all passed" in (tmp_path / f"table{part}.txt").read_text("utf-8")


def test_the_parts_end_within_six_minutes():
    """Nothing is begun after `PART_SECONDS`, build and tests included, and what runs then is stopped after `GRACE`."""
    assert device_groups.PART_SECONDS + device.GRACE < 360
    for part in (1, 2):
        first = next(group for group in device.GROUPS.values() if group.part == part)
        assert device_groups.TESTS[part][1] + first.seconds < device_groups.PART_SECONDS


def test_failures_of_tests_are_printed_when_they_happen(tmp_path, monkeypatch, capfd):
    """Killed after a test that failed, the run has said which."""
    (tmp_path / "test_it.py").write_text(
        "import os, pytest, signal\n@pytest.mark.gpu\ndef test_wrong():\n    assert 1 == 2\n"
        "@pytest.mark.gpu\ndef test_breaks():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = device_machine.run

    def on_these(command, seconds):
        chosen = [part for part in command if not part.startswith("tests/")]
        return run([*chosen, str(tmp_path / "test_it.py"), "-n", "0", "--rootdir", str(tmp_path)], seconds)

    monkeypatch.setattr(device_machine, "run", on_these)
    assert not device_machine.run_tests(60.0)
    printed = capfd.readouterr().out
    assert "FAILED" in printed
    assert "test_wrong" in printed
    assert "assert 1 == 2" in printed


def test_predictions_are_beside_the_times(session):
    notes = device_table.predictions()
    case = next(iter(notes))
    assert len(notes) > 30
    assert all(0 < each.least <= each.most for each in notes.values())
    session.add_row(case, [notes[case].most / 500], Counts(8, 8))
    line = next(line for line in device_table.table(session.journal) if line.startswith(case))
    assert str(notes[case]) in line
    assert "2.0 times" in line


def test_a_program_is_stopped_with_those_it_started(tmp_path, capfd):
    """Both hold a lock while they live."""
    lock = tmp_path / "lock"
    child = "import time; print('begun', flush=True); time.sleep(600)"
    parent = f"""
import fcntl, subprocess, sys
held = open({str(lock)!r}, "w")
fcntl.flock(held, fcntl.LOCK_EX)
subprocess.run([sys.executable, "-c", {child!r}], pass_fds=[held.fileno()])
"""
    assert device_machine.run([sys.executable, "-c", parent], 1.5) == -1
    assert "stopped after 2 s" in capfd.readouterr().out
    guard = time.monotonic() + 60  # the child would hold it for ten minutes
    with lock.open("w") as free:
        while True:
            try:
                fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < guard, "a program of the stopped one lives on"
                time.sleep(0.01)


def test_tests_of_device_code_are_found(monkeypatch):
    begun = []
    monkeypatch.setattr(device_machine, "run", lambda command, seconds: begun.append(command) or 0)
    monkeypatch.setattr(device_machine, "missing", lambda packages: [name for name in packages if name == "xdist"])
    assert device_machine.run_tests(1.0)
    chosen = {part for part in begun[0] if part.startswith("tests/")}
    assert chosen >= {
        f"tests/kernels/test_{name}.py" for name in ("gram", "gram_on_triton", "trim_on_cuda", "task_product")
    }
    assert chosen >= {
        "tests/merging/test_on_device.py",
        "tests/measurement/test_on_device.py",
        "tests/functional/test_on_device.py",
    }
    assert "tests/test_cli.py" not in chosen
