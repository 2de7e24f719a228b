"""The optional extras: what needs one says so in a sentence that names it, where its library is missing."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import mergekern
from mergekern.checkpoints import open_zoo
from mergekern.cli import main
from mergekern.distributed.cluster import measure_on_cluster
from mergekern.evaluation.classification import _opened
from mergekern.evaluation.harness import _lm_eval
from mergekern.evaluation.processors import processor_of
from mergekern.functional.calibration.architectures import library
from mergekern.functional.calibration.inputs import _image
from mergekern.kernels.cuda_module import _cupy
from tests.support.measurements import make_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a zoo of two models, and a table of metrics."""
    folder = tmp_path_factory.mktemp("extras")
    (folder / "zoo").mkdir()
    for number, name in enumerate(("base", "a", "b")):
        save_file({"w": torch.eye(3) * (1 + number)}, folder / "zoo" / f"{name}.safetensors")
    make_table(tasks=4).save(folder / "table.json")
    return folder


def command(*arguments):
    """Run a command line whose error is the only thing that it prints and leaves."""

    def run(folder):
        before = sorted(folder.rglob("*"))
        result = CliRunner().invoke(main, [str(argument).format(folder=folder) for argument in arguments])
        assert result.exit_code == 1
        assert sorted(folder.rglob("*")) == before
        raise mergekern.MergekernError(result.stderr.removeprefix("Error: ").strip())

    return run


def of_cuda(version):
    def run(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.version, "cuda", version)
            _cupy()

    return run


def processor(folder):
    processor_of(open_zoo(folder / "zoo"), None, "AutoTokenizer", "tokenizer")


PAGE = ("{folder}/table.json", "--out", "{folder}/page.html")
FIGURES = ("{folder}/table.json", "--out", "{folder}/f.pdf")
MERGE = ("org/a", "org/b", "--base", "org/c", "--method", "ties", "--out", "{folder}/merged")
BEST = ("{folder}/zoo", "--evaluate", f"{__file__}:score", "--out", "{folder}/found")
# extra, the module that is missing, what asks for it
CASES = [
    ("report", "jinja2", command("report", *PAGE)),
    ("report", "matplotlib", command("report", *FIGURES, "--static")),
    ("report", "jinja2", command("best", *BEST)),
    ("report", "matplotlib", command("study", "{folder}/study", "--quick")),
    ("report", "jinja2", command("study", "{folder}/study", "--quick")),
    ("ray", "ray", lambda folder: measure_on_cluster(folder / "zoo", statistics=folder / "statistics")),
    ("hub", "huggingface_hub", command("merge", *MERGE)),
    ("hub", "huggingface_hub", lambda folder: mergekern.compute_all(["org/one", "org/two"], "org/base")),
    ("evaluation", "transformers", lambda folder: library()),
    ("evaluation", "transformers", processor),
    ("evaluation", "PIL", lambda folder: next(_opened([folder / "image.png"]))),
    ("evaluation", "PIL", lambda folder: _image(folder / "image.png")),
    ("lm-eval", "lm_eval", lambda folder: _lm_eval()),
    ("cuda12", "cupy", of_cuda("12.8")),
    ("cuda13", "cupy", of_cuda("13.0")),
]
# Modules that import a library of an extra when they are imported.
IMPORTING = ("report.page", "report.figures", "study.comparison", "study.stages")


def score(model, task):
    """Return the same for every model."""
    return 0.5


@pytest.mark.parametrize(("extra", "missing", "ask"), CASES)
def test_a_missing_library_is_an_error_that_names_its_extra(extra, missing, ask, folder, monkeypatch):
    for name in IMPORTING:  # as if none had been imported yet
        package, _, module = name.partition(".")
        monkeypatch.delitem(sys.modules, f"mergekern.{name}", raising=False)
        monkeypatch.delattr(sys.modules.get(f"mergekern.{package}", sys), module, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(mergekern.MergekernError) as found:
        ask(folder)
    text = str(found.value)
    assert f'pip install "mergekern[{extra}]"' in text
    assert missing in text
    assert "\n" not in text
    assert len(text) < 300


def test_every_extra_is_tested():
    extras = set(importlib.metadata.metadata("mergekern").get_all("Provides-Extra")) - {"dev"}
    assert {extra for extra, _, _ in CASES} == extras


def test_documented_extras_exist():
    root = Path(__file__).parents[1]
    extras = set(importlib.metadata.metadata("mergekern").get_all("Provides-Extra"))
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        named = re.findall(r"(?:mergekern|\.)\[([\w,-]+)\]", page.read_text("utf-8"))
        assert {name for names in named for name in names.split(",")} <= extras, page.name
