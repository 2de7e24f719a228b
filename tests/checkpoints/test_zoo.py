import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

import mergekern
from mergekern.checkpoints import LayerStream, open_zoo
from mergekern.errors import CheckpointError, MismatchError, OptionError
from tests.support.checkpoint_files import assert_same, draw


def weights(seed=0, **others):
    """Return a model of one matrix, one vector, and the given tensors."""
    return {"w": draw(4, 3, seed=seed), "b": draw(3, seed=seed + 100), **others}


def models(**zoo):
    return zoo or {"one": weights(1), "two": weights(2)}


@pytest.fixture
def folder(tmp_path):
    """Paths of the models `one` and `two` and of their base."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    for seed, name in enumerate(("base", "one", "two")):
        save_file(weights(seed), folder / f"{name}.safetensors")
    return folder


def assert_holds(zoo, base_seed, *seeds):
    for checkpoint, seed in zip(zoo.checkpoints, (base_seed, *seeds), strict=True):
        assert_same(checkpoint.read("w"), weights(seed)["w"])


# --- where models and base come from


def test_base_found_in_the_folder(folder):
    zoo = open_zoo(folder)
    assert zoo.model_names == ("one", "two")
    assert zoo.base.name == "base"
    assert_holds(zoo, 0, 1, 2)


def test_base_may_be_a_link_to_a_folder(folder, tmp_path):
    (tmp_path / "4f9a").mkdir()
    (folder / "base.safetensors").rename(tmp_path / "4f9a" / "model.safetensors")
    (folder / "base").symlink_to(tmp_path / "4f9a")
    zoo = open_zoo(folder)
    assert zoo.model_names == ("one", "two")
    assert_holds(zoo, 0, 1, 2)


@pytest.mark.parametrize("spelling", ["zoo", "zoo/../zoo", "link"])
def test_base_given_inside_the_folder_is_no_model(folder, tmp_path, spelling):
    (tmp_path / "link").symlink_to(folder)
    (folder / "base.safetensors").rename(folder / "zero.safetensors")
    zoo = open_zoo(str(folder), base=f"{tmp_path}/{spelling}/two.safetensors")
    assert zoo.model_names == ("one", "zero")
    assert_holds(zoo, 2, 1, 0)


def test_another_base_overrides_that_of_the_folder(folder, tmp_path):
    save_file(weights(7), tmp_path / "other.safetensors")
    zoo = open_zoo(folder, base=tmp_path / "other.safetensors")
    assert zoo.model_names == ("one", "two")
    assert_holds(zoo, 7, 1, 2)


def test_a_model_called_base_is_refused():
    with pytest.raises(OptionError, match="a model is called 'base'"):
        open_zoo({"base": weights(0), "one": weights(1)}, base=weights(2))


def test_other_files_and_folders_are_no_models(folder):
    (folder / "README.md").write_text("about these models")
    (folder / ".hidden.safetensors").write_bytes(b"half a download")
    (folder / "logs").mkdir()
    (folder / "three").mkdir()
    save_file(weights(3), folder / "three" / "model.safetensors")
    torch.save(weights(4), folder / "v1.2.pt")
    zoo = open_zoo(folder)
    assert zoo.model_names == ("one", "three", "two", "v1.2")
    assert_holds(zoo, 0, 1, 3, 2, 4)


def test_sequences_are_named_by_their_paths(folder):
    zoo = open_zoo([folder / "two.safetensors", str(folder / "one.safetensors"), weights(5)], base=weights(0))
    assert zoo.model_names == ("two", "one", "model_2")
    assert_holds(zoo, 0, 2, 1, 5)


def test_mappings_name_and_order_the_models(folder):
    module = torch.nn.Module()
    module.w, module.b = (torch.nn.Parameter(weights(6)[name]) for name in "wb")
    arrays = {name: tensor.numpy() for name, tensor in weights(5).items()}
    zoo = open_zoo({"z": folder / "one.safetensors", 7: arrays, "module": module}, base=folder / "base.safetensors")
    assert zoo.model_names == ("z", "7", "module")
    assert_holds(zoo, 0, 1, 5, 6)


BAD_ZOOS = {
    "no base": (lambda folder: ([weights(1), weights(2)],), OptionError, r"pass base=PATH .*base\.safetensors"),
    "one model": (lambda folder: ([weights(1)], weights()), OptionError, "1 model found beside the base; .*least two"),
    "no model": (lambda folder: ({}, weights()), OptionError, "0 models found beside the base"),
    "empty folder": (lambda folder: (folder / "empty",), CheckpointError, "empty: no checkpoints in it"),
    "no folder": (lambda folder: (folder / "none",), CheckpointError, "none: there is no such file or folder"),
    "a file": (lambda folder: (folder / "one.safetensors",), CheckpointError, "one.safetensors: not a folder"),
    "duplicates": (
        lambda folder: ([folder / "one.safetensors", folder / "copy" / "one.pt"], weights()),
        OptionError,
        "duplicate model names: one; give a mapping",
    ),
    "two bases": (lambda folder: (folder / "two bases",), OptionError, r"two bases, base\.pt and base\.safetensors"),
    "a state dict": (lambda folder: (weights(1), weights()), OptionError, "is a state dict .* give a mapping from mod"),
    "a set": (lambda folder: ({"a", "b"}, weights()), OptionError, "a folder, a sequence .* or a mapping .* not set"),
    "numbers": (lambda folder: ([1, 2], weights()), CheckpointError, "a checkpoint is a path, a mapping .* not int"),
    "a missing base": (lambda folder: (models(), folder / "none.pt"), CheckpointError, "none.pt: no such file or fold"),
    "a base of no kind": (lambda folder: (models(), 3), CheckpointError, "a checkpoint is a path, .* not int"),
}


@pytest.mark.parametrize(("arguments", "error", "says"), BAD_ZOOS.values(), ids=BAD_ZOOS)
def test_bad_zoo(folder, arguments, error, says):
    (folder / "empty").mkdir()
    (folder / "two bases").mkdir()
    save_file(weights(), folder / "two bases" / "base.safetensors")
    torch.save(weights(), folder / "two bases" / "base.pt")
    with pytest.raises(error, match=says):
        open_zoo(*arguments(folder))


@pytest.mark.parametrize("option", ["on_mismatch", "io"])
def test_bad_option(option):
    with pytest.raises(OptionError, match=f"{option} must be '.*' or '.*', not 'perhaps'"):
        open_zoo(models(), weights(), **{option: "perhaps"})


# --- matching

MISFITS = {
    "one": weights(1, count=draw(1), extra=draw(2)),
    "two": {"w": draw(4, 5), "only": draw(1)},
    "three": {"w": draw(4, 3, 1), "b": torch.zeros(3, dtype=torch.int64)},
}
LINES = [
    "w: shape (4, 3) in 'base', (4, 5) in 'two'; shape (4, 3) in 'base', (4, 3, 1) in 'three'",
    "b: in 'base' but missing in 'two'; in 'base' but integers in 'three'",
    "count: in 'base' but missing in 'two'; in 'base' but missing in 'three'",
    "extra: in 'one' but missing in 'base'",
    "only: in 'two' but missing in 'base'",
]


def test_every_mismatch_is_in_one_error():
    with pytest.raises(MismatchError) as caught:
        open_zoo(MISFITS, weights(count=draw(1)))
    first, *lines, last = str(caught.value).splitlines()
    assert first == "5 tensors do not match between the checkpoints:"
    assert [line.strip() for line in lines] == LINES
    assert 'on_mismatch="skip"' in last


def test_float_that_the_base_has_as_integer():
    with pytest.raises(MismatchError, match=r"1 tensor does not match .*\n  n: in 'two' but integers in 'base'\n"):
        open_zoo(models(one=weights(1), two=weights(2, n=draw(2))), weights(n=torch.arange(2)))


def test_skip_lists_mismatches_and_keeps_the_rest():
    zoo = {name: model | {"fine": draw(2)} for name, model in MISFITS.items()}
    zoo = open_zoo(zoo, weights(count=draw(1), fine=draw(2)), on_mismatch="skip")
    assert list(zoo.skipped) == LINES
    assert [tensor.name for tensor in zoo.tensors] == ["fine"]


def test_skip_reaches_the_notes_of_the_table():
    table = mergekern.compute_all(models(one=weights(1), two={"w": draw(4, 3)}), weights(), on_mismatch="skip")
    assert "tensor left out of everything: b: in 'base' but missing in 'two'" in table.notes


def test_nothing_in_common():
    with pytest.raises(MismatchError, match="'base' and the models share no floating-point tensor"):
        open_zoo(models(), {"other": draw(2)}, on_mismatch="skip")


@pytest.mark.parametrize("where", ["base", "models"])
def test_integer_buffers_do_not_matter(where):
    buffers = {"ids": torch.arange(4), "mask": torch.ones(2, dtype=torch.bool)}
    in_base, in_models = (buffers, {}) if where == "base" else ({}, buffers)
    zoo = open_zoo(models(one=weights(1, **in_models), two=weights(2)), weights(**in_base))
    assert [tensor.name for tensor in zoo.tensors] == ["w", "b"]
    assert zoo.skipped == ()


def test_empty_tensors_are_left_out():
    none = torch.empty(0, 3)
    zoo = open_zoo(models(one=weights(1, none=none), two=weights(2, none=none)), weights(none=none))
    assert [tensor.name for tensor in zoo.tensors] == ["w", "b"]


def test_tensors_follow_the_file_order_of_the_base():
    reverse = dict(reversed(weights(1).items()))
    zoo = open_zoo(models(one=reverse, two=weights(2)), weights())
    assert [(tensor.name, tensor.shape) for tensor in zoo.tensors] == [("w", (4, 3)), ("b", (3,))]


# --- tied tensors


def tied(seed, *, names=("embed", "head"), untied=False):
    """Return a model in which the named tensors share memory, or are equal copies."""
    shared = draw(4, 3, seed=seed)
    return {name: shared.clone() if untied else shared for name in names} | {"b": draw(3, seed=seed + 100)}


def squared_norms(zoo):
    """Return the squared norm of each task vector, as the statistics count it."""
    return np.diagonal(mergekern.measure(zoo).inner)


def expected_norms(base, zoo, names):
    return [sum(float((m[n].double() - base[n].double()).square().sum()) for n in names) for m in zoo.values()]


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "torch files"])
def test_tied_everywhere_counts_once(tmp_path, on_disk):
    base, zoo = tied(0), {"one": tied(1), "two": tied(2)}
    expected = expected_norms(base, zoo, ["embed", "b"])
    if on_disk:
        for name, model in {"base": base, **zoo}.items():
            torch.save(model, tmp_path / f"{name}.pt")
    opened = open_zoo(tmp_path) if on_disk else open_zoo(zoo, base)
    assert [tensor.name for tensor in opened.tensors] == ["embed", "b"]
    np.testing.assert_allclose(squared_norms(opened), expected, rtol=1e-12)


@pytest.mark.parametrize("untied", ["base", "one", "two"])
def test_untied_anywhere_counts_both(untied):
    base, *tuned = (tied(seed, untied=name == untied) for seed, name in enumerate(("base", "one", "two")))
    zoo = dict(zip(("one", "two"), tuned, strict=True))
    zoo["two"]["head"].mul_(2)  # only the untied head of "two" differs
    opened = open_zoo(zoo, base)
    assert [tensor.name for tensor in opened.tensors] == ["embed", "head", "b"]
    np.testing.assert_allclose(squared_norms(opened), expected_norms(base, zoo, ["embed", "head", "b"]), rtol=1e-12)


@pytest.mark.parametrize("kept", ["embed", "head"])
def test_alias_that_a_model_lacks_is_found_by_the_tie_of_the_base(kept):
    zoo = open_zoo({"one": tied(1, names=(kept,)), "two": tied(2)}, tied(0))
    assert [tensor.names for tensor in zoo.tensors] == [("embed", kept, "embed"), ("b", "b", "b")]
    assert_same(next(iter(LayerStream(zoo)))._whole()[1], tied(1)["embed"])


def test_alias_that_only_a_model_has_is_no_extra_tensor():
    zoo = open_zoo({"one": tied(1), "two": tied(2, names=("embed",))}, tied(0, names=("embed",)))
    assert [tensor.names for tensor in zoo.tensors] == [("embed", "embed", "embed"), ("b", "b", "b")]


def test_extra_tensor_that_is_no_alias_is_a_mismatch():
    with pytest.raises(MismatchError, match="head: in 'one' but missing in 'base'"):
        open_zoo({"one": tied(1, untied=True), "two": tied(2)}, tied(0, names=("embed",)))


def test_ties_declared_in_safetensors_and_ties_in_memory_are_the_same(tmp_path):
    module = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embed"].weight
    safetensors.torch.save_model(module, str(tmp_path / "one.safetensors"))
    zoo = open_zoo([tmp_path / "one.safetensors", module], base=module)
    assert len(zoo.tensors) == 1
    assert_same(zoo.models[0].read("head.weight"), module["embed"].weight.detach())


def test_the_base_among_the_paths_is_no_model(folder):
    paths = sorted(folder.glob("*.safetensors"))
    assert open_zoo(paths, base=folder / "base.safetensors").model_names == ("one", "two")
    (folder / "start").mkdir()
    save_file(weights(9), folder / "start" / "model.safetensors")
    assert open_zoo(folder, base=folder / "start" / "model.safetensors").model_names == ("one", "two")


@pytest.mark.parametrize(("name", "message"), [("lora/adapter_config.json", "PEFT"), ("q4.gguf", "GGUF")])
def test_what_cannot_be_read_is_not_left_out_in_silence(folder, name, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        open_zoo(folder)


@pytest.mark.parametrize(
    ("lacking", "remedy"),
    [("classifier.weight", "They are heads: .*--heads each"), ("pooler", "Give checkpoints of one architecture")],
)
def test_the_remedy_of_a_mismatch_is_that_of_heads_where_all_are_heads(lacking, remedy):
    zoo = {"one": weights(1), "two": weights(2) | {lacking: draw(2, 3)}}
    with pytest.raises(MismatchError, match=remedy):
        open_zoo(zoo, weights())
