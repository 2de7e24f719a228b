"""Checkpoints of every kind give the same values."""

import pytest
import torch
from safetensors.torch import save_file

from tests.functional.tables import KINDS, assert_close, run
from tests.support.encoders import make_case

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_what_tensors_give(kind, tmp_path):
    case = make_case(kind)
    paths = {}
    for name, state in {"base": case.base, **case.models}.items():
        kept = {key: v for key, v in state.items() if key != "down.weight"}  # the file holds one of a tied pair
        paths[name] = tmp_path / f"{name}.safetensors"
        save_file(kept, paths[name])
    base = paths.pop("base")
    assert_close(run(case, paths, base), run(case), rel=0, abs=0)


def test_pickles_modules_and_half_precision(tmp_path):
    case = make_case("text")
    modules = {name: case.module(name) for name in case.models}
    expected = run(case)
    assert_close(run(case, modules), expected, rel=0, abs=0)
    paths = {name: tmp_path / f"{name}.pt" for name in modules}
    for name, path in paths.items():
        torch.save(case.models[name], path)
    assert_close(run(case, paths), expected, rel=0, abs=0)
    half = {n: {k: v.bfloat16() if v.is_floating_point() else v for k, v in m.items()} for n, m in case.models.items()}
    wide = {n: {k: v.float() if v.is_floating_point() else v for k, v in m.items()} for n, m in half.items()}
    assert_close(run(case, half), run(case, wide), rel=0, abs=0)


def test_integer_buffers_are_those_of_the_checkpoint(tmp_path):
    case = make_case("text")
    plain = run(case)
    for state in case.models.values():
        state["order"] = state["order"].flip(0)
    turned = run(case)
    assert (turned.to_pandas() - plain.to_pandas()).abs().to_numpy().max() > 1e-3
    for name, state in case.models.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    assert_close(run(case, {n: tmp_path / f"{n}.safetensors" for n in case.models}), turned, rel=0, abs=0)


def test_a_model_without_memory_of_its_own():
    case = make_case("convolutions")
    with torch.device("meta"):
        model = case.make()
    assert_close(run(case, model=model), run(case), rel=0, abs=0)
