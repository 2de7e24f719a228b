"""Files whose checksums are right and whose contents are not: each is reported, refused, and measured again."""

import json
import logging

import numpy as np
import pytest
import xxhash
from click.testing import CliRunner

import mergekern
from mergekern import StatisticsError, ZooStatistics
from mergekern.cli import main
from mergekern.statistics.blocks import read_block, write_block
from mergekern.statistics.manifest import Manifest
from tests.support.zoos import assert_same


def change_arrays(kind, name, change):
    """Return what rewrites one array in every file of a kind that has it, with a right checksum."""

    def run(folder):
        for path in sorted((folder / kind).iterdir()):
            arrays, description = read_block(path)
            if name in arrays:
                write_block(path, {**arrays, name: change(arrays[name].copy())}, description)

    return run


def one_row(folder):
    for path in sorted((folder / "blocks").iterdir()):
        arrays, description = read_block(path)
        write_block(path, {name: array[:1] for name, array in arrays.items()}, description)


def describe(**changes):
    def run(folder):
        for path in sorted((folder / "blocks").iterdir()):
            arrays, description = read_block(path)
            write_block(path, arrays, {**description, **changes})

    return run


def put(value, *place):
    return lambda array: array.__setitem__(place, value) or array


WRONG = {
    "one row": one_row,
    "another width": change_arrays("blocks", "inner", lambda a: a[:, :-1]),
    "no numbers": change_arrays("blocks", "inner", lambda a: a.astype(np.int64)),
    "NaN": change_arrays("blocks", "squared_distance", put(np.nan, 0, 1)),
    "not symmetric": change_arrays("blocks", "inner", put(1e-30, 0, 1)),
    "not within lengths": change_arrays("blocks", "inner", lambda a: a + 100 * np.abs(a).max() * (1 - np.eye(len(a)))),
    "negative distance": change_arrays("blocks", "squared_distance", lambda a: -a),
    "a rank above the sizes": change_arrays("blocks", "rank", put(10_000, 0)),
    "ascending values": change_arrays("blocks", "values", lambda a: a[:, ::-1]),
    "an overlap above k": change_arrays("blocks", "overlap.left_top", put(1e6, 0, 0)),
    "k of text": describe(k="10"),
    "nested names": describe(name=["a"]),
    "rows of numbers": describe(rows=[1, 2]),
}


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_a_wrong_block_is_reported_refused_and_measured_again(zoo, expected, folder, caplog, damage):
    damage(folder)
    damaged = mergekern.verify(folder)
    assert damaged
    assert {each.path.parent.name for each in damaged} == {"blocks"}
    with pytest.raises(StatisticsError, match="block"):
        ZooStatistics.load(folder)
    table, verify = (CliRunner().invoke(main, [command, str(folder)]) for command in ("table", "verify"))
    for result in (table, verify):
        assert result.exit_code == 1
        assert sum(line.startswith("Error: ") for line in result.output.splitlines()) == 1
    assert "damaged: delete them" in verify.output
    with caplog.at_level(logging.WARNING):
        assert_same(mergekern.measure(zoo, statistics=folder), expected)
    assert "computing it again" in caplog.text
    assert not mergekern.verify(folder)


@pytest.mark.parametrize(
    "change", [lambda a: a[..., :1], lambda a: 2 * a, lambda a: a[:1]], ids=["k", "length", "models"]
)
def test_wrong_bases_are_reported(folder, change):
    change_arrays("bases", "right_top", change)(folder)
    assert {each.path.parent.name for each in mergekern.verify(folder)} == {"bases"}


def edit(folder, change):
    """Change the manifest, and make its checksum right."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    del content["checksum"]
    content["checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    path.write_text(json.dumps(content, indent=1))


MANIFESTS = {
    "fewer models": (lambda m: m["models"].pop(), "tensor"),
    "nested models": (lambda m: m.update(models=[[name] for name in m["models"]]), "models.0"),
    "a model twice": (lambda m: m["models"].__setitem__(0, m["models"][1]), "a name is there twice"),
    "a file outside": (lambda m: m["layers"][0].update(blocks=["../../x"]), "layers.0.blocks.0"),
    "a shape of text": (lambda m: m["layers"][0].update(shape="12"), "layers.0.shape"),
    "a negative size": (lambda m: m["layers"][0].update(shape=[-1]), "layers.0.shape.0"),
    "a tensor twice": (lambda m: m["layers"].append(m["layers"][0]), "a tensor is there twice"),
    "k of zero": (lambda m: m.update(top_k=0), "top_k"),
    "unknown statistics": (lambda m: m.update(functional={"nothing": "x"}), "'nothing'"),
    "part 3 of 2": (lambda m: m.update(part=[3, 2]), "part 3 of 2"),
    "more than is known": (lambda m: m.update(more=1), "more"),
    "notes of no models": (lambda m: m["provenance"].update(notes=0.5), "notes"),
    "a note that is a number": (lambda m: m["provenance"].update(left_out=[7]), "left_out"),
}


@pytest.mark.parametrize(("change", "word"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_wrong_manifest_is_refused_and_made_again(zoo, expected, folder, change, word):
    edit(folder, change)
    with pytest.raises(StatisticsError) as caught:
        Manifest.read(folder)
    assert word in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(folder))
    for line in (["table", folder], ["verify", folder], ["remove", "a", "--from", folder]):
        result = CliRunner().invoke(main, [str(part) for part in line])
        lines = result.output.splitlines()
        assert (result.exit_code, sum(line.startswith("Error: ") for line in lines)) == (1, 1)
    assert_same(mergekern.measure(zoo, statistics=folder), expected)


def test_a_manifest_of_deep_brackets(folder):
    (folder / "manifest.json").write_text('{"format": ' + "[" * 100_000)
    with pytest.raises(StatisticsError, match="nested too deeply"):
        mergekern.verify(folder)


def test_a_block_under_the_name_of_another_tensor(folder):
    edit(folder, lambda m: m["layers"][0].update(blocks=m["layers"][1]["blocks"]))
    with pytest.raises(StatisticsError, match="a block is of"):
        ZooStatistics.load(folder)
    assert any("not of" in each.what for each in mergekern.verify(folder))
