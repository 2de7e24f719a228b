"""The command line offers what the library accepts: choices, merge methods, dtypes, and the same defaults."""

import inspect
import re
import typing

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import mergekern
from mergekern.cli import main
from mergekern.functional.calibration.architectures import KINDS
from mergekern.merging.registry import methods_for
from mergekern.prediction import PREDICTORS, MergePredictor
from mergekern.study.zoos.encoders import CLASSES

OF_MERGE_ADAPTERS = typing.get_type_hints(mergekern.merge_adapters)
OF_COMPUTE_ALL = typing.get_type_hints(mergekern.compute_all)
# Values that the library accepts, by the name of the parameter for which a command offers choices.
ACCEPTED = {
    "on_mismatch": typing.get_args(OF_COMPUTE_ALL["on_mismatch"]),
    "frozen": typing.get_args(OF_COMPUTE_ALL["frozen"]),
    "small_tensors": typing.get_args(OF_COMPUTE_ALL["small_tensors"]),
    "io": typing.get_args(OF_COMPUTE_ALL["io"]),
    "svd": typing.get_args(OF_COMPUTE_ALL["svd"]),
    "batch_weighting": typing.get_args(typing.get_type_hints(mergekern.Calibration)["batch_weighting"]),
    "architecture": tuple(CLASSES),
    "kind": tuple(PREDICTORS),
    "task": tuple(KINDS),
    "combination": tuple(mergekern.COMBINATIONS),
    "majority_sign": typing.get_args(OF_MERGE_ADAPTERS["majority_sign"]),
    "saved_whole": typing.get_args(OF_MERGE_ADAPTERS["saved_whole"]),
}
# The function that a command hands its options to.
FUNCTIONS = {
    "metrics": mergekern.compute_all,
    "info": mergekern.MeasureOptions,
    "table": mergekern.MetricTable.from_statistics,
    "merge": mergekern.merge,
    "merge-all": mergekern.merge_all,
    "merge-adapters": mergekern.merge_adapters,
    "add": mergekern.add_models,
    "fit": MergePredictor.fit,
    "screen": mergekern.MeasureOptions,
}
CHOICES = [
    pytest.param(parameter, id=f"{name} {parameter.name}")
    for name, command in main.commands.items()
    for parameter in command.params
    if isinstance(parameter.type, click.Choice)
]
ZOO = {name: {"w": np.eye(4)[[row]].repeat(3, axis=0) + row} for row, name in enumerate("abc")}
BASE = {"w": np.zeros((3, 4))}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    for name, model in (ZOO | {"base": BASE}).items():
        save_file(model, folder / f"{name}.safetensors")
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("parameter", CHOICES)
def test_choices_are_what_the_library_accepts(parameter):
    assert tuple(parameter.type.choices) == ACCEPTED[parameter.name]


@pytest.mark.parametrize("name", ["on_mismatch", "frozen", "small_tensors", "io", "svd"])
def test_the_library_accepts_these_and_no_other(name, files):
    for value in ACCEPTED[name]:
        mergekern.compute_all(files, **{name: value}, metrics="stable_rank")
    with pytest.raises(mergekern.OptionError, match=" or ".join(map(repr, ACCEPTED[name]))):
        mergekern.compute_all(files, **{name: "another"}, metrics="stable_rank")


@pytest.mark.parametrize("command", FUNCTIONS)
def test_defaults_are_those_of_the_library(command):
    library = inspect.signature(FUNCTIONS[command]).parameters
    shared = [parameter for parameter in main.commands[command].params if parameter.name in library]
    assert len(shared) >= 1
    for parameter in shared:
        default, theirs = parameter.default, library[parameter.name].default
        if isinstance(default, str | int | float) and theirs is not inspect.Parameter.empty:
            assert default == theirs, parameter.name


@pytest.mark.parametrize("method", mergekern.METHODS)
def test_every_merge_method_can_be_asked_for(method, files, tmp_path):
    names = list(ZOO)[: mergekern.METHODS[method].most]
    models, out = [files / f"{name}.safetensors" for name in names], tmp_path / "merged.safetensors"
    result = run("merge", *models, "--base", files / "base.safetensors", "--method", method, "--out", out)
    assert result.exit_code == 0, result.output
    expected = mergekern.merge({name: ZOO[name] for name in names}, BASE, method)["w"]
    assert np.array_equal(load_file(out)["w"], expected)
    if len(names) == 1:
        return
    result = run("merge-all", files, "--methods", method, "--group", "a+b", "--out", tmp_path / "all")
    assert "wrote 1 merged checkpoints" in result.output


@pytest.mark.parametrize(("command", "option"), [("merge", "method"), ("merge-all", "methods")])
def test_help_names_every_merge_method(command, option):
    (parameter,) = (each for each in main.commands[command].params if each.name == option)
    assert re.search(r"of (.*)\.", parameter.help, re.IGNORECASE)[1].split(", ") == [
        *mergekern.METHODS,
        "regmean",
        "fisher",
    ]


def test_merge_probes_can_be_asked_for_by_every_method():
    (parameter,) = (each for each in main.commands["metrics"].params if each.name == "merge_probes")
    context = click.Context(main.commands["metrics"])
    assert parameter.process_value(context, ",".join(mergekern.METHODS)) == list(mergekern.METHODS)
    assert parameter.process_value(context, "all") == methods_for(2)
    with pytest.raises(click.BadParameter, match=", ".join(mergekern.METHODS)):
        parameter.process_value(context, "another")


def test_dtypes_that_help_names_are_accepted(files, tmp_path):
    (parameter,) = (each for each in main.commands["merge"].params if each.name == "dtype")
    named = re.findall(r"b?float\d+", parameter.help)
    with pytest.raises(mergekern.OptionError) as refusal:
        mergekern.merge(ZOO, BASE, "ties", dtype="another")
    assert sorted(named) == sorted(re.findall(r"b?float\d+", str(refusal.value)))
    for dtype in named:
        assert str(mergekern.merge(ZOO, BASE, "ties", dtype=dtype)["w"].dtype) == f"torch.{dtype}"
