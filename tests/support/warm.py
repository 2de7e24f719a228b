"""Imports the whole package; `faults` starts its fork server with it, for processes that need no imports."""

import importlib
import pkgutil

import pytest  # noqa: F401  each child imports the main module of its parent

import mergekern

# Kernels are imported by those who use them, without Triton on a processor; figures are matplotlib's.
LEFT_OUT = ("mergekern.kernels.", "mergekern.report.figures", "mergekern.__main__")

# Models of transformers are built by those who calibrate and evaluate; importing one imports what all need.
importlib.import_module("transformers.models.bert.modeling_bert")

for module in pkgutil.walk_packages(mergekern.__path__, "mergekern."):
    if not module.name.startswith(LEFT_OUT):
        importlib.import_module(module.name)
