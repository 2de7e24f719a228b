"""Bad input of every kind raises one clear error, and nothing is written."""

import json
import logging
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save, save_file

from mergekern import ZooStatistics, compute_all
from mergekern.checkpoints import open_checkpoint
from mergekern.cli import main
from mergekern.errors import (
    CheckpointError,
    MergekernError,
    MismatchError,
    NonFiniteError,
    OptionError,
    StatisticsError,
)
from tests.support.checkpoint_files import draw, entry, write_safetensors


def weights(seed=0, **others):
    # Files keep tensors in the order of their names, which is this one.
    return {"first": draw(12, 8, seed=seed), "middle": draw(8, seed=seed), "zlast": draw(9, 7, seed=seed), **others}


@pytest.fixture
def zoo(tmp_path):
    """A folder with a base and the models a and b, all valid."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    for seed, name in enumerate(("base", "a", "b")):
        save_file(weights(seed), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def refused(tmp_path):
    """A function that expects compute_all to raise one complete error and to write nothing."""

    def run(error, says, *arguments, **options):
        statistics = tmp_path / "statistics"
        with pytest.raises(MergekernError) as caught:
            compute_all(*arguments, statistics=statistics, **options)
        assert type(caught.value) is error
        for words in says:
            assert words in str(caught.value)
        assert not statistics.exists()

    return run


def content(folder):
    """Return the bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(table):
    return {name: table.matrix(name).tobytes() for name in table.metrics}


# --- checkpoints that do not fit together

MISFITS = {
    "missing": ({"middle": None}, ["1 tensor does not match", "middle: in 'base' but missing in 'b'"]),
    "extra": ({"more": draw(2)}, ["more: in 'b' but missing in 'base'"]),
    "shape": ({"zlast": draw(7, 9)}, ["zlast: shape (9, 7) in 'base', (7, 9) in 'b'"]),
    "rank": ({"first": draw(96)}, ["first: shape (12, 8) in 'base', (96,) in 'b'"]),
    "integers": ({"middle": torch.arange(8)}, ["middle: in 'base' but integers in 'b'"]),
    "all at once": (
        {"middle": None, "more": draw(2), "zlast": draw(7, 9)},
        ["3 tensors do not match", "missing in 'b'", "missing in 'base'", "(7, 9) in 'b'", 'on_mismatch="skip"'],
    ),
}


def misfit(changes):
    return {name: tensor for name, tensor in {**weights(2), **changes}.items() if tensor is not None}


@pytest.mark.parametrize(("changes", "says"), MISFITS.values(), ids=MISFITS)
def test_misfit(refused, changes, says):
    refused(MismatchError, says, {"a": weights(1), "b": misfit(changes)}, weights())


# --- values that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["base", "a", "b"])
@pytest.mark.parametrize("max_memory", [None, 200], ids=["held", "split"])
def test_not_finite_in_the_last_tensor(zoo, refused, tmp_path, bad, name, max_memory):
    tensors = dict(weights(3))
    tensors["zlast"][2, 3] = tensors["zlast"][8, 6] = bad
    save_file(tensors, zoo / f"{name}.safetensors")
    blocks_written = []

    def progress(_):
        blocks_written.append(len(list(tmp_path.glob("statistics/blocks/*"))))

    says = ["tensor 'zlast' holds NaN or infinite values", f": 2 in '{name}'. "]
    refused(NonFiniteError, says, zoo, progress=progress, max_memory=max_memory)
    assert blocks_written == [0, 1, 2]


def test_bad_input_leaves_earlier_statistics_as_they_were(zoo, tmp_path):
    statistics = tmp_path / "statistics"
    compute_all(zoo, statistics=statistics)
    before = content(statistics)
    # The first tensor is good and new, so its block is written, and must be removed again.
    save_file({**weights(4), "zlast": torch.full((9, 7), torch.nan)}, zoo / "b.safetensors")
    with pytest.raises(NonFiniteError, match="63 in 'b'"):
        compute_all(zoo, statistics=statistics)
    assert content(statistics) == before


# --- files that are not what they should be

WHOLE = save(weights(2))
UNREADABLE = "b.safetensors: not a readable safetensors file"


def cut_torch_file(path):
    torch.save(weights(2), path)
    path.write_bytes(path.read_bytes()[:-200])


def raw(content):
    return lambda path: path.write_bytes(content)


def header(data, **entries):
    return lambda path: write_safetensors(path, entries, bytes(data))


def saved(save, tensors):
    return lambda path: save(tensors, path)


def folder(**files):
    def write(path):
        path.mkdir()
        for name, write_file in files.items():
            write_file(path / name.replace("__", "."))

    return write


BAD_FILES = {
    "cut data": ("b.safetensors", raw(WHOLE[:-10]), [UNREADABLE, "not fully covered", "was it truncated"]),
    "cut header": ("b.safetensors", raw(WHOLE[:40]), [UNREADABLE, "was it truncated"]),
    "data added": ("b.safetensors", raw(WHOLE + b"more"), [UNREADABLE]),
    "corrupt header": ("b.safetensors", raw(WHOLE[:20] + b"\xff" + WHOLE[21:]), [UNREADABLE]),
    "endless header": ("b.safetensors", raw(struct.pack("<Q", 1 << 60) + WHOLE[8:]), [UNREADABLE, "header too large"]),
    "overlap": (
        "b.safetensors",
        header(12, t0=entry("F32", [2], 0, 8), t1=entry("F32", [2], 4, 12)),
        [UNREADABLE, "invalid offset for tensor `t1`"],
    ),
    "beyond the file": ("b.safetensors", header(8, t0=entry("F32", [4], 0, 16)), [UNREADABLE, "truncated"]),
    "size and shape differ": ("b.safetensors", header(8, t0=entry("F32", [3], 0, 8)), [UNREADABLE]),
    "empty": ("b.safetensors", raw(b""), [UNREADABLE]),
    "no tensors": ("b.safetensors", header(0), ["b.safetensors: holds no tensors"]),
    "pointer to a file": ("b.safetensors", raw(b"version https://git-lfs.github.com/spec/v1\n"), [UNREADABLE]),
    "complex": ("b.safetensors", header(8, t0=entry("C64", [1], 0, 8)), ["b.safetensors: tensor 't0' is complex"]),
    "empty torch file": ("b.pt", raw(b""), ["b.pt: not a torch zip archive", "save it again as safetensors"]),
    "cut torch file": (
        "b.pt",
        cut_torch_file,
        ["b.pt: torch.load(weights_only=True) refused it", "central directory"],
    ),
    "list in a torch file": ("b.pt", saved(torch.save, [draw(2)]), ["b.pt: holds a list, not a state dict"]),
    "nested torch file": (
        "b.pt",
        saved(torch.save, {"model": weights(2), "ema": {"averaged": weights(3)}, "epoch": 4}),
        ["b.pt: holds 2 state dicts; give the one that is meant: b.pt:model, b.pt:ema.averaged"],
    ),
    "old pickle": ("b.bin", raw(pickle.dumps({"w": 1})), ["b.bin: not a torch zip archive", "pickle"]),
    "GGUF": ("b.gguf", raw(b"GGUF\3\0\0\0"), ["b.gguf: GGUF files hold quantised weights", "made from"]),
    "unknown suffix": ("b.h5", raw(WHOLE), ["b.h5: unknown suffix", ".safetensors, .pt, .pth, .bin, .ckpt"]),
    "no suffix": ("b", raw(WHOLE), ["b: unknown suffix"]),
    "GPTQ": (
        "b.safetensors",
        saved(save_file, weights(2, **{"x.qweight": torch.ones(2, dtype=torch.int32)})),
        ["b.safetensors: 'x.qweight' shows GPTQ or AWQ quantised weights", "dequantised copy"],
    ),
    "bitsandbytes": (
        "b.safetensors",
        saved(save_file, weights(2, **{"x.weight.absmax": draw(2)})),
        ["b.safetensors: 'x.weight.absmax' shows bitsandbytes quantised weights"],
    ),
    "PEFT adapter": (
        "b",
        folder(adapter_config__json=raw(b'{"peft_type": "IA3"}'), adapter_model__safetensors=raw(WHOLE)),
        ["b: adapter_config.json says peft_type 'IA3'; of adapters only LoRA is read: merge it into its base"],
    ),
    "folder of nothing": ("b", folder(), ["b: none of model.safetensors.index.json, model.safetensors, pytorch_model"]),
    "folder of a bad file": ("b", folder(model__safetensors=raw(WHOLE[:-1])), ["b/model.safetensors: not a readable"]),
    "nowhere": ("b.safetensors", lambda path: None, ["b.safetensors: no such file or folder"]),
}


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize(("name", "write", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(tmp_path, zoo, refused, io, name, write, says):
    write(tmp_path / name)
    says = [str(tmp_path), *says]
    refused(CheckpointError, says, [zoo / "a.safetensors", tmp_path / name], zoo / "base.safetensors", io=io)
    refused(CheckpointError, says, [zoo / "a.safetensors", zoo / "b.safetensors"], tmp_path / name, io=io)


class RunsCode:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


PICKLES = {
    "torch file": ("b.pt", torch.save, lambda path: torch.load(path, weights_only=False), ["GLOBAL", "mkdir"]),
    "pickle": ("b.bin", lambda o, p: p.write_bytes(pickle.dumps(o)), lambda p: pickle.loads(p.read_bytes()), ["not a"]),
}


@pytest.mark.parametrize(("name", "write", "trust", "says"), PICKLES.values(), ids=PICKLES)
def test_code_in_pickles_is_not_run(tmp_path, zoo, refused, name, write, trust, says):
    marker = tmp_path / "marker"
    write({**weights(2), "code": RunsCode(marker)}, tmp_path / name)
    trust(tmp_path / name)
    assert marker.exists()  # A loader that trusts the file does run the code.
    marker.rmdir()
    models = [zoo / "a.safetensors", tmp_path / name]
    refused(CheckpointError, [name, *says, "where you trust it"], models, zoo / "base.safetensors")
    assert not marker.exists()


def test_refusal_of_a_pickle_names_its_class_and_does_not_advise_to_run_it(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: .*GLOBAL torch\.nn\.modules\.linear\.Linear") as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert "weights_only` set to `False`" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


# --- arguments

TWO = {"a": weights(1), "b": weights(2)}
NAMES = "'exclude' or 'include', not 'perhaps'"
BAD_ARGUMENTS = {
    "one model": (dict(checkpoints={"a": weights(1)}), ["1 model found", "at least two"]),
    "no base": (dict(base=None), ["no base checkpoint", "base=PATH", "base.safetensors"]),
    "duplicates": (dict(checkpoints=["x/a.pt", "y/a.pt"]), ["duplicate model names: a", "mapping name -> checkpoint"]),
    "metric": (dict(metrics="weight_space_angel"), ["unknown metric 'weight_space_angel'", "'weight_space_angle'?"]),
    "metric among others": (dict(metrics=["stable_rank", "steble_rank"]), ["'steble_rank'", "'stable_rank'?"]),
    "no metric": (dict(metrics=[]), ["no metrics asked for"]),
    "device": (dict(device="abacus"), ["device 'abacus' is not a device name", "'auto', 'cpu' or 'cuda:0'"]),
    "frozen": (dict(frozen="perhaps"), ["frozen", NAMES]),
    "on_mismatch": (dict(on_mismatch="perhaps"), ["on_mismatch must be 'error' or 'skip', not 'perhaps'"]),
    "io": (dict(io="perhaps"), ["io must be 'mmap' or 'pread', not 'perhaps'"]),
    "max_memory 0": (dict(max_memory=0), ["max_memory must be a positive number of bytes, not 0"]),
    "max_memory text": (dict(max_memory="2G"), ["max_memory must be a positive number of bytes, not '2G'"]),
    "max_memory too small": (dict(max_memory=11), ["max_memory=11 bytes does not hold one element of 3 checkpoints"]),
    "top_k": (dict(top_k=0), ["top_k must be a positive integer, not 0"]),
    "spectrum_k": (dict(spectrum_k=2.5), ["spectrum_k must be a positive integer, not 2.5"]),
}


@pytest.mark.parametrize(("changes", "says"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_argument(refused, changes, says):
    refused(OptionError, says, **{"checkpoints": TWO, "base": weights(), **changes})


@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda")], ids=str)
def test_cuda_that_is_not_there(refused, monkeypatch, device):
    monkeypatch.setattr(torch.version, "cuda", None)
    refused(OptionError, [f"device '{device}' cannot be used", "without CUDA", "'auto'"], TWO, weights(), device=device)


def test_statistics_at_a_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(StatisticsError, match=r"notes\.txt: is a file; statistics are kept in a folder"):
        compute_all(TWO, weights(), statistics=path)
    assert path.read_text() == "mine"


def test_statistics_among_other_things(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StatisticsError, match="a folder with other things in it; give a new or empty one") as caught:
        compute_all(TWO, weights(), statistics=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert content(tmp_path) == {"notes.txt": b"mine"}


# --- statistics that are damaged or unfinished


@pytest.mark.parametrize("at", [3, 40, -200, -1], ids=["length", "header", "arrays", "last byte"])
def test_damaged_block(zoo, tmp_path, caplog, at):
    statistics = tmp_path / "statistics"
    expected, whole = values(compute_all(zoo, statistics=statistics)), content(statistics)
    block = sorted(statistics.glob("blocks/*"))[0]
    damaged = bytearray(block.read_bytes())
    damaged[at] ^= 0x10
    block.write_bytes(damaged)
    with pytest.raises(StatisticsError, match="damaged block") as caught:
        ZooStatistics.load(statistics)
    assert str(block) in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="mergekern"):
        assert values(compute_all(zoo, statistics=statistics)) == expected
    (warning,) = caplog.messages
    assert str(block) in warning
    assert "computing it again" in warning
    assert content(statistics) == whole


BAD_FOLDERS = {
    "nothing": lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file()],
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no block": lambda folder: next(folder.glob("blocks/*")).unlink(),
    "text": lambda folder: (folder / "manifest.json").write_text("not JSON"),
    "other JSON": lambda folder: (folder / "manifest.json").write_text("[]"),
    "later format": lambda folder: (folder / "manifest.json").write_text(json.dumps({"format": 99})),
}


@pytest.mark.parametrize("spoil", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_statistics_that_cannot_be_loaded(zoo, tmp_path, spoil):
    statistics = tmp_path / "statistics"
    expected, whole = values(compute_all(zoo, statistics=statistics)), content(statistics)
    spoil(statistics)
    with pytest.raises(StatisticsError) as caught:
        ZooStatistics.load(statistics)
    assert str(statistics) in str(caught.value)
    # The folder can be made whole again.
    assert values(compute_all(zoo, statistics=statistics)) == expected
    assert content(statistics) == whole


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_continues_to_the_same_bits(zoo, tmp_path, interrupt):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected = values(compute_all(zoo, statistics=whole))

    def stop_half_way(progress):
        if progress.tensors_done == 2:
            raise interrupt

    with pytest.raises(interrupt):
        compute_all(zoo, statistics=resumed, progress=stop_half_way)
    left = {path: path.stat().st_mtime_ns for path in resumed.glob("blocks/*")}
    assert len(left) == 2
    assert content(resumed).items() < content(whole).items()
    with pytest.raises(StatisticsError, match="not a folder of finished statistics"):
        ZooStatistics.load(resumed)
    assert values(compute_all(zoo, statistics=resumed)) == expected
    assert {path: path.stat().st_mtime_ns for path in left} == left  # Blocks that exist are not computed again.
    assert content(resumed) == content(whole)


# --- the command line


def spoil_last(zoo):
    save_file({**weights(2), "zlast": torch.full((9, 7), np.inf)}, zoo / "b.safetensors")


BAD_RUNS = {
    "misfit": (lambda zoo: save_file(misfit({"zlast": draw(7, 9)}), zoo / "b.safetensors"), [], "(7, 9) in 'b'"),
    "not finite": (spoil_last, [], "tensor 'zlast' holds NaN or infinite values: 63 in 'b'"),
    "truncated": (lambda zoo: (zoo / "b.safetensors").write_bytes(WHOLE[:-1]), [], UNREADABLE),
    "pickle": (lambda zoo: torch.save(RunsCode(zoo / "marker"), zoo / "c.pt"), [], "c.pt: torch.load(weights_only=T"),
    "one model": (lambda zoo: (zoo / "b.safetensors").unlink(), [], "1 model found beside the base"),
    "no base": (lambda zoo: (zoo / "base.safetensors").unlink(), [], "pass base=PATH (--base on the command line)"),
    "budget": (lambda zoo: None, ["--max-memory", "11"], "max_memory=11 bytes does not hold one element"),
    "metric": (lambda zoo: None, ["--metrics", "steble_rank"], "did you mean 'stable_rank'?"),
    "device": (lambda zoo: None, ["--device", "abacus"], "'abacus' is not a device name"),
}


@pytest.mark.parametrize(("spoil", "options", "says"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_command_line(zoo, tmp_path, spoil, options, says):
    spoil(zoo)
    before = content(tmp_path)
    written = ["--out", str(tmp_path / "table.json"), "--statistics", str(tmp_path / "statistics")]
    result = CliRunner().invoke(main, ["metrics", str(zoo), *written, *options])
    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert content(tmp_path) == before
    assert not (tmp_path / "statistics").exists()
