"""Sphinx's configuration. `make docs` builds the site; every warning, such as a broken link, is an error."""

import inspect
import re
from pathlib import Path

import click

import mergekern
from mergekern.cli import main

HERE = Path(__file__).parent

project = "mergekern"
author = "the mergekern authors"
copyright = author
release = version = mergekern.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"mergekern {release}"
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist", "smartquotes"]
myst_heading_anchors = 3

default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # properties are documented by themselves


def commands():
    """Return the help of every command, as Markdown."""
    parts = []
    for name, command in main.commands.items():
        with click.Context(
            command, info_name=f"mergekern {name}", terminal_width=100, max_content_width=100
        ) as context:
            parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)


def api():
    """Return directives for every public name: functions and classes of `mergekern`, then those of its modules."""
    names = {name: getattr(mergekern, name) for name in mergekern.__all__}
    modules = {name: thing for name, thing in names.items() if inspect.ismodule(thing)}
    parts = [_directives("mergekern", {name: names[name] for name in names if name not in modules})]
    for name, module in modules.items():
        offered = getattr(module, "__all__", None) or [
            each for each, thing in vars(module).items() if getattr(thing, "__module__", None) == module.__name__
        ]
        parts.append(f"## mergekern.{name}\n")
        parts.append(_directives(module.__name__, {each: getattr(module, each) for each in offered if each[0] != "_"}))
    return "\n\n".join(parts)


def _directives(module, names):
    lines = ["```{eval-rst}"]
    for name, thing in names.items():
        if inspect.isclass(thing):
            lines += [f".. autoclass:: {module}.{name}", "   :members:", ""]
        elif inspect.isroutine(thing):
            lines += [f".. autofunction:: {module}.{name}", ""]
    return "\n".join([*lines, "```"])


# Parts of pages that are generated at every build.
GENERATED = {"<!-- commands -->": commands, "<!-- api -->": api}


def fill(app, page, source):
    """Replace the marks in a page by what they stand for, and drop patterns of the contents that match no page."""
    if page == "index":
        lines = source[0].splitlines(keepends=True)
        source[0] = "".join(line for line in lines if "*" not in line or any(HERE.glob(line.strip() + ".md")))
    for mark, generate in GENERATED.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, generate())


def escape(app, what, name, obj, options, lines):
    """Escape what reStructuredText would take for markup: docstrings write |x| and a*b as they mean it."""
    in_code = False
    for number, line in enumerate(lines):
        in_code = line.lstrip().startswith((">>>", "...")) or (in_code and bool(line.strip()))
        if not in_code:
            parts = re.split(r"(`+[^`]*`+)", line)
            parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def skip(app, what, name, obj, is_skipped, options):
    """Leave out the methods that scikit-learn makes for routing metadata."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app):
    """Fill pages, and run `escape` before napoleon, which turns sections into markup."""
    app.connect("source-read", fill)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", escape, priority=100)
