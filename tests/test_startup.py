"""The modules that starting imports. benchmarks/test_startup.py measures the seconds."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

import mergekern
from mergekern.cli import main
from tests.support.measurements import make_scores, make_table, write_scores
from tests.support.zoos import write_zoo

HEAVY = ("torch", "torch._dynamo", "sympy", "triton", "cupy", "scipy", "sklearn", "pandas", "pyarrow")
COMMANDS = sorted(main.commands)


def imported(program, *arguments, cwd=None):
    """Run a program in its own process, and return the heavy modules that it imported."""
    program = f"import json, sys\n{program}\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True, text=True, cwd=cwd
    )
    return json.loads(done.stdout.splitlines()[-1])


def imported_by_commands(*lines, cwd=None):
    """Run commands in one process, and return the heavy modules that they imported, or the first failure."""
    program = (
        "from mergekern.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(line, prog_name='mergekern')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, line"
    )
    return imported(program, json.dumps(lines), cwd=cwd)


def test_import_imports_nothing_heavy():
    assert imported("import mergekern") == []


def test_importing_loads_no_module_of_the_package_beyond_itself():
    program = "import mergekern\nprint([name for name in sys.modules if name.startswith('mergekern.')])"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{program}"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert len(mergekern.__all__) == len(set(mergekern.__all__)) > 20
    for name in mergekern.__all__:
        assert getattr(mergekern, name) is not None
    assert set(mergekern.__all__) <= set(dir(mergekern))
    assert mergekern.__version__ == importlib.metadata.version("mergekern")
    with pytest.raises(AttributeError, match="compute_everything"):
        _ = mergekern.compute_everything


@pytest.mark.parametrize(("given", "found"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_of_a_command_sleep_unless_the_caller_says_otherwise(monkeypatch, given, found):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    program = "import os\nfrom mergekern.cli import main\ntry:\n    main(['table', '--help'])\nexcept SystemExit:\n    "
    program += "print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == found


def test_help_version_and_completion_need_no_library():
    assert imported_by_commands(["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)) == []


def test_completion_needs_no_library():
    program = (
        "from click.testing import CliRunner\nfrom mergekern.cli import main\n"
        "found = CliRunner().invoke(main, prog_name='mergekern', env={'_MERGEKERN_COMPLETE': 'bash_complete', "
        "'COMP_WORDS': 'mergekern plan', 'COMP_CWORD': '1'})\n"
        "assert 'plan-measurements' in found.output, found.output"
    )
    assert imported(program) == []


def test_commands_that_read_tables_do_not_import_torch(tmp_path):
    table = make_table(tasks=8)
    table.save(tmp_path / "t.parquet")
    write_scores(tmp_path / "scores.csv", make_scores(table))
    lines = [
        ["fit", "t.parquet", "--scores", "scores.csv", "--method", "tsv", "--out", "p.json"],
        ["predict", "t.parquet", "--predictor", "p.json"],
        ["recommend", "t.parquet", "--predictor", "p.json"],
        ["plan-measurements", "t.parquet", "-k", "3"],
        ["report", "t.parquet", "--out", "r.html"],
    ]
    assert "torch" not in imported_by_commands(*lines, cwd=tmp_path)


def test_a_merge_imports_torch_alone(tmp_path):
    zoo = write_zoo(tmp_path / "zoo")
    (tmp_path / "recipe.yaml").write_text(
        f"merge_method: slerp\nbase_model: {zoo / 'a.safetensors'}\nmodels: [{{model: {zoo / 'b.safetensors'}}}]\n"
        "parameters: {t: 0.5}\ndtype: float32\n"
    )
    lines = [
        ["merge", "zoo", "--method", "ties", "--out", "merged.safetensors"],
        ["merge", "--config", "recipe.yaml", "--out", "made.safetensors"],
    ]
    assert imported_by_commands(*lines, cwd=tmp_path) == ["torch"]


def test_metrics_import_what_makes_a_table(tmp_path):
    write_zoo(tmp_path / "zoo")
    found = imported_by_commands(["metrics", "zoo"], cwd=tmp_path)
    assert set(found) == {"torch", "scipy", "pandas", "pyarrow"}


def test_a_table_from_statistics_does_not_import_torch(tmp_path):
    import torch

    models = {name: {"w": torch.full((3, 2), float(index))} for index, name in enumerate("ab", 1)}
    mergekern.measure_into(tmp_path / "s", models, {"w": torch.zeros(3, 2)})
    assert "torch" not in imported_by_commands(["table", "s", "--out", "t.csv"], ["verify", "s"], cwd=tmp_path)
