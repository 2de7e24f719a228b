import itertools

import pytest
import torch
from safetensors.torch import save_file

from mergekern.checkpoints import open_checkpoint
from mergekern.checkpoints.dtypes import FLOAT8, WIDENED
from mergekern.errors import CheckpointError
from tests.support.checkpoint_files import assert_same, draw, write_shards


def as_it_is(scale):
    return scale


def one_number(scale):
    return scale.reshape(())


def of_rows(scale):
    return scale[:, None]


def blocks(rows, columns):
    return lambda scale: scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


# (shape of the tensor, shape of its scale, the scale as torch would broadcast it)
SCALES = {
    "one number": ((6, 10), (), one_number),
    "list of one number": ((6, 10), (1,), one_number),
    "matrix of one number": ((6, 10), (1, 1), one_number),
    "deep list of one number": ((6, 10), (1, 1, 1), one_number),
    "rows": ((6, 10), (6, 1), as_it_is),
    "list of rows": ((6, 10), (6,), of_rows),
    "list of a square matrix": ((6, 6), (6,), of_rows),
    "columns": ((6, 10), (1, 10), as_it_is),
    "list of columns": ((6, 10), (10,), as_it_is),
    "blocks of 128": ((256, 128), (2, 1), blocks(128, 128)),
    "ragged blocks of 128": ((130, 260), (2, 3), lambda scale: blocks(128, 128)(scale)[:130, :260]),
    "blocks of another size": ((6, 10), (3, 5), blocks(2, 2)),
    "ragged blocks of the one size that fits": ((6, 10), (3, 4), lambda scale: blocks(2, 3)(scale)[:, :10]),
    "blocks of every matrix": ((3, 130, 4), (3, 2, 1), lambda scale: scale.repeat_interleave(128, 1)[:, :130]),
    "rows of every matrix": ((2, 3, 4), (2, 3, 1), as_it_is),
    "columns of every matrix": ((2, 3, 4), (2, 1, 4), as_it_is),
    "every element": ((3, 2), (3, 2), as_it_is),
    "vector": ((7,), (), one_number),
    "elements of a vector": ((7,), (7,), as_it_is),
    "scalar": ((), (), one_number),
    "convolution": ((4, 3, 2, 2), (), one_number),
    "convolution and deep scale": ((4, 3, 2, 2), (1, 1, 1, 1), one_number),
    "nothing": ((0, 10), (), one_number),
}


def draw_scaled(shape, scale_shape, grid, dtype=torch.float8_e4m3fn, scale_dtype=torch.float32):
    """Return the stored tensor, the stored scale, and the values that they encode."""
    stored = draw(*shape, dtype=dtype)
    scale = (1 + draw(*scale_shape, seed=1).abs()).to(scale_dtype)
    return stored, scale, stored.float() * grid(scale.float())


def in_file(io):
    def write(folder, tensors):
        save_file(tensors, folder / "m.safetensors")
        return open_checkpoint(folder / "m.safetensors", io=io)

    return write


def in_torch_file(folder, tensors):
    torch.save(tensors, folder / "m.pt")
    return open_checkpoint(folder / "m.pt")


def in_shards(folder, tensors):
    """Put the scale into another shard than its tensor, and ahead of it."""
    shards = {f"{order}.safetensors": {name: tensors[name]} for order, name in enumerate(reversed(tensors))}
    return open_checkpoint(write_shards(folder / "hf", shards))


STORED_IN = {
    "memory": lambda folder, tensors: open_checkpoint(tensors),
    "torch file": in_torch_file,
    "mmap": in_file("mmap"),
    "pread": in_file("pread"),
    "shards": in_shards,
}


@pytest.mark.parametrize("store", STORED_IN.values(), ids=STORED_IN)
@pytest.mark.parametrize("case", SCALES.values(), ids=SCALES)
def test_scaled_values_and_every_part_of_them(tmp_path, case, store):
    stored, scale, values = draw_scaled(*case)
    checkpoint = store(tmp_path, {"w": stored, "w_scale": scale})
    assert list(checkpoint.tensors) == ["w"]  # The scale is not listed as a weight.
    tensor = checkpoint.tensors["w"]
    assert (tensor.dtype, tensor.read_dtype, tensor.nbytes) == (torch.float8_e4m3fn, torch.float32, 4 * values.numel())
    assert_same(checkpoint.read("w"), values)
    # Bounds within rows, at their ends and across them.
    bounds = sorted({min(bound, tensor.count) for bound in (0, 1, 5, 10, 23, tensor.count // 2, tensor.count)})
    for start, stop in itertools.combinations(bounds, 2):
        assert_same(checkpoint.read_range("w", start, stop), values.reshape(-1)[start:stop])
    if len(tensor.shape) == 2 and tensor.count:
        bounds = sorted({0, 1, tensor.shape[1] // 2 + 1, tensor.shape[1]})
        for start, stop in itertools.combinations(bounds, 2):
            assert_same(checkpoint.read_columns("w", start, stop), values[:, start:stop])


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["w_scale", "w_scale_inv"])
def test_names_and_dtypes_of_scales(name, dtype, scale_dtype):
    stored, scale, values = draw_scaled((6, 10), (6, 1), as_it_is, dtype, scale_dtype)
    checkpoint = open_checkpoint({"w": stored, name: scale})
    assert list(checkpoint.tensors) == ["w"]
    assert_same(checkpoint.read("w"), values)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_without_a_scale_the_stored_values_count(dtype):
    every_byte = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(16, 16)
    # Tensors of half precision have no scale.
    half = draw(2, dtype=torch.float16)
    checkpoint = open_checkpoint({"w": every_byte, "half": half, "half_scale": draw(1)})
    assert list(checkpoint.tensors) == ["w", "half", "half_scale"]
    expected = every_byte.float() if dtype in WIDENED else every_byte
    assert_same(checkpoint.read("w"), expected)
    assert_same(checkpoint.read_columns("w", 3, 5), expected[:, 3:5])
    assert_same(checkpoint.read("half"), half)


BAD_SCALES = {
    "list of a wrong length": ((6, 10), (4,)),
    "too many rows": ((6, 10), (7, 1)),
    "swapped": ((6, 10), (10, 6)),
    "empty": ((6, 10), (0,)),
    "three axes": ((6, 10), (6, 1, 1)),
    "too many blocks": ((200, 300), (3, 3)),
}


@pytest.mark.parametrize("store", [STORED_IN["mmap"], in_shards], ids=["file", "shards"])
@pytest.mark.parametrize(("shape", "scale_shape"), BAD_SCALES.values(), ids=BAD_SCALES)
def test_scale_that_does_not_fit(tmp_path, shape, scale_shape, store):
    stored, scale, _ = draw_scaled(shape, scale_shape, lambda scale: 1)
    with pytest.raises(CheckpointError, match=r"'w_scale': a scale of shape .* does not fit") as caught:
        store(tmp_path, {"w": stored, "w_scale": scale})
    assert f"a tensor of shape {shape}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_scales_of_a_convolution_are_refused():
    with pytest.raises(CheckpointError, match="zoo/a: 'w_scale': a scale of a 4-D tensor must be one number"):
        open_checkpoint({"w": draw(4, 3, 2, 2, dtype=torch.float8_e5m2), "w_scale": draw(4)}, "zoo/a")


@pytest.mark.parametrize("store", [STORED_IN["memory"], in_shards], ids=["memory", "shards"])
def test_integer_scale_is_refused_and_not_ignored(tmp_path, store):
    # MX formats keep the exponents as bytes.
    with pytest.raises(CheckpointError, match="the scale 'w_scale' holds integers"):
        store(tmp_path, {"w": draw(6, 10, dtype=torch.float8_e4m3fn), "w_scale": torch.ones(6, 1, dtype=torch.uint8)})
