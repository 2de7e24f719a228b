"""The whole of compute_all against the plain per-pair implementation in float64."""

import itertools

import numpy as np
import pytest
import torch

import mergekern
from mergekern.metrics import CATALOGUE
from tests.reference.pairs import pair_metrics
from tests.support.tolerances import GEOMETRY, SUBSPACE

SHAPES = {
    "embedding": (200, 48),
    "in": (144, 48),
    "out": (48, 48),
    "up": (150, 40),
    "down": (40, 150),
    "bias": (48,),
    "scale": (),
}


def assert_agrees(base, zoo, **options):
    table = mergekern.compute_all(zoo, base, **options)
    frame = table.to_pandas()
    for a, b in itertools.combinations(zoo, 2):
        expected = pair_metrics(base, zoo[a], zoo[b], dtype=torch.float64)
        assert len(expected) == 18
        for name, value in expected.items():
            near = {"abs": SUBSPACE, "rel": 0} if CATALOGUE[name].needs == "spectra" else {"rel": GEOMETRY, "abs": 0}
            assert frame.loc[(a, b), name] == pytest.approx(value, **near), (a, b, name)


def draw(shape, generator, scale=1.0):
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize(
    "dtypes",
    [["float32"], ["bfloat16"], ["float16"], ["float64"], ["float32", "bfloat16", "float16", "float64"]],
    ids="+".join,
)
def test_storage_dtypes(tmp_path, dtypes, io):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    plain = {name: draw(shape, generator) for name, shape in SHAPES.items()}
    dtypes = itertools.cycle(getattr(torch, name) for name in dtypes)
    base = {name: tensor.to(next(dtypes)) for name, tensor in plain.items()}
    save_file(base, tmp_path / "base.safetensors")
    zoo = {}
    for model in "abc":
        dtype = next(dtypes)
        zoo[model] = {name: (t + draw(t.shape, generator, 0.3)).to(dtype) for name, t in plain.items()}
        save_file(zoo[model], tmp_path / f"{model}.safetensors")
    for given in (zoo, {model: tmp_path / f"{model}.safetensors" for model in zoo}):
        table = mergekern.compute_all(given, tmp_path / "base.safetensors", io=io)
        assert table.models == tuple(zoo)
    assert_agrees(base, zoo, io=io)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e5])
def test_ill_conditioned_matrices(condition):
    rng = np.random.default_rng(0)
    base = {
        name: torch.zeros(shape, dtype=torch.float64) for name, shape in {"tall": (120, 60), "wide": (60, 120)}.items()
    }
    zoo = {}
    for model in "abc":
        zoo[model] = {}
        for name, tensor in base.items():
            left, right = (np.linalg.qr(rng.standard_normal((size, 60)))[0] for size in tensor.shape)
            zoo[model][name] = torch.from_numpy((left * np.geomspace(1, 1 / condition, 60)) @ right.T)
    assert_agrees(base, zoo)


def test_nearly_identical_pair_among_others():
    """Two models 1e-6 apart, in float64, beside an unrelated one."""
    generator = torch.Generator().manual_seed(0)
    base = {name: draw(shape, generator) for name, shape in SHAPES.items()}
    delta = {name: draw(shape, generator) for name, shape in SHAPES.items()}
    zoo = {
        "one": {name: base[name] + delta[name] for name in base},
        "near": {name: base[name] + delta[name] * (1 + 1e-6 * draw(t.shape, generator)) for name, t in base.items()},
        "far": {name: base[name] + draw(t.shape, generator) for name, t in base.items()},
    }
    table = mergekern.compute_all(zoo, base, metrics="task_vector_l2_distance")
    flat = {model: torch.cat([t.flatten() for t in tensors.values()]) for model, tensors in zoo.items()}
    for a, b in itertools.combinations(zoo, 2):
        distance = table.to_pandas().loc[(a, b), "task_vector_l2_distance"]
        assert distance == pytest.approx(float((flat[a] - flat[b]).norm()), rel=GEOMETRY)
