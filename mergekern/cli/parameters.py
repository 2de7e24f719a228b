"""The kinds of parameters that commands take."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from mergekern.errors import did_you_mean
from mergekern.merging.registry import EVERY_METHOD, methods_for

if TYPE_CHECKING:
    from mergekern.functional.calibration import Calibration

BYTE_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class ByteSize(click.ParamType):
    """A number of bytes, such as 500M or 2G."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        text = str(value).lower().removesuffix("b").removesuffix("i")
        try:
            size = float(text[:-1]) * BYTE_UNITS[text[-1]] if text[-1:] in BYTE_UNITS else float(text)
            return int(size)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a number of bytes, such as 500M or 2G", param, ctx)


class Shard(click.ParamType):
    """One of n shares, such as 2/5."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (i, n)."""
        index, _, count = str(value).partition("/")
        if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
            return int(index), int(count)
        self.fail(f"{value!r} is not a share such as 2/5, from 1/5 to 5/5", param, ctx)


class ModelPath(click.ParamType):
    """A path of a model or of a folder of them, the id of a model on a hub, or any of these with a name, as NAME=PATH.

    What exists as it is written is a path, also where it holds an equals sign.
    """

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, Path]:
        """Return the name, None where none is given, and the path."""
        text = str(value)
        name, equals, path = text.partition("=")
        if not (name and equals) or "/" in name or os.path.lexists(text):
            return None, Path(text)
        if not os.path.lexists(path) and not _HUB_ID.fullmatch(path):
            self.fail(f"{text!r}: no such file or folder, and none at {path!r} that NAME=PATH could mean", param, ctx)
        return name, Path(path)


_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


class Function(click.ParamType):
    """A Python function without arguments, as package.module:function or path/to/file.py:function."""

    name = "function"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Callable[[], Any]:
        """Import the module, which runs its code, and return the function."""
        if callable(value):
            return value
        module_name, separator, function_name = str(value).rpartition(":")
        if not separator:
            self.fail(f"{value!r} is not package.module:function or path/to/file.py:function", param, ctx)
        try:
            module = _import_file(Path(module_name)) if module_name.endswith(".py") else import_module(module_name)
        except (ImportError, OSError) as error:
            self.fail(f"{module_name} cannot be imported: {error}", param, ctx)
        function = getattr(module, function_name, None)
        if not callable(function):
            self.fail(f"{module_name} has no function {function_name!r}", param, ctx)
        return function


def calibration_of(folder: Path | None, model_fn: Callable | None) -> Calibration | None:
    """Return the calibration in a folder, of models that a function may build; None where no folder is given."""
    if folder is None:
        return None
    import mergekern

    return mergekern.Calibration.from_folder(folder, model_fn)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def with_options(*options: Callable) -> Callable[[Callable], Callable]:
    """Return a decorator that gives a command several options, which help shows in this order."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def parse_rename(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str] | None:
    """Return parts of names and what replaces them, from OLD=NEW."""
    if wrong := next((text for text in values if "=" not in text), None):
        raise click.BadParameter(f"{wrong!r} is not OLD=NEW, such as model.=bert.", ctx, param)
    return dict(text.split("=", 1) for text in values) or None


rename_option = click.option(
    "--rename", multiple=True, callback=parse_rename, metavar="OLD=NEW",
    help="Replace parts of the models' tensor names that the base lacks, such as text.=model.; either may be empty; "
    "may be repeated.",
)  # fmt: skip
io_option = click.option(
    "--io", type=click.Choice(["mmap", "pread"]), default="mmap", show_default=True,
    help="How files are read; pread suits network disks.",
)  # fmt: skip


def parse_methods(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    """Return the merge methods in a list with commas between; "all" stands for those of pairs, None for none."""
    if value in (None, "all"):
        return [] if value is None else methods_for(2)
    names = [name.strip() for name in str(value).split(",")]
    if unknown := [name for name in names if name not in EVERY_METHOD]:
        nearest, known = did_you_mean(unknown[0], EVERY_METHOD), ", ".join(EVERY_METHOD)
        raise click.BadParameter(f"no method {unknown[0]!r}{nearest}; there are {known}", ctx, param)
    return list(dict.fromkeys(names))


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    """Return numbers from a list with commas between; None for none."""
    try:
        return None if value is None else [float(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,0.5", ctx, param) from None


def parse_weights(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Return weights from a list of numbers with commas between, or from JSON; None for none."""
    if value is None or value.lstrip()[:1] not in ("[", "{"):
        return parse_numbers(ctx, param, value)
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not JSON ({error})", ctx, param) from None


def parse_options(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Return options of a method from NAME=VALUE, the values as JSON where they are."""
    options: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, such as density=0.2", ctx, param)
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            words = {"none": None, "true": True, "false": False}
            options[name.replace("-", "_")] = words.get(value.casefold(), value)
    return options
