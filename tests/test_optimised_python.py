"""`python -OO`, which strips docstrings and assertions, changes nothing that a user sees.

Only this package is compiled so. `python -OO` would compile torch and pandas anew too, in 25 s.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STRIP = """
import sys
from importlib.machinery import FileFinder, SourceFileLoader, SOURCE_SUFFIXES, EXTENSION_SUFFIXES, ExtensionFileLoader

class Stripped(SourceFileLoader):
    def get_code(self, fullname):
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True, optimize=2)

finder = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (Stripped, SOURCE_SUFFIXES))

def of_package(path):
    if not path.startswith(PACKAGE):
        raise ImportError
    return finder(path)

sys.path_hooks.insert(0, of_package)
"""

PROGRAM = """
import dataclasses, hashlib, json, sys
import click
import numpy as np
import mergekern
from mergekern.cli import main
from mergekern.metrics import catalogue
from mergekern.prediction import PREDICTORS

random = np.random.default_rng(0)
base = {"w": random.standard_normal((12, 9)), "v": random.standard_normal(9)}
zoo = {name: {key: value + random.standard_normal(value.shape) for key, value in base.items()} for name in "abc"}
table = mergekern.compute_all(zoo, base, per_layer=True)
merges = {name: mergekern.merge(dict(list(zoo.items())[:method.most]), base, name)
          for name, method in mergekern.METHODS.items()}
context = click.Context(main, info_name="mergekern", terminal_width=100)
commands = [command.get_help(click.Context(command, info_name=name, parent=context))
            for name, command in main.commands.items()]

def words(entry):
    return {key: value for key, value in vars(entry).items() if isinstance(value, (str, bool, tuple))}

print(json.dumps({
    "docstrings": sum(module.__doc__ is not None for name, module in sys.modules.items()
                      if name.startswith("mergekern.") and module.__file__.endswith(".py")),
    "notation": catalogue.NOTATION,
    "catalogue": [words(metric) for metric in (*mergekern.CATALOGUE.values(), *mergekern.MERGE_PROBES.values())],
    "methods": [words(method) for method in mergekern.METHODS.values()],
    "predictors": {name: kind.description for name, kind in PREDICTORS.items()},
    "table": {str(pair): row for pair, row in table.to_pandas().to_dict("index").items()},
    "notes": table.notes,
    "merges": {name: {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in merged.items()}
               for name, merged in merges.items()},
    "help": [main.get_help(context), *commands],
}))
"""


def run(before=""):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", before + PROGRAM]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.fixture(scope="module")
def optimised():
    return run(f"PACKAGE = {str(ROOT / 'mergekern')!r}\n{STRIP}")


def test_the_run_is_without_docstrings(plain, optimised):
    assert plain["docstrings"] > 50
    assert optimised["docstrings"] == 0


@pytest.mark.parametrize("what", ["notation", "catalogue", "methods", "predictors", "table", "notes", "merges", "help"])
def test_it_gives_the_same(plain, optimised, what):
    assert optimised[what] == plain[what]


def test_every_text_says_something(optimised):
    assert optimised["notation"]
    for entry in optimised["catalogue"]:
        assert all(entry[name] for name in ("name", "category", "formula", "needs", "undefined", "explanation"))
    assert all(optimised["predictors"].values())
    for text in optimised["help"]:
        assert text.splitlines()[2].strip(), text
