import math

import pytest
import torch
from safetensors.torch import save_file

from mergekern.checkpoints import LayerStream, open_zoo, stream
from mergekern.errors import OptionError
from tests.support.checkpoint_files import assert_same, draw

IO = ("mmap", "pread")
SHAPES = {"matrix": (7, 5), "convolution": (2, 3, 4), "scalar": (), "vector": (9,)}
# Bytes of one element in memory, summed over the checkpoints below: float32, bfloat16, float64, and scaled float8,
# which is read as float32.
BYTES = 4 + 2 + 8 + 4
BUDGETS = {
    "one element": BYTES,
    "not a multiple": 5 * BYTES - 1,
    "all but one element": 35 * BYTES - 1,
    "exactly the matrix": 35 * BYTES,
    "all": 1 << 30,
}


@pytest.fixture(params=IO)
def zoo(tmp_path, request):
    for seed, (name, dtype) in enumerate((("base", torch.float32), ("a", torch.bfloat16))):
        save_file(drawn(seed, dtype), tmp_path / f"{name}.safetensors")
    torch.save(drawn(2, torch.float64), tmp_path / "b.pt")
    scales = {f"{name}_scale": torch.tensor(0.5) for name in SHAPES}
    save_file(drawn(3, torch.float8_e4m3fn) | scales, tmp_path / "c.safetensors")
    return open_zoo(tmp_path, io=request.param)


def drawn(seed, dtype):
    return {name: draw(*shape, dtype=dtype, seed=seed) for name, shape in SHAPES.items()}


def expected(name):
    """Return the values of one tensor in the base and the models a, b and c."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn)
    *plain, scaled = (drawn(seed, dtype)[name] for seed, dtype in enumerate(dtypes))
    return [*plain, scaled.float() * 0.5]


@pytest.mark.parametrize("max_memory", BUDGETS.values(), ids=BUDGETS)
def test_blocks_are_the_whole_tensors_within_the_budget(zoo, max_memory):
    stream = LayerStream(zoo, max_memory)
    layers = list(stream)
    assert len(stream) == len(layers) == len(SHAPES)
    for layer in layers:
        name, count = layer.tensor.name, math.prod(layer.tensor.shape)
        assert layer.is_split == (count * BYTES > max_memory)
        blocks = [[base, *tuned] for base, tuned in layer.blocks()]
        assert len(blocks) == (-(-count // (max_memory // BYTES)) if layer.is_split else 1)
        for block in blocks:
            assert all(part.dim() == 1 and part.is_contiguous() for part in block)
            assert sum(part.nbytes for part in block) <= max_memory
        for parts, whole in zip(zip(*blocks, strict=True), expected(name), strict=True):
            assert_same(torch.cat(parts), whole.reshape(-1))


@pytest.mark.parametrize(("elements", "sizes"), [(3, [3] * 11 + [2]), (4, [4] * 8 + [3]), (11, [8] * 4 + [3])])
def test_blocks_end_where_kernels_may_add_them_up(zoo, monkeypatch, elements, sizes):
    monkeypatch.setattr(stream, "SEGMENT", 4)
    layer = next(layer for layer in LayerStream(zoo, elements * BYTES) if layer.tensor.is_matrix)
    assert [len(base) for base, _ in layer.blocks()] == sizes


def test_tensors_come_in_file_order_and_again_on_the_next_pass(zoo):
    stream = LayerStream(zoo)
    # safetensors files keep tensors of one dtype by name.
    assert [layer.tensor.name for layer in stream] == ["convolution", "matrix", "scalar", "vector"]
    assert [layer.tensor.name for layer in stream] == ["convolution", "matrix", "scalar", "vector"]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("step", [1, 2, 5, 100])
@pytest.mark.parametrize("max_memory", [BYTES, 1 << 30], ids=["split", "held"])
def test_matrix_blocks_are_slices(zoo, axis, step, max_memory):
    layer = next(layer for layer in LayerStream(zoo, max_memory) if layer.tensor.is_matrix)
    base, *tuned = expected("matrix")
    for model, whole in enumerate(tuned):
        blocks = list(layer.matrix_blocks(model, axis, step))
        assert [start for start, _, _ in blocks] == list(range(0, SHAPES["matrix"][axis], step))
        for start, base_block, tuned_block in blocks:
            assert_same(base_block, torch.split(base, step, axis)[start // step])
            assert_same(tuned_block, torch.split(whole, step, axis)[start // step])


def test_held_tensors_are_read_once(zoo):
    layer = next(iter(LayerStream(zoo)))
    addresses = [[part.data_ptr() for part in (base, *tuned)] for base, tuned in (*layer.blocks(), *layer.blocks())]
    assert addresses[0] == addresses[1]


# --- content hashes


def hashes(zoo, max_memory=None):
    return {layer.tensor.name: layer.content_hashes() for layer in LayerStream(zoo, max_memory)}


@pytest.mark.parametrize("max_memory", BUDGETS.values(), ids=BUDGETS)
def test_hashes_do_not_depend_on_how_a_tensor_is_read(zoo, max_memory):
    in_memory = [{name: expected(name)[index] for name in SHAPES} for index in range(4)]
    as_given = open_zoo(dict(zip("abc", in_memory[1:], strict=True)), in_memory[0])
    assert hashes(zoo, max_memory) == hashes(as_given)


def test_hashes_tell_checkpoints_and_tensors_apart(zoo):
    found = [digest for digests in hashes(zoo).values() for digest in digests]
    assert len(set(found)) == len(found) == 4 * len(SHAPES)


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("max_memory", [64, None], ids=["split", "held"])
@pytest.mark.parametrize("changed", [0, 1, 2], ids=["base", "first model", "second model"])
@pytest.mark.parametrize("at", [1, 48], ids=["last byte", "first byte"])
def test_one_bit_changes_the_hash_of_its_checkpoint_alone(tmp_path, io, max_memory, changed, at):
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for path in paths:
        save_file({"w": draw(4, 3)}, path)
    before = hashes(open_zoo(tmp_path, io=io), max_memory)["w"]
    assert len(set(before)) == 1
    content = bytearray(paths[changed].read_bytes())
    content[-at] ^= 1
    paths[changed].write_bytes(content)
    after = hashes(open_zoo(tmp_path, io=io), max_memory)["w"]
    assert [b != a for b, a in zip(before, after, strict=True)] == [index == changed for index in range(3)]


OTHER_READINGS = {
    "shape": lambda tensor: tensor.reshape(3, 4),
    "rank": lambda tensor: tensor.reshape(-1),
    "dtype": lambda tensor: tensor.view(torch.bfloat16),
}


@pytest.mark.parametrize("change", OTHER_READINGS.values(), ids=OTHER_READINGS)
def test_equal_bytes_of_another_shape_or_dtype_hash_differently(change):
    tensor = draw(4, 3, dtype=torch.float16)
    first, second = ({"a": {"w": t}, "b": {"w": t}} for t in (tensor, change(tensor)))
    before, after = (hashes(open_zoo(models, models["a"]))["w"] for models in (first, second))
    assert not set(before) & set(after)


# --- budgets that cannot be


@pytest.mark.parametrize("read", ["blocks", "content_hashes"])
def test_budget_below_one_element(zoo, read):
    layer = next(iter(LayerStream(zoo, BYTES - 1)))
    with pytest.raises(OptionError, match=f"max_memory={BYTES - 1} bytes does not hold one element of 4 checkpoints"):
        list(getattr(layer, read)())


@pytest.mark.parametrize("max_memory", [0, -1, 0.5, math.nan, math.inf, "2G"])
def test_budget_that_is_none(zoo, max_memory):
    with pytest.raises(OptionError, match=f"max_memory must be a positive number of bytes, not {max_memory!r}"):
        LayerStream(zoo, max_memory)


@pytest.mark.parametrize("max_memory", [None, BYTES, 1e9], ids=str)
def test_budget_that_is_one(zoo, max_memory):
    assert len(list(LayerStream(zoo, max_memory))) == len(SHAPES)
