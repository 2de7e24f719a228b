"""What commands print: names as they are, nothing that a terminal obeys, and one line for what is no bug."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import mergekern
from mergekern.cli import main
from mergekern.cli.display import NameTable, plain_console, shown
from tests.support.measurements import make_scores, make_table, write_scores

COSINE = "task_vector_cosine_similarity"
ESCAPES = "\x1b]0;title\x07\x1b[31mred"
BIDI = "invoice\u202etxt.exe"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def make_zoo(folder, names):
    folder.mkdir()
    draw = np.random.default_rng(5)
    for name in ("base", *names):
        save_file({"w": draw.standard_normal((5, 4))}, folder / f"{name}.safetensors")
    return folder


def assert_harmless(text):
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


@pytest.mark.parametrize("name", [":smile:", "x:100:y", "[bold]b", "a" * 230, "1e5", "None", "ü✓日本"])
def test_names_are_printed_as_they_are(tmp_path, name):
    zoo = make_zoo(tmp_path / "zoo", ["other", name])
    for command in (["metrics", zoo, "--metrics", COSINE, "--summary"], ["info", zoo]):
        result = run(*command)
        assert result.exit_code == 0
        assert name in result.output


def test_names_command_no_terminal(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", ["other", ESCAPES, BIDI])
    kept = tmp_path / "s"
    commands = [
        ["info", zoo], ["metrics", zoo, "--metrics", COSINE, "--statistics", kept],
        ["table", kept, "--models", f"other,{ESCAPES}"], ["remove", "\x1b[2J", "--from", kept],
        ["verify", tmp_path / "\x1b[0m"], ["\x1b[1m"], ["--\x1b[1m"], ["info", "--\x9b1m"],
    ]  # fmt: skip
    results = [run(*command) for command in commands]
    (zoo / "\x1b[8mhidden.safetensors").write_bytes(b"junk")
    results.append(run("metrics", zoo))
    for result in results:
        assert result.output
        assert_harmless(result.output)
    assert r"\x1b]0;title\x07\x1b[31mred" in results[0].output
    assert r"invoice\u202etxt.exe" in results[1].output


def test_log_lines_and_progress_are_harmless(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", ["a", "b"])
    draw = np.random.default_rng(6)
    for name in ("base", "a", "b"):
        save_file({"\x1b[31mw": draw.standard_normal((5, 4))}, zoo / f"{name}.safetensors")
    program = [sys.executable, "-m", "mergekern", "-v", "metrics", zoo, "--metrics", COSINE]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0
    assert r"\x1b[31mw" in done.stderr
    assert_harmless(done.stdout + done.stderr)


def test_shown_keeps_text_of_all_scripts():
    for text in ("naïve", "日本語", "עברית", "می\u200cخواهم", "👩\u200d💻", "line\nline"):
        assert shown(text) == text
    assert shown("\udcff\ufeff\x9b\U000e0041") == r"\udcff\ufeff\x9b\U000e0041"


def test_a_row_is_one_line(capsys):
    table = NameTable("name")
    table.add_texts("one\ntwo")
    plain_console().print(table)
    assert r"one\x0atwo" in capsys.readouterr().out


def test_commands_print_through_one_door():
    for path in (Path(mergekern.__file__).parent / "cli").glob("*.py"):
        if path.name != "display.py":
            assert not re.search(r"click\.echo|\bprint\(|Console\(", path.read_text().replace("plain_console(", "")), (
                path
            )


def test_csv_files_of_commands_start_no_formula(tmp_path):
    names = ["=1+1", "@a", "-b", "+c", "plain", "d", "e", "f"]
    source = make_table(tasks=8)
    table = mergekern.MetricTable(names, {name: source.matrix(name) for name in source.metrics})
    table.save(tmp_path / "t.parquet")
    scores = write_scores(tmp_path / "scores.csv", make_scores(table))
    commands = [
        ["fit", tmp_path / "t.parquet", "--scores", scores, "--method", "tsv", "--out", tmp_path / "p.json"],
        ["predict", tmp_path / "t.parquet", "--predictor", tmp_path / "p.json", "--out", tmp_path / "predicted.csv"],
        ["recommend", tmp_path / "t.parquet", "--predictor", tmp_path / "p.json", "--out", tmp_path / "best.csv"],
        ["plan-measurements", tmp_path / "t.parquet", "-k", "9", "--method", "=tsv", "--out", tmp_path / "plan.csv"],
    ]
    for command in commands:
        assert run(*command).exit_code == 0
    for name in ("predicted.csv", "best.csv", "plan.csv"):
        for row in list(csv.reader((tmp_path / name).open(newline=""))):
            for cell in row:
                assert not re.match(r"[=+@\t-](?![\d.])", cell), (name, cell)
    filled = (tmp_path / "plan.csv").read_text().replace(",\n", ",0.5\n")
    (tmp_path / "plan.csv").write_text(filled)
    found = mergekern.prediction.read_scores(tmp_path / "plan.csv", "=tsv")
    assert {name for pair in found.index for name in pair} <= set(names)


@pytest.mark.parametrize(("error", "code", "says"), [
    (OSError(28, "No space left on device"), 1, "Error: [Errno 28] No space left on device"),
    (MemoryError(), 1, "Error: not enough memory"), (RecursionError(), 1, "Error: the input is nested too deeply"),
    (KeyboardInterrupt(), 130, "stopped"), (BrokenPipeError(32, "Broken pipe"), 1, "Error: nobody reads the output"),
    (mergekern.OptionError("bad \x1b[1m"), 1, r"Error: bad \x1b[1m"),
])  # fmt: skip
def test_what_is_no_bug_is_one_line(monkeypatch, error, code, says):
    def fails(*_):
        raise error

    monkeypatch.setattr(mergekern, "verify", fails)
    result = run("verify", "x")
    assert (result.exit_code, result.output.strip()[: len(says)]) == (code, says)
    assert "Traceback" not in result.output


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(mergekern, "verify", lambda _: {}["lost"])
    assert isinstance(run("verify", "x").exception, KeyError)


def test_a_table_to_a_missing_folder_or_a_folder_is_one_line(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", ["a", "b"])
    mergekern.compute_all(zoo, statistics=tmp_path / "s", metrics=[COSINE])
    (tmp_path / "d.json").mkdir()
    for out in (tmp_path / "no" / "x.json", tmp_path / "d.json"):
        result = run("table", tmp_path / "s", "--out", out)
        assert result.exit_code in (1, 2)
        assert sum(line.startswith("Error") for line in result.output.splitlines()) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs signals")
def test_ctrl_c_ends_with_130(tmp_path):
    zoo = make_zoo(tmp_path / "zoo", ["a", "b"])
    code = (
        "import os, signal, mergekern\nfrom mergekern.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "def stop(*_, **__): os.kill(os.getpid(), signal.SIGINT)\n"
        "mergekern.verify = stop\nmain(['verify', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=zoo)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (130, "stopped", "")


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs limits of memory")
@pytest.mark.parametrize("megabytes", [96, 480])
def test_too_little_memory_is_one_line_and_no_hang(tmp_path, megabytes):
    """OpenBLAS asks for its buffers without an end where the system refuses them."""
    make_zoo(tmp_path / "zoo", ["a", "b"])
    # More than is held when everything is loaded, and less than the threads of BLAS need beside it.
    code = (
        "import resource, torch, mergekern.api, mergekern.kernels.lapack, pandas, sys\n"
        "from mergekern.cli import main\n"
        "torch.set_num_threads(4)\n"
        "held = int(next(line for line in open('/proc/self/status') if line.startswith('VmSize')).split()[1]) << 10\n"
        f"limit = held + ({megabytes} << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "main(['metrics', 'zoo'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("Error: not enough memory")
    assert "Traceback" not in done.stderr
