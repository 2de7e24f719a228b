"""Every command and every block of Python in README and docs/ runs, as it is written, in a folder with tiny models."""

import ast
import importlib
import re
import shlex
import shutil
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest
import torch
from click.testing import CliRunner

import mergekern
from mergekern.cli import main
from tests.support import docs_worlds
from tests.test_docs import PAGES, ROOT

# What a page supposes to be there, and of its sections those that suppose another thing; (page, section, language).
WORLDS = {
    ("README.md", "", ""): docs_worlds.ten_encoders,
    ("getting-started.md", "", ""): docs_worlds.encoders,
    ("measuring.md", "", ""): docs_worlds.ten_encoders,
    ("from-folder-to-merge.md", "", ""): docs_worlds.encoders,
    ("heads-and-calibration.md", "", ""): docs_worlds.classifiers,
    ("adapters.md", "", "sh"): docs_worlds.adapters,
    ("adapters.md", "", "python"): docs_worlds.adapters,
    ("adapters.md", "An example", "python"): docs_worlds.empty,
    ("randomized-svd.md", "", ""): docs_worlds.matrices,
    ("recipes.md", "Image models: all 28 metrics", ""): docs_worlds.encoders,
    ("recipes.md", "Sequence classification: models with heads of their own", ""): docs_worlds.classifiers,
    ("recipes.md", "Causal language models", ""): docs_worlds.languages,
    ("recipes.md", "Your own evaluation", "python"): docs_worlds.encoders,
    ("recipes.md", "Your own evaluation", "sh"): docs_worlds.ten_encoders,
    ("recipes.md", "LoRA adapters", ""): docs_worlds.adapters,
}
# What no test can do everywhere, or another one does.
NOT_RUN = {
    "mergekern metrics zoo --device cuda:1": "two GPUs",
    "mergekern study out": "tests/study",
    "mergekern study STUDY/vit --methods weight_average,task_arithmetic,ties,tsv": "tests/study",
    "mergekern study STUDY/mlp --architecture mlp --methods weight_average,task_arithmetic,ties,tsv": "tests/study",
}
# Commands that a comment or the text asks to be given several times, or before: what runs first.
BEFORE = {
    "mergekern combine zoo.stats": [f"metrics zoo/ --statistics zoo.stats --shard {i}/5" for i in range(2, 6)],
}
# These start from nothing, as somebody who copies them does; the others are fragments.
WHOLE = ("README.md", "getting-started.md", "recipes.md")


class Step(NamedTuple):
    """One command line, or one block of Python."""

    section: str
    language: str
    text: str


def steps_of(text):
    """Yield the steps of a page: fenced blocks, and indented ones."""
    section = ""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.finditer(
        r"^## (?P<section>.*)$|^```(?P<fence>\w*).*\n(?P<fenced>(?:.*\n)*?)```$"
        r"|(?<=\n\n)(?P<indented>(?:    .*\n|\n(?=    ))+)",
        text, re.MULTILINE,
    )  # fmt: skip
    for match in found:
        if match["section"] is not None:
            section = match["section"]
        elif match["fenced"] is not None and match["fence"] in ("python", "sh", "console"):
            yield from _steps(section, match["fence"], match["fenced"])
        elif match["indented"] is not None:
            yield from _steps(section, "indented", dedent(match["indented"]))


def _steps(section, kind, block):
    if kind == "python":
        yield Step(section, "python", block)
        return
    for is_command, lines in groupby(
        block.splitlines(), lambda line: bool(re.match(r"(\$ )?(mergekern|python|pip|make) ", line))
    ):
        if is_command:
            yield from (
                Step(section, "sh", shlex.join(shlex.split(line.removeprefix("$ "), comments=True))) for line in lines
            )
        elif kind == "indented":
            yield Step(section, "python", "\n".join(lines))


STEPS = {page.name: list(steps_of(page.read_text("utf-8"))) for page in PAGES}


def is_python(step):
    try:
        ast.parse(step.text)
    except SyntaxError:
        return False
    return step.language == "python"


def world_of(page, step):
    for key in (
        (page, step.section, step.language),
        (page, step.section, ""),
        (page, "", step.language),
        (page, "", ""),
    ):
        if key in WORLDS:
            return WORLDS[key]
    return docs_worlds.decided


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, one_thread):
    """Return a function that copies a world to a new folder; each is made once."""
    made = {}

    def copy(make, folder):
        if make not in made:
            made[make] = make(tmp_path_factory.mktemp(make.__name__))
        shutil.copytree(made[make], folder, symlinks=True)
        return folder

    return copy


def names_of(page):
    """Return the names that the blocks of a page suppose."""
    if page in WHOLE:
        return {}
    own = docs_worlds.own_code()
    torch.manual_seed(0)
    encoder = own["build"]()
    base = {name: value.clone() for name, value in encoder.state_dict().items()}
    calibration = docs_worlds.calibration(docs_worlds.NAMES + docs_worlds.MORE)
    inputs, labels = own["my_samples"]("mnist")
    return {
        **own, "mergekern": mergekern, "zoo": "zoo", "calibration": calibration,
        "encoder": encoder, "base": base, "tasks": calibration.tasks,
        "regularizers": mergekern.regularizers, "subspaces": mergekern.regularizers.leading_subspaces(base),
        "loss": torch.nn.functional.cross_entropy(encoder(inputs), labels),
    }  # fmt: skip


@pytest.mark.parametrize("page", [name for name, steps in STEPS.items() if steps])
def test_a_page_does_what_it_says(page, worlds, tmp_path, monkeypatch):
    names, folders = names_of(page), {}
    for step in STEPS[page]:
        # Each section starts anew, its commands and its Python too: one does what the other does.
        key = (step.section, step.language)
        if key not in folders:
            folders[key] = worlds(world_of(page, step), tmp_path / str(len(folders)))
        monkeypatch.chdir(folders[key])
        if is_python(step):
            exec(compile(step.text, page, "exec"), names)
        elif step.language == "sh":
            run_command(step.text)


def run_command(line):
    program, *arguments = shlex.split(line)
    if program == "make":
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in arguments)
    elif program == "python":
        check_program(*arguments)
    elif line in NOT_RUN:  # its options exist
        main.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    elif program == "mergekern":
        for before in BEFORE.get(line, ()):
            run_command(f"mergekern {before}")
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"


def check_program(path, *arguments):
    """Check that a program of the repository has the options that it is given; tests of the programs run them."""
    assert (ROOT / path).is_file()
    if path.startswith("python/"):
        program = importlib.import_module(Path(path).stem).main
        options = {option for parameter in program.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options


def test_every_indented_block_is_code_or_known_to_be_none():
    others = {
        (page, step.text.strip().partition("\n")[0]) for page, steps in STEPS.items() for step in steps
        if step.language == "python" and not is_python(step)
    }  # fmt: skip
    assert others == set()


def test_what_is_not_run_is_still_there():
    lines = {step.text for steps in STEPS.values() for step in steps if step.language == "sh"}
    assert {*NOT_RUN, *BEFORE} <= lines
    sections = {(page, step.section) for page, steps in STEPS.items() for step in steps}
    assert {(page, section) for page, section, _ in WORLDS if section} <= sections


def test_a_command_that_fails_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="no such file or folder"):
        run_command("mergekern info zoo")
    assert [step.text for step in steps_of("## A\n\nx\n\n    mergekern info zoo  # b\n\ny\n\n```python\n1\n```\n")] == [
        "mergekern info zoo", "1\n",
    ]  # fmt: skip
