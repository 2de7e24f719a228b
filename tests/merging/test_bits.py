"""The same bytes whatever the order of the models, the memory budget, the division into blocks, and the threads."""

import pytest
import torch
from safetensors.torch import save_file

import mergekern
from mergekern import METHODS
from tests.merging.zoos import assert_equal, drawn, first, fitting

SHAPES = {"a": (37, 29), "b": (64, 50), "c": (501,), "d": (6, 5, 3), "e": (70, 70)}
CASES = [
    *((name, {}) for name in METHODS),
    ("ties", {"scope": "model"}),
    ("dare", {"mask": "magnitude", "scope": "model"}),
    ("dare_ties", {"scope": "model", "rate": 0.5}),
]
EVERY = [(name, options, n) for name, options in CASES for n in (1, 2, 3, 5, 8) if METHODS[name].merges(n)]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("method", "options", "models"), EVERY, ids=lambda value: "" if value == {} else None)
def test_same_bits(method, options, models, threads):
    base, tuned = drawn(models, SHAPES)
    expected = mergekern.merge(tuned, base, method, options=options)
    backwards = dict(reversed(tuned.items()))
    assert_equal(mergekern.merge(backwards, base, method, options=options), expected)
    renamed = {f"other_{i}": model for i, model in enumerate(backwards.values())}
    assert_equal(mergekern.merge(renamed, base, method, max_memory=3001, options=options), expected)
    for count in (1, 3):
        threads(count)
        assert_equal(mergekern.merge(tuned, base, method, max_memory=50_000 * count, options=options), expected)


def test_weights_follow_their_models():
    base, three = drawn(3, SHAPES)
    for method in METHODS:
        tuned = first(three, fitting(method, 3))
        weights = dict(zip(tuned, (0.1, 0.7, 1.3), strict=False))
        expected = mergekern.merge(tuned, base, method, weights=weights)
        backwards = dict(reversed(tuned.items()))
        assert_equal(mergekern.merge(backwards, base, method, weights=list(weights.values())[::-1]), expected)
        assert not torch.equal(mergekern.merge(tuned, base, method)["a"], expected["a"])


def test_same_files(tmp_path):
    base, tuned = drawn(3, SHAPES)
    save_file(base, tmp_path / "base.safetensors")
    for name, model in tuned.items():
        save_file(model, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in tuned]
    bytes_of = []
    for index, order in enumerate((paths, paths[::-1])):
        out = tmp_path / f"out_{index}.safetensors"
        how = {"max_memory": 4000 + 10**9 * index, "io": ("mmap", "pread")[index]}
        mergekern.merge(order, tmp_path / "base.safetensors", "dare_ties", output=out, **how)
        bytes_of.append(out.read_bytes())
    assert bytes_of[0] == bytes_of[1]
