"""The ten metrics that run models, against research code, which runs them anew for every pair and metric.

Every zoo is checked first: on one sample a task, compute_all must give what the plain implementation gives in float64.
The models of the small zoo come first; those of ViT-B/16 size take about 20 minutes, and the plain implementation 10
for one pair.
"""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mergekern
from benchmarks import counts
from benchmarks.peak_memory import PeakMemory
from benchmarks.vit_zoo import DEPTH, TOKENS, WIDTH, VisionTransformer, make_tasks
from mergekern.metrics import CATALOGUE
from tests.reference.pairs import pair_functional_metrics

SAMPLES = 10
METRICS = [name for name, metric in CATALOGUE.items() if metric.runs_models]


@pytest.fixture(scope="session", params=["small", "vit_b16"])
def zoo(request):
    """5 models of width 384 and depth 4, and 20 of ViT-B/16 shape: the folder, the paths, and what builds the model."""
    if request.param == "small":
        folder = request.getfixturevalue("small_vit")
        return folder, folder.first(5), lambda: VisionTransformer(384, 4)
    folder = request.getfixturevalue("vit_b16")
    return folder, folder.models, lambda: VisionTransformer(WIDTH, DEPTH)


def layer(make):
    with torch.device("meta"):
        blocks = len(make().transformer["resblocks"])
    return f"transformer.resblocks.{blocks - 1}"


def calibrate(models, make, samples, dtype=torch.float32):
    # Without memory of its own: it runs on the tensors of the checkpoints.
    with torch.device("meta"):
        model = make()
    return mergekern.Calibration(model, make_tasks(models, samples), layer(make), dtype=dtype)


def plain(models, make, calibration, pair, dtype=torch.float32):
    encoders, tasks = [], []
    for name in pair:
        encoders.append(make().to(dtype))
        encoders[-1].load_state_dict(load_file(models[name]))
        inputs, labels, (weight, bias) = calibration.tasks[name]
        head = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
        head.load_state_dict({"weight": weight, "bias": bias})
        tasks.append((inputs.to(dtype), labels, head))
    samples = [task.inputs.to(dtype) for task in calibration.tasks.values()]
    return lambda: pair_functional_metrics(*encoders, tuple(tasks), samples, calibration.layer)


def check(folder, models, make):
    pair = list(models)[:2]
    first = {name: models[name] for name in pair}
    calibration = calibrate(first, make, 1, torch.float64)
    found = mergekern.compute_all(first, folder.base_path, metrics=METRICS, calibration=calibration)
    expected = plain(models, make, calibration, pair, torch.float64)()
    for name in METRICS:
        assert found.to_pandas().iloc[0][name] == pytest.approx(expected[name], rel=1e-6), name


def test_all_pairs(benchmark, describe, zoo):
    folder, models, make = zoo
    check(folder, models, make)
    calibration = calibrate(models, make, SAMPLES)
    case = f"probes/{folder.name}x{len(models)}/{SAMPLES}_samples"
    describe(case, counts.probes(folder.base, len(models), len(models), TOKENS, SAMPLES))
    with PeakMemory() as memory:
        table = benchmark.pedantic(
            mergekern.compute_all, args=(models, folder.base_path), rounds=1, iterations=1,
            kwargs={"metrics": METRICS, "calibration": calibration},
        )  # fmt: skip
    benchmark.extra_info["peak_memory"] = memory.bytes
    assert len(table.to_pandas()) == len(models) * (len(models) - 1) // 2
    assert table.to_pandas().notna().all(axis=None)


def test_one_pair_by_the_baseline(benchmark, describe, zoo):
    folder, models, make = zoo
    calibration = calibrate(models, make, SAMPLES)
    case = f"baseline_pair/probes/{folder.name}x{len(models)}/{SAMPLES}_samples"
    describe(case, counts.probes(folder.base, 2, len(models), TOKENS, SAMPLES))
    benchmark.pedantic(plain(models, make, calibration, list(models)[:2]), rounds=1, iterations=1)
