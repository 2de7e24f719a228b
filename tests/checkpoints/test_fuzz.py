"""Hostile files: whatever the bytes, a checkpoint opens and reads as declared, or a MergekernError says why not."""

import io
import json
import resource
import zipfile
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mergekern.checkpoints import LayerStream, open_zoo
from mergekern.errors import MergekernError
from tests.support.checkpoint_files import draw, entry, write_safetensors

FUZZ = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
# Bytes by which the peak memory of the process may grow while it opens files of some hundred bytes.
MAX_GROWTH = 200 << 20

TENSORS = {
    "w": draw(3, 4),
    "half": draw(5, dtype=torch.float16),
    "float8": draw(2, 3, dtype=torch.float8_e4m3fn),
    "float8_scale": draw(2, 1),
    "ids": torch.arange(3),
}
SAFETENSORS = save(TENSORS, metadata={"format": "pt"})
HEADER_END = 8 + int.from_bytes(SAFETENSORS[:8], "little")


def torch_file(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


TORCH_FILE = torch_file({**TENSORS, "transposed": TENSORS["w"].t()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def opens_or_refuses(path):
    """Read a checkpoint as the base and both models of a zoo. Return {name: shape}, or None if it is refused."""
    before = peak_memory()
    mapped, read = (shapes_as_read(path, how) for how in ("mmap", "pread"))
    assert mapped == read
    assert peak_memory() - before < MAX_GROWTH
    return mapped


def shapes_as_read(path, how):
    try:
        zoo = open_zoo({"a": path, "b": path}, path, io=how)
        tensors = zoo.base.tensors
        for name, tensor in tensors.items():
            assert zoo.base.read(name).shape == tensor.shape
        for layer in LayerStream(zoo, 100):
            assert sum(len(base) for base, _ in layer.blocks()) == tensors[layer.tensor.name].count
        return {name: tensor.shape for name, tensor in tensors.items()}
    except MergekernError:
        return None


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@st.composite
def mutated(draw, content, end=None):
    """Flip, remove and insert bytes before `end`, and cut off the tail in some draws."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(end or len(content), max(len(content) - 1, 0))))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "insert", "end"]))
        if kind == "flip":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 30))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=20))
        else:
            del content[at:]
    return bytes(content)


SIZES: st.SearchStrategy = st.one_of(
    st.integers(0, 5),
    st.sampled_from([-1, 1 << 31, (1 << 62) + 1, 1 << 63, 1 << 64, 1 << 70, 1.0, 1e300, "4", None, True, [2], {}]),
)
DTYPES = st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "U8", "BOOL", "I64", "C64", "F4", "F8_E8M0", "X", 7])


@st.composite
def declared(draw, begin):
    """Draw the header entry of a tensor whose data begin at `begin`. In some draws one field is wrong."""
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
    dtype = draw(st.sampled_from(list(sizes)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    end = begin + sizes[dtype] * torch.Size(shape).numel()
    good = entry(dtype, shape, begin, end)
    wrong = {
        "dtype": DTYPES,
        "shape": st.lists(SIZES, max_size=4) | SIZES,
        "data_offsets": st.lists(SIZES, max_size=3) | SIZES,
    }
    field = draw(st.sampled_from([None, None, None, *wrong, "none", "more"]))
    if field in wrong:
        good[field] = draw(wrong[field])
    elif field == "none":
        del good[draw(st.sampled_from(sorted(good)))]
    elif field == "more":
        good[draw(st.text(max_size=3))] = draw(JSON)
    return good, end


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["w", "w_scale", "w_scale_inv", "x.qweight", "", "\0", "../w", "é"]) | st.text(max_size=4)
METADATA = st.none() | JSON | st.dictionaries(NAMES, NAMES, max_size=3)


@st.composite
def safetensors_files(draw):
    """Draw the header and the data of a file that is valid or nearly valid."""
    header, end = {}, 0
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        header[name], end = draw(declared(end))
    if draw(st.booleans()):
        header["__metadata__"] = draw(METADATA)
    return header, draw(st.sampled_from([end, end, end, 0, end + 1]))


# --- safetensors


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes_as_safetensors(folder, content):
    path = folder / "any.safetensors"
    path.write_bytes(content)
    opens_or_refuses(path)


@FUZZ
@given(content=mutated(SAFETENSORS, HEADER_END))
@example(content=SAFETENSORS)
def test_mutated_safetensors(folder, content):
    path = folder / "mutated.safetensors"
    path.write_bytes(content)
    shapes = opens_or_refuses(path)
    if content == SAFETENSORS:
        assert shapes == {name: TENSORS[name].shape for name in ("w", "half", "float8")}


def test_hostile_headers(folder):
    path, outcomes = folder / "hostile.safetensors", Counter()

    @FUZZ
    @given(file=safetensors_files())
    @example(file=({"w": entry("F32", [0, 1 << 63], 0, 0)}, 0))
    @example(file=({"__metadata__": None, "w": entry("F32", [], 0, 4)}, 4))
    def fuzz(file):
        header, data = file
        write_safetensors(path, header, bytes(data))
        shapes = opens_or_refuses(path)
        outcomes[shapes is None] += 1
        for name, shape in (shapes or {}).items():
            if name in header:
                assert list(shape) == header[name]["shape"]

    fuzz()
    # Many files were opened, and many were refused.
    assert min(outcomes[True], outcomes[False]) > 10


# --- torch files


@FUZZ
@given(content=st.binary(max_size=200) | st.binary(max_size=200).map(b"PK\3\4".__add__))
def test_any_bytes_as_torch_file(folder, content):
    path = folder / "any.pt"
    path.write_bytes(content)
    opens_or_refuses(path)


@FUZZ
@given(content=mutated(TORCH_FILE))
@example(content=TORCH_FILE)
def test_mutated_torch_file(folder, content):
    path = folder / "mutated.pt"
    path.write_bytes(content)
    shapes = opens_or_refuses(path)
    if content == TORCH_FILE:
        assert shapes == {"w": (3, 4), "half": (5,), "float8": (2, 3), "transposed": (4, 3)}


with zipfile.ZipFile(io.BytesIO(TORCH_FILE)) as archive:
    MEMBERS = {name: archive.read(name) for name in archive.namelist()}
PICKLE = next(name for name in MEMBERS if name.endswith("data.pkl"))


@FUZZ
@given(
    pickle=mutated(MEMBERS[PICKLE]),
    left_out=st.none() | st.sampled_from(sorted(MEMBERS)),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_torch_file_with_a_mutated_pickle(folder, pickle, left_out, compression):
    # The archive is a valid zip file, so that the reader meets everything that the pickle declares.
    path = folder / "pickle.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, member in {**MEMBERS, PICKLE: pickle}.items():
            if name != left_out:
                archive.writestr(name, member)
    opens_or_refuses(path)


# --- shard indices

NO_SHARDS = ["none", "hf", "..", ".", "", "/", "~", "a/b", "good.safetensors/", "x" * 300, "\0", "\ud800"]
SHARDS = st.sampled_from(["good.safetensors", "bad.safetensors", "model.safetensors.index.json", *NO_SHARDS])
WEIGHT_MAPS = st.dictionaries(st.sampled_from(sorted(TENSORS)) | NAMES, SHARDS, min_size=1, max_size=3)
INDICES = JSON | st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=2), JSON, max_size=2) | JSON})


@FUZZ
@given(index=INDICES | WEIGHT_MAPS.map(lambda weight_map: {"weight_map": weight_map}))
@example(index={"weight_map": dict.fromkeys(TENSORS, "good.safetensors")})
def test_any_json_as_index(folder, index):
    index_file = folder / "hf" / "model.safetensors.index.json"
    index_file.parent.mkdir(exist_ok=True)
    (index_file.parent / "good.safetensors").write_bytes(SAFETENSORS)
    (index_file.parent / "bad.safetensors").write_bytes(SAFETENSORS[:-1])
    index_file.write_text(json.dumps(index))
    shapes = opens_or_refuses(index_file.parent)
    if shapes is not None:
        assert set(index["weight_map"].values()) == {"good.safetensors"}
        assert index["weight_map"].keys() <= TENSORS.keys()


@FUZZ
@given(text=st.binary(max_size=50) | st.sampled_from([b"[" * 9999, b'{"weight_map":' * 9999, b"9" * 9999]))
def test_any_bytes_as_index(folder, text):
    index_file = folder / "text" / "model.safetensors.index.json"
    index_file.parent.mkdir(exist_ok=True)
    index_file.write_bytes(text)
    assert opens_or_refuses(index_file.parent) is None
