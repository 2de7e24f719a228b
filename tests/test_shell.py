"""What a shell sees of the command line: exit codes, and completion in three shells, as docs/commands.md has them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mergekern.cli import main
from tests.support import faults

PAGE = (Path(__file__).parents[1] / "docs" / "commands.md").read_text("utf-8")
# Evaluators that end in as many ways as a process can.
EVALUATORS = """
import os, signal

def fails(model, task):
    raise ValueError("no number")

def fails_on_merges(model, task):
    if 1 < float(model["w"].sum()) < 2:
        raise ValueError("no number")
    return 0.5

def interrupted(model, task):
    raise KeyboardInterrupt

def terminated(model, task):
    os.kill(os.getpid(), signal.SIGTERM)

def hung_up(model, task):
    os.kill(os.getpid(), signal.SIGHUP)
"""
ENDS = {
    "--version": 0,
    "info nothing": 1,
    "measure {}:fails": 1,
    "measure {}:fails_on_merges": 1,
    "no-such-command": 2,
    "info --no-such-option": 2,
    "measure {}:interrupted": 130,
    "measure {}:terminated": 143,
    "measure {}:hung_up": 129,
}


SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    (folder / "zoo").mkdir()
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 2.0)):
        save_file({"w": torch.tensor([value])}, folder / "zoo" / f"{name}.safetensors")
    (folder / "evaluators.py").write_text(EVALUATORS)
    return folder


@pytest.mark.parametrize("line", ENDS)
def test_exit_codes(line, zoo, tmp_path):
    command, *arguments = line.split()
    if command == "measure":
        function = arguments[0].format(zoo / "evaluators.py")
        how = ("--zoo", zoo / "zoo", "--methods", "weight_average", "--evaluate", function)
        arguments = [tmp_path / "scores.csv", *how]
    code, output, errors, are_restored = faults.run(invoked, [command, *map(str, arguments)])
    assert code == ENDS[line], output
    assert are_restored
    assert code == 0 or errors or code > 130


def invoked(arguments):
    """Return how a command ends: its exit code, what it says, and whether the signals have their handlers again."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a library may have set others, and nohup ignores a hang-up
    result = CliRunner().invoke(main, arguments)
    are_restored = all(signal.getsignal(number) is signal.SIG_DFL for number in SIGNALS)
    return result.exit_code, result.output, result.stderr, are_restored


def test_all_exit_codes_are_documented():
    table = PAGE.partition("## Exit codes")[2].partition("## ")[0]
    assert {int(code) for code in re.findall(r"\b(\d+)\b", table)} == {*ENDS.values()}


def documented(shell):
    """Return the line that a start-up file gets."""
    return re.search(rf"```{shell}\n(.*?)\n```", PAGE)[1]


def complete(shell, words):
    """Return what click completes for a line that is begun."""
    begun = words.split(" ")
    place = begun[-1] if shell == "fish" else str(len(begun) - 1)
    variables = {"_MERGEKERN_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": place}
    return CliRunner().invoke(main, prog_name="mergekern", env=variables).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_completes_commands_options_and_choices(shell):
    assert "_MERGEKERN_COMPLETE=" + shell + "_source" in documented(shell)
    source = CliRunner().invoke(main, prog_name="mergekern", env={"_MERGEKERN_COMPLETE": f"{shell}_source"}).output
    assert f"_MERGEKERN_COMPLETE={shell}_complete" in source
    assert "merge-adapters" in complete(shell, "mergekern merge-a")
    assert "--sort-by" in complete(shell, "mergekern metrics --sort")
    assert "randomized" in complete(shell, "mergekern metrics --svd r")


# What each shell does with the documented line, and what shows that it knows the program then.
SHELLS = {
    "bash": (["bash", "--norc", "-c"], "complete -p mergekern", "mergekern"),
    "zsh": (["zsh", "-f", "-c"], 'echo "${_comps[mergekern]}"', "_mergekern_completion"),
    "fish": (["fish", "--no-config", "-c"], 'complete --do-complete "mergekern merge-a"', "merge-adapters"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_documented_line_works_in_the_shell(shell, tmp_path):
    program, ask, expected = SHELLS[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    script = tmp_path / "mergekern"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m mergekern "$@"\n')
    script.chmod(0o755)
    first = "autoload -Uz compinit && compinit -D\n" if shell == "zsh" else ""
    variables = {
        **os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    text = f"{first}{documented(shell)}\n{ask}\n"
    done = subprocess.run([*program, text], capture_output=True, text=True, env=variables, check=False)
    assert expected in done.stdout, done.stderr
