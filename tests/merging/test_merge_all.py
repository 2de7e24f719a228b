"""merge_all: the merges of every group are those of merge, and each tensor is read once."""

import collections
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoints.safetensors_file import SafetensorsFile
from mergekern.errors import OptionError, OutputError
from mergekern.merging.registry import methods_for
from tests.merging.zoos import SHAPES, assert_equal, drawn


def test_merge_all_is_merge(zoo, tmp_path):
    base, tuned = drawn(4, SHAPES)
    methods = ["ties", "tsv", "isotropic", "dare"]
    found = {}
    mergekern.merge_all(
        tuned, base, methods, options={"ties": {"density": 0.5}}, merged_memory=1000,
        callback=lambda group, method, merged: found.update({(group, method): merged}),
    )  # fmt: skip
    assert len(found) == 6 * len(methods)
    for (group, method), merged in found.items():
        options = {"density": 0.5} if method == "ties" else {}
        assert_equal(merged, mergekern.merge({name: tuned[name] for name in group}, base, method, options=options))


def test_merge_all_into_files(zoo, tmp_path):
    out = tmp_path / "merged"
    models = {name: zoo / f"{name}.safetensors" for name in ("model_0", "model_1")}
    paths = mergekern.merge_all(models, zoo / "base.safetensors", ["ties", "tsv"], output=out)
    assert paths == [out / "ties/model_0+model_1.safetensors", out / "tsv/model_0+model_1.safetensors"]
    assert_equal(load_file(paths[1]), mergekern.merge(models, zoo / "base.safetensors", "tsv"))
    with pytest.raises(OutputError, match="overwrite"):
        mergekern.merge_all(models, zoo / "base.safetensors", "ties", options={"ties": {"density": 0.1}}, output=out)


def files_of(folder, models):
    base, tuned = drawn(models, SHAPES)
    for name, tensors in {"base": base, **tuned}.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in tuned]


def test_merge_all_reads_each_tensor_once(tmp_path, monkeypatch):
    paths = files_of(tmp_path, 4)
    reads = collections.Counter()
    read = SafetensorsFile.read

    def counted(self, name):
        reads[self.name, name] += 1
        return read(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", counted)
    methods = ["ties", "tsv", "isotropic", "dare"]
    mergekern.merge_all(paths, tmp_path / "base.safetensors", methods, output=tmp_path / "merged")
    assert len(reads) == 5 * len(SHAPES)
    assert set(reads.values()) == {1}


def test_merge_all_holds_no_files_open(tmp_path):
    paths = files_of(tmp_path, 5)
    program = f"""
import resource, mergekern
import scipy.linalg
resource.setrlimit(resource.RLIMIT_NOFILE, (25, 25))
mergekern.merge_all({[str(p) for p in paths]}, {str(tmp_path / "base.safetensors")!r}, {methods_for(2)},
                    output={str(tmp_path / "merged")!r})
"""
    subprocess.run([sys.executable, "-c", program], env=os.environ, check=True)
    assert len(list((tmp_path / "merged").rglob("*.safetensors"))) == 10 * len(methods_for(2))


def test_merge_all_of_whole_models_is_merge():
    base, tuned = drawn(3, SHAPES)
    found = {}
    mergekern.merge_all(
        tuned, base, ["ties", "dare_ties"], max_memory=900,
        options={"ties": {"scope": "model"}, "dare_ties": {"scope": "model", "mask": "magnitude", "rate": 0.5}},
        callback=lambda group, method, merged: found.update({(group, method): merged}),
    )  # fmt: skip
    for (group, method), merged in found.items():
        options = {"mask": "magnitude", "rate": 0.5} if method == "dare_ties" else {}
        alone = mergekern.merge({n: tuned[n] for n in group}, base, method, options={"scope": "model", **options})
        assert_equal(merged, alone)


def test_merge_all_with_no_room_to_keep_anything():
    base, tuned = drawn(4, SHAPES)
    found = {}
    for memory in (None, 2000):
        mergekern.merge_all(
            tuned, base, ["tsv", "isotropic"], max_memory=memory,
            callback=lambda *merge: found.setdefault(merge[:2], []).append(merge[2]),
        )  # fmt: skip
    for first, second in found.values():
        assert_equal(first, second)


BAD_ALL = {
    "neither": ({}, "either an output folder or a callback"),
    "model": ({"groups": [("model_0", "model_l")]}, "did you mean 'model_1'"),
    "one": ({"groups": [("model_0",)]}, "two or more"),
    "options": ({"options": {"tsv": {}}}, "not among the methods"),
    "twice": ({"methods": ["ties", "ties"]}, "different from each other"),
    "no method": ({"methods": []}, "one at least"),
}


@pytest.mark.parametrize(("options", "says"), BAD_ALL.values(), ids=BAD_ALL)
def test_bad_merge_all(options, says):
    base, tuned = drawn(2, SHAPES)
    callback = None if "either" in says else print
    with pytest.raises(OptionError, match=says):
        mergekern.merge_all(tuned, base, **({"methods": "ties"} | options), callback=callback)
