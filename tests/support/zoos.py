"""A zoo in files with wide and tall matrices, a vector, a frozen tensor, and a tensor that two models share."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from mergekern import MetricTable, ZooStatistics

SHAPES = {"embed": (24, 10), "block.weight": (18, 32), "block.bias": (18,), "head": (7, 18), "conv": (4, 3, 2, 2)}
NAMES = tuple("abcdefg")


def write_zoo(folder, names=NAMES, seed=0, dtype=torch.float32, blocks=0):
    """Write a base and models as safetensors files, with `blocks` more matrices, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    shapes = SHAPES | {f"blocks.{index}": (64, 48) for index in range(blocks)}
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    save_file({name: values.to(dtype) for name, values in base.items()}, folder / "base.safetensors")
    shared = base["head"] + 0.1 * torch.randn(SHAPES["head"], generator=draw)
    for index, name in enumerate(names):
        model = {key: values + 0.05 * torch.randn(values.shape, generator=draw) for key, values in base.items()}
        if index == 2:
            model["embed"] = base["embed"].clone()
        if index in (1, 4):
            model["head"] = shared
        save_file({key: values.to(dtype) for key, values in model.items()}, folder / f"{name}.safetensors")
    return folder


def paths(folder, names=NAMES):
    """Return the paths of models by name."""
    return {name: folder / f"{name}.safetensors" for name in names}


def assert_same(found, expected):
    """Assert that two tables are equal to the last bit, layers, notes and provenance included."""
    if isinstance(found, Path):
        found = ZooStatistics.load(found)
    if not isinstance(found, MetricTable):
        found = MetricTable.from_statistics(found, per_layer=True)
    assert found.models == expected.models
    assert found.metrics == expected.metrics
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas(), check_exact=True)
    for metric in expected.metrics:
        pd.testing.assert_frame_equal(found.per_layer(metric), expected.per_layer(metric), check_exact=True)
        np.testing.assert_array_equal(found.matrix(metric), expected.matrix(metric))
    assert found.notes == expected.notes
    assert found.provenance == expected.provenance
