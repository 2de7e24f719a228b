"""Numbers and names that C++ and CUDA share with Python are equal on both sides."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

import mergekern
from mergekern.checkpoints import checkpoint, dtypes, open_checkpoint, stream
from mergekern.kernels import native
from mergekern.kernels.combine import CONSENSUS, Consensus
from mergekern.merging import arguments

CSRC = Path(__file__).parents[2] / "csrc"
STUB = Path(mergekern.__file__).with_name("_native.pyi")
# Enumerations that Python never sees.
INTERNAL = {"Shape"}
# The dtypes that a reader returns. Some storage dtypes are widened when they are read.
READ_DTYPES = {checkpoint.StoredTensor("", (), dtype, None).read_dtype for dtype in dtypes.FLOAT_DTYPES}

needs_extension = pytest.mark.skipif(native.extension is None, reason="the extension was not built")


def text_of(*patterns):
    found = [path for pattern in patterns for path in sorted(CSRC.glob(pattern))]
    text = "\n".join(path.read_text("utf-8") for path in found)
    return re.sub(r"//[^\n]*", "", text)


def enumerations(text):
    """Return {name: {member: value}} of every `enum class` in C++ text."""
    found = {}
    for name, body in re.findall(r"enum\s+class\s+(\w+)[^{;]*\{([^}]*)\}", text):
        members, value = {}, -1
        for member in filter(None, map(str.strip, body.split(","))):
            key, _, given = map(str.strip, member.partition("="))
            value = int(given) if given else value + 1
            members[key] = value
        found[name] = members
    return found


def constants(text):
    """Return the integer constants that C++ text declares at the top level, by name."""
    found = {}
    for line in re.findall(r"^constexpr (?:int|unsigned|std::size_t) ([^;]+);", text, re.MULTILINE):
        for name, value in re.findall(r"(k\w+) = ([^,]+)", line):
            found[name] = eval(value.rstrip("uUlL"), {}, found)
    return found


ENUMS = enumerations(text_of("cpu/*.hpp", "cpu/*.cpp", "cuda/*.cu*"))


def test_every_enumeration_is_compared_or_internal():
    assert {"DType", "Consensus", "InstructionSet", *INTERNAL} == set(ENUMS)


def test_codes_of_dtypes():
    assert {str(dtype).removeprefix("torch."): code for dtype, code in native._DTYPE_CODES.items()} == ENUMS["DType"]


def test_every_dtype_that_checkpoints_give_has_a_code():
    assert set(native._DTYPE_CODES) == READ_DTYPES


@needs_extension
@pytest.mark.parametrize("dtype", sorted(READ_DTYPES, key=str), ids=str)
def test_the_extension_decodes_every_dtype_that_checkpoints_give(dtype):
    stored = torch.arange(256, dtype=torch.uint8).repeat(dtype.itemsize, 1).T.contiguous().view(dtype).view(1, -1)
    out = np.empty(tuple(stored.shape))
    native.difference(torch.zeros_like(stored), stored, out)
    assert np.array_equal(out, stored.double().numpy(), equal_nan=True)  # infinities and NaN as well
    assert np.count_nonzero(out) > 200


@needs_extension
def test_the_extension_refuses_a_code_without_a_dtype():
    values, sums = np.zeros(4), np.zeros((1, 1))
    # Red after a change in csrc/cpu, the extension is an old one: any make target builds it anew.
    with pytest.raises(ValueError, match=f"unknown dtype code {len(ENUMS['DType'])}"):
        native.extension.add_gram((0, 0), [(values.ctypes.data, len(ENUMS["DType"]))], 4, 0, 1, sums)


def test_dtypes_of_files_are_read_or_refused(tmp_path):
    for name, dtype in (dtypes.FLOAT_NAMES | dtypes.COMPLEX_NAMES).items():
        path = tmp_path / f"{name}.safetensors"
        header = b'{"w":{"dtype":"%s","shape":[1],"data_offsets":[0,%d]}}' % (name.encode(), dtype.itemsize)
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(dtype.itemsize))
        if dtype in dtypes.FLOAT_DTYPES:
            assert open_checkpoint(path).tensors["w"].dtype == dtype
        else:
            with pytest.raises(mergekern.CheckpointError, match="w"):
                open_checkpoint(path)


def test_dtypes_that_are_written_are_those_that_are_read():
    names = dtypes.FLOAT_NAMES | dtypes.INTEGER_NAMES | dtypes.COMPLEX_NAMES
    assert all(names[name] == dtype for dtype, name in dtypes.WRITTEN_NAMES.items())
    assert {*arguments.DTYPES.values(), *dtypes.INTEGER_NAMES.values(), *dtypes.COMPLEX_NAMES.values()} == set(
        dtypes.WRITTEN_NAMES
    )
    assert all(str(dtype) == f"torch.{name}" for name, dtype in arguments.DTYPES.items())


@pytest.mark.parametrize("table", ["LOADED", "STORAGE"])
@pytest.mark.parametrize("other", [None, *sorted(READ_DTYPES, key=str)], ids=str)
@pytest.mark.parametrize("dtype", sorted(READ_DTYPES, key=str), ids=str)
def test_a_device_gets_every_dtype_as_one_that_its_kernels_load(dtype, other, table):
    device_inputs = pytest.importorskip("mergekern.kernels.device_inputs", exc_type=ImportError)
    supported = getattr(device_inputs, table)
    given = [torch.tensor([0.375, -96.0]).to(each) for each in (dtype, other) if each is not None]
    found = device_inputs.in_one_dtype(given, supported)
    assert len({tensor.dtype for tensor in found}) == 1
    assert found[0].dtype in supported
    assert [tensor.tolist() for tensor in found] == [tensor.tolist() for tensor in given]


def test_dtypes_that_triton_loads_are_named_alike():
    device_inputs = pytest.importorskip("mergekern.kernels.device_inputs", exc_type=ImportError)
    short = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    for dtype, loaded in device_inputs.LOADED.items():
        assert loaded.name == short[str(dtype).removeprefix("torch.")]
    assert set(device_inputs.STORAGE) <= set(device_inputs.LOADED)


def test_storage_codes_of_trim_on_cuda():
    """A kernel that does not know a code counts nothing and raises nothing, so the codes are compared here."""
    device_inputs = pytest.importorskip("mergekern.kernels.device_inputs", exc_type=ImportError)
    branches = re.findall(r"if \(storage == (\d+)\) count<(\w+)>", text_of("cuda/trim.cu"))
    expected = enumerate(str(dtype).removeprefix("torch.") for dtype in device_inputs.LOADED)
    assert [(int(code), name.lower()) for code, name in branches] == list(expected)


def test_constants_of_the_cuda_sources():
    spectrum = pytest.importorskip("mergekern.kernels.spectrum.device_tridiagonal", exc_type=ImportError)
    trim = pytest.importorskip("mergekern.kernels.trim.on_cuda", exc_type=ImportError)
    known = constants(text_of("cuda/*.cu*"))
    shared = {
        "kBand": spectrum.BAND, "kColumn": spectrum.COLUMN, "kWarp": spectrum.WARP, "kFewThreads": spectrum.FEW_THREADS,
        "kThreads": spectrum.THREADS, "kManyThreads": spectrum.MANY_THREADS, "kMostThreads": spectrum.MOST_THREADS,
        "kMostSweeps": spectrum.CHASE_WARPS, "kBins": trim.BINS, "kDigit": max(width for _, width in trim.DIGITS),
    }  # fmt: skip
    assert {name: known.get(name) for name in shared} == shared
    assert trim.THREADS == spectrum.THREADS


def test_segments_of_the_extension_are_those_of_the_stream():
    """Ranges with other ends would change the last bits."""
    for name in ("cpu/task_vector.hpp", "cpu/merge.cpp"):
        assert constants(text_of(name))["kSegment"] == stream.SEGMENT
    assert native.extension is None or native.extension.SEGMENT == stream.SEGMENT


def test_codes_of_consensus():
    assert {name: code for code, name in enumerate(CONSENSUS)} == ENUMS["Consensus"]
    assert typing.get_args(Consensus) == CONSENSUS


def test_the_triton_kernel_knows_every_consensus():
    """A rule that the kernel does not name takes its last branch, the sum."""
    source = Path(mergekern.__file__).parent.joinpath("kernels", "combine", "on_triton.py").read_text("utf-8")
    assert {*re.findall(r'CONSENSUS == "(\w+)"', source), "sum"} == set(CONSENSUS)


def test_every_instruction_set_has_a_name():
    text, names = text_of("cpu/instruction_set.cpp"), list(ENUMS["InstructionSet"])
    first, *others = names
    assert sorted(re.findall(r'case InstructionSet::(\w+): return "(\w+)"', text)) == [(n, n) for n in sorted(others)]
    assert f'default: return "{first}"' in text
    allowed = re.findall(r'strcmp\(limit, "(\w+)"\)\) return InstructionSet::(\w+)', text)
    assert allowed == [(name, name) for name in names[:-1]]
    assert f"return InstructionSet::{names[-1]};" in text.split("allowed()")[1]


@needs_extension
def test_instruction_sets_by_their_names():
    """The environment variable can name each set, and the extension reports the set that it uses."""
    names = list(ENUMS["InstructionSet"])
    assert list(ENUMS["InstructionSet"].values()) == list(range(len(names)))
    path = native.extension.__file__
    code = (
        "from importlib.util import module_from_spec, spec_from_file_location as found\n"
        f"module = module_from_spec(spec := found('mergekern._native', {path!r}))\n"
        "spec.loader.exec_module(module)\n"
        "print(module.instruction_set())"
    )

    def reported(name):
        run = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"MERGEKERN_INSTRUCTION_SET": name},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return run.stdout.strip()

    best = names.index(reported(names[-1]))
    assert [reported(name) for name in names] == [names[min(index, best)] for index in range(len(names))]


def signatures_of_stub():
    functions, values = {}, set()
    for node in ast.parse(STUB.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = signature(node)
        elif isinstance(node, ast.AnnAssign):
            values.add(node.target.id)
    return functions, values


def signature(node):
    """Return the names of the parameters, the number of defaults, and whether anything is returned."""
    arguments = node.args
    assert (arguments.vararg, arguments.kwarg, arguments.kwonlyargs) == (None, None, []), node.name
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    return names, len(arguments.defaults), ast.unparse(node.returns) != "None"


@needs_extension
def test_the_stub_is_what_was_compiled():
    functions, values = {}, set()
    for name, value in vars(native.extension).items():
        if name.startswith("__"):
            continue
        if callable(value):
            (node,) = ast.parse(f"def {value.__doc__.splitlines()[0]}: ...").body
            functions[name] = signature(node)
        else:
            values.add(name)
    assert signatures_of_stub() == (functions, values)


def test_the_stub_is_what_the_bindings_define():
    """The check also runs where the extension is not compiled."""
    text = text_of("cpu/bindings.cpp")
    functions, values = signatures_of_stub()
    definitions = re.findall(r'module\.def\("(\w+)"(.*?)\);', text, re.DOTALL)
    assert {name: re.findall(r'py::arg\("(\w+)"\)', rest) for name, rest in definitions} == {
        name: names for name, (names, _, _) in functions.items()
    }
    assert set(re.findall(r'module\.attr\("(\w+)"\)', text)) == values


def test_the_extension_is_of_this_tree():
    """If another checkout had built the extension, the comparisons above would prove nothing."""
    found = importlib.util.find_spec("mergekern._native")
    assert found is None or Path(found.origin).parent == Path(mergekern.__file__).parent
