import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from mergekern.checkpoints import open_checkpoint
from mergekern.errors import CheckpointError
from tests.support.checkpoint_files import assert_same, draw, entry, write_safetensors, write_shards

IO = ("mmap", "pread")
STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class Tied(torch.nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5)
        self.head.weight = self.embed.weight


def assert_tied(checkpoint, tensor, *names):
    assert len({checkpoint.tensors[name].storage for name in names}) == 1
    for name in names:
        assert_same(checkpoint.read(name), tensor)


# --- safetensors


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_every_stored_dtype_is_read_bit_for_bit(tmp_path, dtype, io):
    tensor = draw(7, 5, dtype=dtype)
    tensor.view(-1)[:4] = torch.tensor([float("nan"), -0.0, 0.0, -1.5]).to(dtype)
    save_file({"w": tensor, "before": draw(3), "after": draw(2)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert checkpoint.tensors["w"].dtype == dtype
    assert_same(checkpoint.read("w"), tensor)
    assert_same(checkpoint.read_range("w", 3, 31), tensor.view(-1)[3:31])
    assert_same(checkpoint.read_columns("w", 1, 4), tensor[:, 1:4])


@pytest.mark.parametrize("io", IO)
def test_tensors_come_in_file_order(tmp_path, io):
    values = draw(6)
    header = {"late": entry("F32", [2], 16, 24), "early": entry("F32", [1], 0, 4), "middle": entry("F32", [3], 4, 16)}
    write_safetensors(tmp_path / "m.safetensors", header, values.numpy().tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert list(checkpoint.tensors) == ["early", "middle", "late"]
    for name, part in (("early", values[:1]), ("middle", values[1:4]), ("late", values[4:])):
        assert_same(checkpoint.read(name), part)


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_unaligned_data(tmp_path, io, padding):
    single, double = draw(3, 4), draw(2, dtype=torch.float64)
    header = {"flag": entry("U8", [1], 0, 1), "w": entry("F32", [3, 4], 1, 49), "d": entry("F64", [2], 49, 65)}
    text = json.dumps(header).encode() + b" " * padding
    write_safetensors(tmp_path / "m.safetensors", text, b"\7" + single.numpy().tobytes() + double.numpy().tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert_same(checkpoint.read("w"), single)
    assert_same(checkpoint.read("d"), double)
    assert_same(checkpoint.read_range("w", 5, 9), single.view(-1)[5:9])
    assert_same(checkpoint.read_columns("w", 2, 4), single[:, 2:4])


@pytest.mark.parametrize("io", IO)
def test_scalars_and_empty_tensors(tmp_path, io):
    # The odd byte puts the empty tensors where no float could begin.
    header = {
        "flag": entry("U8", [1], 0, 1),
        "empty": entry("F32", [0, 3], 1, 1),
        "hollow": entry("F32", [0, 1 << 62], 1, 1),
        "scalar": entry("F32", [], 1, 5),
    }
    write_safetensors(tmp_path / "m.safetensors", header, b"\0" + np.float32(2.5).tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert_same(checkpoint.read("scalar"), torch.tensor(2.5))
    assert_same(checkpoint.read("empty"), torch.empty(0, 3))
    assert checkpoint.read("hollow").shape == (0, 1 << 62)


def test_sizes_that_no_tensor_can_have_are_refused(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": entry("F32", [0, 1 << 63], 0, 0)})
    with pytest.raises(CheckpointError, match=r"m\.safetensors: tensor 'w' has the impossible shape \(0, 9223372036"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_integers_and_booleans_are_buffers(tmp_path):
    kinds = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
    tensors = {kind: torch.ones(3).to(getattr(torch, kind)) for kind in kinds}
    save_file({**tensors, "w": draw(2)}, tmp_path / "m.safetensors")
    for source in (tmp_path / "m.safetensors", {**tensors, "w": draw(2)}):
        checkpoint = open_checkpoint(source)
        assert list(checkpoint.tensors) == ["w"]
        assert sorted(checkpoint.buffers) == sorted(kinds)


def test_buffers_are_read_as_they_are(tmp_path):
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)
    buffers = {f"b{i}": torch.tensor([[0, 1], [2, 7]]).to(dtype) for i, dtype in enumerate(kinds)}
    buffers["scalar"] = torch.tensor(5)
    tensors = {"w": draw(3), **buffers}
    shards = {
        "a.safetensors": {"w": draw(3), "b0": buffers["b0"]},
        "b.safetensors": {k: buffers[k] for k in ("b1", "b5")},
    }
    save_file(tensors, tmp_path / "one.safetensors")
    torch.save(tensors, tmp_path / "one.pt")
    sources = [tensors, tmp_path / "one.pt", tmp_path / "one.safetensors"]
    opened = [open_checkpoint(source, io=io) for source in sources for io in ("mmap", "pread")]
    for checkpoint in (*opened, open_checkpoint(write_shards(tmp_path / "shards", shards))):
        assert set(checkpoint.buffers) <= set(buffers)
        for name in checkpoint.buffers:
            assert_same(checkpoint.read_buffer(name), buffers[name])
    assert len(checkpoint.buffers) == 3


@pytest.mark.parametrize("io", IO)
def test_aliases_that_save_model_declares(tmp_path, io):
    module = Tied()
    safetensors.torch.save_model(module, str(tmp_path / "m.safetensors"))
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert len(file.keys()) == 2  # The file itself holds the shared weight once.
    checkpoint = open_checkpoint(tmp_path / "m.safetensors", io=io)
    assert set(checkpoint.tensors) == {"embed.weight", "head.weight", "head.bias"}
    assert_tied(checkpoint, module.embed.weight.detach(), "embed.weight", "head.weight")
    assert_same(checkpoint.read("head.bias"), module.head.bias.detach())


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"w": "w"}], ids=str)
def test_other_metadata_is_no_alias(tmp_path, metadata):
    header = {"__metadata__": metadata, "w": entry("F32", [1], 0, 4)}
    write_safetensors(tmp_path / "m.safetensors", header, np.float32(3).tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert list(checkpoint.tensors) == ["w"]
    assert_same(checkpoint.read("w"), torch.tensor([3.0]))


def test_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": draw(64)}, path)
    checkpoint = open_checkpoint(path, io="pread")
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(CheckpointError, match=rf"m\.safetensors: the file ended at byte {path.stat().st_size}"):
        checkpoint.read("w")


@pytest.mark.parametrize(("dtype", "size"), [("C64", 16), ("F8_E8M0", 2), ("F4", 1)])
def test_dtypes_that_are_not_supported(tmp_path, dtype, size):
    write_safetensors(tmp_path / "m.safetensors", {"w": entry(dtype, [2], 0, size)}, bytes(size))
    with pytest.raises(CheckpointError, match=r"m\.safetensors: tensor 'w' (is complex|has dtype F)"):
        open_checkpoint(tmp_path / "m.safetensors")


# --- Hugging Face folders


@pytest.mark.parametrize("io", IO)
def test_folder_with_one_file(tmp_path, io):
    save_file({"w": draw(3, 2)}, tmp_path / "model.safetensors")
    torch.save({"w": draw(3, 2, seed=1)}, tmp_path / "pytorch_model.bin")  # safetensors goes first
    checkpoint = open_checkpoint(tmp_path, io=io)
    assert checkpoint.name == tmp_path.name
    assert_same(checkpoint.read("w"), draw(3, 2))


@pytest.mark.parametrize("io", IO)
def test_shards_are_those_of_the_index(tmp_path, io):
    first, second = {"w": draw(3, 2), "ids": torch.arange(4)}, {"v": draw(5, seed=1)}
    shards = {"model-1.safetensors": first, "model-2.safetensors": second}
    folder = write_shards(tmp_path / "hf", shards)
    # A shard left over from something else; opening it would raise.
    (folder / "model-3.safetensors").write_bytes(b"not to be read")
    checkpoint = open_checkpoint(folder, io=io)
    assert list(checkpoint.tensors) == ["w", "v"]
    assert checkpoint.buffers == ["ids"]
    assert_same(checkpoint.read("w"), first["w"])
    assert_same(checkpoint.read_range("w", 1, 5), first["w"].view(-1)[1:5])
    assert_same(checkpoint.read_columns("w", 1, 2), first["w"][:, 1:2])
    assert_same(checkpoint.read("v"), second["v"])


@pytest.mark.parametrize("home", ["model-1.safetensors", "model-2.safetensors"])
def test_the_index_decides_between_two_copies(tmp_path, home):
    shards = {f"model-{i}.safetensors": {"w": draw(4, seed=i), f"own_{i}": draw(1)} for i in (1, 2)}
    checkpoint = open_checkpoint(write_shards(tmp_path / "hf", shards, w=home))
    assert_same(checkpoint.read("w"), shards[home]["w"])


def test_tied_weights_in_shards(tmp_path):
    module = Tied()
    folder = write_shards(tmp_path / "hf", {"model-1.safetensors": {"head.bias": module.head.bias.detach()}})
    embed = torch.nn.ModuleDict({"embed": module.embed, "head": torch.nn.Linear(3, 5, bias=False)})
    embed["head"].weight = module.embed.weight
    safetensors.torch.save_model(embed, str(folder / "model-2.safetensors"))
    index = {"head.bias": "model-1.safetensors", "embed.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    checkpoint = open_checkpoint(folder)
    assert_tied(checkpoint, module.embed.weight.detach(), "embed.weight", "head.weight")


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
def test_pytorch_model_bin(tmp_path, sharded):
    tensors = {"w": draw(3, 2), "v": draw(4, seed=1)}
    folder = tmp_path / "hf"
    if sharded:
        shards = {f"pytorch_model-{name}.bin": {name: tensor} for name, tensor in tensors.items()}
        write_shards(folder, shards, torch.save, "pytorch_model.bin.index.json")
    else:
        folder.mkdir()
        torch.save(tensors, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert_same(checkpoint.read(name), tensor)


BAD_INDICES = {
    "missing shard": ({"x": "model-9.safetensors"}, r"model-9\.safetensors: no such file"),
    "missing tensor": ({"x": "model-1.safetensors"}, r"lists \['x'\], which its shards do not hold"),
    "tensor of another shard": ({"w": "model-2.safetensors"}, r"lists \['w'\], which its shards do not hold"),
    "path traversal": ({"x": "../outside.safetensors"}, "shard names must be plain file names"),
    "absolute path": ({"x": "/model.safetensors"}, "shard names must be plain file names"),
    "parent folder": ({"x": ".."}, r"\.\.: no such file"),
    "itself": ({"x": ""}, "no such file"),
    "a folder": ({"x": "inner"}, "inner: no such file"),
    "the index": ({"x": "model.safetensors.index.json"}, r"index\.json: unknown suffix"),
    "too long": ({"x": "x" * 300}, "cannot be read .*File name too long"),
    "not a name": ({"x": 3}, "not a usable shard index"),
    "not hashable": ({"x": []}, "not a usable shard index"),
}


@pytest.mark.parametrize(("more", "says"), BAD_INDICES.values(), ids=BAD_INDICES)
def test_bad_index(tmp_path, more, says):
    shards = {"model-1.safetensors": {"w": draw(2)}, "model-2.safetensors": {"v": draw(2)}}
    folder = write_shards(tmp_path / "hf", shards, **more)
    # What such an index reaches for is there and would be served.
    (folder / "inner").mkdir()
    for file in (tmp_path / "outside.safetensors", tmp_path / "model.safetensors", folder / "inner/model.safetensors"):
        save_file({"x": draw(1)}, file)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": null}', "{}", "[" * 100_000])
def test_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: not a usable shard index"):
        open_checkpoint(tmp_path)


# --- torch files


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "state_dict"])
def test_torch_file(tmp_path, suffix, wrapped):
    tensors = {"w": draw(3, 2), "half": draw(4, dtype=torch.float16), "steps": torch.tensor(7)}
    torch.save({"state_dict": tensors, "epoch": 3} if wrapped else tensors, tmp_path / f"m{suffix}")
    checkpoint = open_checkpoint(tmp_path / f"m{suffix}")
    assert checkpoint.name == "m"
    assert list(checkpoint.tensors) == ["w", "half"]
    assert checkpoint.buffers == ["steps"]
    assert_same(checkpoint.read("w"), tensors["w"])
    assert_same(checkpoint.read_columns("w", 0, 1), tensors["w"][:, :1])
    assert_same(checkpoint.read_range("half", 1, 3), tensors["half"][1:3])


def test_shared_storage_is_tied_and_shifted_views_are_not(tmp_path):
    weight = draw(6, 4)
    tensors = {"a": weight, "b": weight, "part": weight[:3], "other": weight[3:], "copy": weight.clone()}
    torch.save(tensors, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert_tied(checkpoint, weight, "a", "b")
    assert len({tensor.storage for tensor in checkpoint.tensors.values()}) == 4
    assert_same(checkpoint.read("other"), weight[3:])


def test_parts_of_an_expanded_tensor_need_no_memory_for_all_of_it(tmp_path):
    torch.save({"w": torch.tensor([5.0]).expand(1 << 40)}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert_same(checkpoint.read_range("w", 1 << 39, (1 << 39) + 3), torch.full((3,), 5.0))


# --- in memory

STRIDED = {
    "transposed": lambda t: t.transpose(0, 2),
    "every second": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1].expand(5, 4, 6),
    "columns": lambda t: t[..., 1:3],
    "vector with steps": lambda t: t[0, 0, ::2],
    "one number everywhere": lambda t: t[:1, :1, :1].expand(3, 2, 2),
    "one number of many": lambda t: t.reshape(-1)[::72],
}


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_every_range_of_a_strided_tensor(view):
    tensor = view(draw(3, 4, 6))
    checkpoint = open_checkpoint({"w": tensor})
    flat = tensor.reshape(-1)
    assert_same(checkpoint.read("w"), tensor)
    for start in range(len(flat)):
        for stop in (start, start + 1, start + 7, len(flat)):
            found = checkpoint.read_range("w", start, min(stop, len(flat)))
            assert found.stride() == (1,)
            assert_same(found, flat[start:stop])


def read_only(array):
    array.flags.writeable = False
    return array


ARRAYS = {
    "plain": lambda a: a,
    "read-only": read_only,
    "big-endian": lambda a: a.astype(">f4"),
    "negative strides": lambda a: a[::-1, ::-1],
    "every second column": lambda a: a[:, ::2],
    "transposed": lambda a: a.T,
    "one number": lambda a: a[1, 2],
    "read-only negative big-endian": lambda a: read_only(a.astype(">f4")[::-1]),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view("<f4").reshape(a.shape),
    "field of records": lambda a: np.rec.fromarrays([a, np.zeros(a.shape, np.int8)], names="w,flag").w,
    "double": lambda a: a.astype(np.float64),
    "half": lambda a: a.astype(np.float16),
}


@pytest.mark.parametrize("change", ARRAYS.values(), ids=ARRAYS)
def test_arrays(change):
    array = change(draw(4, 6).numpy().copy())
    checkpoint = open_checkpoint({"w": array})
    native = np.array(array, dtype=np.dtype(array.dtype).newbyteorder("="), order="C")
    assert_same(checkpoint.read("w"), torch.from_numpy(native))
    assert_same(checkpoint.read_range("w", 1, native.size), torch.from_numpy(native.reshape(-1)[1:]))


def test_mapped_arrays_are_not_copied_and_stay_tied(tmp_path):
    np.save(tmp_path / "w.npy", draw(4, 6).numpy())
    mapped = np.load(tmp_path / "w.npy", mmap_mode="r")
    checkpoint = open_checkpoint({"a": mapped, "b": mapped})
    assert_tied(checkpoint, draw(4, 6), "a", "b")
    assert checkpoint.read("a").data_ptr() == mapped.ctypes.data


def test_module_with_tied_weights():
    module = Tied()
    checkpoint = open_checkpoint(module)
    assert (checkpoint.name, checkpoint.source) == ("model", "Tied")
    assert_tied(checkpoint, module.embed.weight.detach(), "embed.weight", "head.weight")
    assert not checkpoint.read("head.bias").requires_grad


BAD_VALUES = {
    "mapping": ({"w": 1.0}, "inner: 'w' is a dict, not a tensor or array; for several models"),
    "number": (3, "inner: 'w' is a int, not a tensor"),
    "complex": (torch.ones(2, dtype=torch.complex64), "tensor 'w' is complex"),
    "complex array": (np.ones(2, np.complex64), "tensor 'w' is complex"),
    "text": (np.array(["a"]), "'w' has dtype <U1"),
    "objects": (np.array([None]), "'w' has dtype object"),
    "sparse": (torch.eye(3).to_sparse(), "'w' is a sparse"),
    "meta": (torch.ones(2, device="meta"), "'w' is a sparse, nested, quantised or meta tensor"),
    "nested": (torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "'w' is a sparse, nested"),
}


@pytest.mark.parametrize(("value", "says"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_that_are_no_tensors(value, says):
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint({"w": value}, "inner")


@pytest.mark.parametrize("source", [{}, torch.nn.ReLU()], ids=["mapping", "module"])
def test_nothing_in_memory(source):
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_checkpoint(source)


# --- names


def test_linked_folders_keep_their_names(tmp_path):
    # Model hubs keep a model in a folder named by a hash; what links to it has the name that was chosen.
    (tmp_path / "4f9a").mkdir()
    save_file({"w": draw(2)}, tmp_path / "4f9a" / "model.safetensors")
    (tmp_path / "mnist").symlink_to(tmp_path / "4f9a")
    assert open_checkpoint(tmp_path / "mnist").name == "mnist"
    assert open_checkpoint(tmp_path / "mnist" / ".").name == "mnist"
