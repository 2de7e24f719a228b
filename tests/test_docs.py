"""README and docs/: all pages are in the contents, links lead somewhere, commands and options exist."""

import ast
import fnmatch
import re
import shlex
from pathlib import Path

import click
import pytest

from mergekern.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(text):
    """Yield the arguments of every line of code that begins with `mergekern`, continued lines included."""
    is_fenced = False
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        is_fenced ^= line.startswith("```")
        if (is_fenced and re.match(r"(\$ )?mergekern ", line)) or re.match(r"    mergekern ", line):
            yield shlex.split(line.strip().removeprefix("$ "), comments=True)[1:]


def contents():
    toctrees = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
    lines = [line.strip() for text in toctrees for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_in_the_contents():
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    missing = [name for name in pages if not any(fnmatch.fnmatch(name, entry) for entry in contents())]
    assert not missing, "name them in docs/index.md"
    assert {entry for entry in contents() if "*" not in entry} <= pages


@page
def test_links_lead_to_files(page):
    text = page.read_text("utf-8")
    files = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in target]
    files += [f"{name}.md" for name in re.findall(r"{doc}`(?:[^`<]*<)?([^`>]+)>?`", text)]
    files += re.findall(r"```{include} (\S+)", text)
    assert not [target for target in files if not (page.parent / target).exists()]


@page
def test_commands_and_their_options_exist(page):
    for arguments in command_lines(page.read_text("utf-8")):
        name, *rest = arguments
        if name.startswith("-"):
            continue
        assert name in main.commands, arguments
        known = {
            option
            for parameter in main.commands[name].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        used = {argument.partition("=")[0] for argument in rest if argument.startswith("-")}
        assert used <= known | {"-h", "--help"}, arguments


@page
def test_python_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_the_checks_see_what_is_wrong(tmp_path):
    bad = tmp_path / "bad.md"
    bad.write_text("    mergekern metrics zoo --no-such-option\n[x](missing.md) {doc}`gone`\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no-such-option"):
        test_commands_and_their_options_exist(bad)
    with pytest.raises(AssertionError, match=r"missing\.md"):
        test_links_lead_to_files(bad)
    assert isinstance(main, click.Group)
