"""Bodies are merged, heads are not: whose head a result has, how heads are found, and what is said of them."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern.checkpoints import open_zoo
from mergekern.cli import main

SIZES = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert(kind, labels=2):
    names = {label: f"{kind}-{label}" for label in range(labels)}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, id2label=names, **SIZES)
    return getattr(transformers, f"Bert{kind}")(config)


def vit(kind, labels=2):
    config = transformers.ViTConfig(image_size=4, patch_size=2, num_labels=labels, **SIZES)
    return getattr(transformers, f"ViT{kind}")(config)


def llama(kind, labels=2):
    config = transformers.LlamaConfig(vocab_size=20, num_labels=labels, **SIZES)
    return getattr(transformers, f"Llama{kind}")(config)


def resnet(kind, labels=2):
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=labels)
    return getattr(transformers, f"ResNet{kind}")(config)


# Base, first and second model; the heads.
ZOOS = {
    "a body": (bert, ["Model"], ["ForSequenceClassification", 3], ["ForSequenceClassification", 4], {"classifier"}),
    "a body with another head": (
        bert, ["ForMaskedLM"], ["ForSequenceClassification", 3], ["ForTokenClassification", 4],
        {"bert.pooler", "classifier", "cls"},
    ),
    "heads of one shape": (bert, *[["ForSequenceClassification", 3]] * 3, {"classifier"}),
    "a pooler of the base": (vit, ["Model"], ["ForImageClassification", 3], ["ForImageClassification", 3],
                             {"classifier", "pooler"}),
    "a decoder": (llama, ["ForCausalLM"], ["ForSequenceClassification", 3], ["ForTokenClassification", 2],
                  {"lm_head", "score"}),
    "convolutions": (resnet, ["Model"], ["ForImageClassification", 3], ["ForImageClassification", 5], {"classifier"}),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(ZOOS.values()), ids=list(ZOOS))
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    make, *models, heads = request.param
    torch.manual_seed(0)
    for name, kind in zip(("base", "first", "second"), models, strict=True):
        make(*kind).save_pretrained(folder / name)
    return folder, heads


def loaded(folder):
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, loading = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model


def test_each_model_gets_the_merged_body_and_its_own_head(case, tmp_path):
    folder, heads = case
    zoo = open_zoo(folder, heads=())
    assert {name for name in zoo.heads if not name.startswith(tuple(heads))} == set()
    assert all(any(name.startswith(head) for name in zoo.heads) for head in heads)
    mergekern.merge(folder, method="weight_average", heads="each", output=tmp_path / "out")
    merged = open_zoo(tmp_path / "out", base=folder / "base", heads=())
    assert merged.model_names == ("first", "second")
    for tensor in merged.tensors:
        values = [zoo.base.read(tensor.name), *(model.read(tensor.name) for model in zoo.models)]
        for model in merged.models:
            expected = (values[1].double() + values[2].double()) / 2
            assert torch.allclose(model.read(tensor.name).double(), expected, atol=1e-7)
    for source, model in zip(zoo.models, merged.models, strict=True):
        assert set(model.tensors) == set(source.tensors)
        assert all(torch.equal(model.read(name), source.read(name)) for name in zoo.heads & set(source.tensors))
        result, own = loaded(tmp_path / "out" / model.name), loaded(folder / model.name)
        assert result.config.id2label == own.config.id2label
        assert type(result) is type(own)
    in_memory = mergekern.merge(folder, method="weight_average", heads="each")
    for name, state in in_memory.items():
        saved = load_file(tmp_path / "out" / name / "model.safetensors")
        assert state.keys() == saved.keys()
        assert all(torch.equal(state[key], values) for key, values in saved.items())


def test_the_head_of_one_model_or_of_the_base(case, tmp_path):
    folder, _ = case
    for owner in ("second", "base"):
        mergekern.merge(folder, method="ties", heads=owner, output=tmp_path / owner)
        assert type(loaded(tmp_path / owner)) is type(loaded(folder / owner))
    each = mergekern.merge(folder, method="ties", heads="each")["second"]
    saved = load_file(tmp_path / "second/model.safetensors")
    assert all(torch.equal(each[name], values) for name, values in saved.items())


def test_merge_all_writes_each_and_goes_on(case, tmp_path):
    folder, _ = case
    how = {"methods": ["ties", "weight_average"], "heads": "each", "output": tmp_path / "all"}
    paths = mergekern.merge_all(folder, **how)
    assert [str(path.relative_to(tmp_path / "all")) for path in paths] == [
        f"{method}/first+second/{name}" for method in how["methods"] for name in ("first", "second")
    ]
    before = {path: (path / "model.safetensors").read_bytes() for path in paths}
    shutil.rmtree(paths[2])
    untouched = paths[0].stat().st_ino
    assert mergekern.merge_all(folder, **how) == paths
    assert {path: (path / "model.safetensors").read_bytes() for path in paths} == before
    assert paths[0].stat().st_ino == untouched
    found = {}
    mergekern.merge_all(folder, methods="ties", heads="each", callback=lambda *it: found.update({it[:2]: it[2]}))
    assert list(found) == [(("first", "second"), "ties")]
    assert list(found[("first", "second"), "ties"]) == ["first", "second"]


# --- plain files

DRAW = np.random.default_rng(3)
BODY = {f"layers.{n}.{part}.weight": DRAW.normal(size=(5, 5)) for n in range(2) for part in "abcd"}


def plain(**heads):
    tensors = {name: values + 0.1 * DRAW.normal(size=values.shape) for name, values in BODY.items()}
    return {
        name: torch.tensor(v) for name, v in {**tensors, **{k.replace("_", "."): v for k, v in heads.items()}}.items()
    }


def test_files_and_names_of_heads_by_pattern(tmp_path):
    base, first, second = (
        plain(),
        plain(out_weight=DRAW.normal(size=(2, 5))),
        plain(out_weight=DRAW.normal(size=(3, 5))),
    )
    for name, state in {"base": base, "a": first, "b": second}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    mergekern.merge(tmp_path, method="weight_average", heads="each", output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".safetensors") == [
        "a.safetensors", "b.safetensors"
    ]  # fmt: skip
    assert torch.equal(load_file(tmp_path / "out/b.safetensors")["out.weight"], second["out.weight"])
    found = mergekern.merge({"a": first, "b": first}, first, "ties", heads="a", head_tensors="layers.1.*")
    assert all(torch.equal(found[name], first[name]) for name in first if name.startswith("layers.1."))
    result = CliRunner().invoke(main, [
        "merge-all", str(tmp_path), "--methods", "ties", "--heads", "each", "--head-tensors", "out.*",
        "--out", str(tmp_path / "all"),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "all/ties/a+b/a.safetensors").is_file()


def test_bodies_that_differ_are_no_heads():
    deeper = plain() | {"layers.2.a.weight": torch.zeros(5, 5)}
    with pytest.raises(mergekern.MismatchError, match=r"layers\.2\.a\.weight"):
        mergekern.merge({"a": plain(score_w=np.ones((2, 5))), "b": deeper}, plain(), "ties", heads="each")
    rows = {name: plain(embed_weight=np.ones((n, 5)), score_w=np.ones((n, 5))) for name, n in {"a": 6, "b": 7}.items()}
    with pytest.raises(mergekern.MismatchError, match=r"embed\.weight"):
        mergekern.merge(rows, rows["a"], "ties", heads="each")
    kept = mergekern.merge(rows, rows["a"], "ties", heads="each", on_mismatch="skip")
    assert [len(state["embed.weight"]) for state in kept.values()] == [6, 7]


def test_wrong_heads_are_refused(tmp_path):
    models = {"a": plain(score_w=np.ones((2, 5))), "b": plain(score_w=np.ones((2, 5)))}
    for given, message in {
        ("nobody", None): "'each', 'base' or the name of a model, not 'nobody'",
        (None, "score.*"): "head_tensors is of use with heads only",
        ("each", "none.*"): r"no tensor is called 'none\.\*'",
    }.items():
        with pytest.raises(mergekern.OptionError, match=message):
            mergekern.merge(models, models["a"], "ties", heads=given[0], head_tensors=given[1])
    with pytest.raises(mergekern.OptionError, match="no tensor is a head"):
        mergekern.merge({"a": plain(), "b": plain()}, plain(), "ties", heads="each")
    with pytest.raises(mergekern.OutputError, match="a folder is written"):
        mergekern.merge(models, models["a"], "ties", heads="each", output=tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_heads_that_tell_other_things_are_not_averaged_in_silence(tmp_path, caplog):
    for name in ("base", "a", "b"):
        model = bert("ForSequenceClassification", 2)
        model.config.id2label = {0: f"not {name}", 1: name}
        model.save_pretrained(tmp_path / name)
    mergekern.merge(tmp_path, method="weight_average")
    assert "heads that are merged although the labels of 'a' and 'b' differ (2): classifier.bias" in caplog.text
    caplog.clear()
    mergekern.merge(tmp_path, method="weight_average", heads="each")
    assert "although" not in caplog.text


def test_a_tokenizer_that_only_the_base_has(tmp_path):
    for name in ("base", "a", "b"):
        bert("ForSequenceClassification", 2).save_pretrained(tmp_path / name)
    (tmp_path / "base/tokenizer.json").write_text("of base")
    (tmp_path / "base/other.txt").write_text("of base")
    (tmp_path / "b/vocab.txt").write_text("of b")
    mergekern.merge(tmp_path, method="ties", heads="each", output=tmp_path / "out")
    found = {name: sorted(path.name for path in (tmp_path / "out" / name).iterdir()) for name in "ab"}
    assert "tokenizer.json" in found["a"]
    assert "other.txt" not in found["a"]
    assert "tokenizer.json" not in found["b"]
    assert (
        "files that are the base's (1): tokenizer.json"
        in json.loads((tmp_path / "out/a/mergekern.json").read_text())["notes"]
    )
