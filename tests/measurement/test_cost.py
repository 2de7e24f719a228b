"""What a measurement will take, beside what it takes."""

import math

import pytest
import torch

import mergekern
from mergekern.checkpoints import open_zoo
from mergekern.checkpoints.rounding import Source
from mergekern.kernels.trim import on_cpu as trim
from mergekern.metrics import ADDITIONAL

OF_COORDINATES = [name for name, metric in ADDITIONAL.items() if metric.needs == "coordinates"]
SHAPES = {"small": (40,), "wide": (20, 900), "even": (200, 300)}
ITEM = 4
# All tensors are split; two, and the base and one model of one of them fit; one, and its base and one model fit.
BUDGETS = [400, 200_000, 600_000]


@pytest.fixture
def zoo():
    draw = torch.Generator().manual_seed(0)
    return [{name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()} for _ in range(4)]


@pytest.mark.parametrize("budget", BUDGETS)
def test_bytes_that_coordinates_read_of_large_tensors(zoo, budget, monkeypatch):
    (base, *models), options = zoo, mergekern.MeasureOptions(OF_COORDINATES, max_memory=budget)
    cost = mergekern.estimate_cost(open_zoo(models, base), options)
    held = sum(4 * ITEM * count for count in map(math.prod, SHAPES.values()) if 4 * ITEM * count <= budget)
    read, in_ranges = [held], Source.read

    def counted(source, start, stop):
        read.append((stop - start) * ITEM)
        return in_ranges(source, start, stop)

    monkeypatch.setattr(Source, "read", counted)
    mergekern.compute_all(models, base, metrics=OF_COORDINATES, max_memory=budget, device="cpu")
    assert sum(read) <= cost.bytes_read <= 1.5 * sum(read)


def test_what_is_held_is_read_once_whatever_is_measured(zoo):
    base, *models = zoo
    opened = open_zoo(models, base)
    every = [mergekern.estimate_cost(opened, mergekern.MeasureOptions(metrics)) for metrics in ("all", "interference")]
    assert every[0].bytes_read == every[1].bytes_read
    assert every[1].peak_memory >= every[0].peak_memory + trim.workspace(math.prod(SHAPES["even"]))
