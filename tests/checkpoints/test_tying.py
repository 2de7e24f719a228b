"""Heads that are the embedding, against what PEFT merges and transformers loads."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mergekern
from mergekern.checkpoints import open_zoo
from mergekern.errors import CheckpointError, MismatchError
from tests.support.adapters import adapt, bert, llama, seeded
from tests.support.checkpoint_files import draw

EMBEDDING, HEAD, OTHER = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of a model that ties its head, as transformers saves it: the file lacks the head."""
    folder = tmp_path_factory.mktemp("tied") / "base"
    seeded(lambda: llama(tie_word_embeddings=True)).save_pretrained(folder)
    assert HEAD not in load_file(folder / "model.safetensors")
    return folder


# PEFT warns of every adapter of a tied tensor, as its issues advise.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


# https://github.com/huggingface/peft/issues/2777, https://github.com/huggingface/peft/issues/2018,
# https://github.com/unslothai/unsloth/issues/9331
ADAPTERS = {
    "factors of the embedding": {"target_modules": ["embed_tokens"]},
    "factors of the head": {"target_modules": ["lm_head"]},
    "the embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "the head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tying ensured": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tying of the head ensured": {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True,
    },
    "nothing to tie": {"target_modules": ["q_proj"], "ensure_weight_tying": True},
    "factors, and the head saved": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
}  # fmt: skip


@pytest.mark.parametrize("stores_a_copy", [False, True], ids=["one", "a copy"])
@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_mean_what_peft_merges_and_transformers_loads(case, stores_a_copy, base, tmp_path):
    adapt(loaded(base), tmp_path / "a", merge=False, r=2, **ADAPTERS[case])
    PeftModel.from_pretrained(loaded(base), tmp_path / "a").merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = loaded(tmp_path / "merged").state_dict()
    if stores_a_copy:
        tensors = load_file(base / "model.safetensors")
        (tmp_path / "copy").mkdir()
        save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, tmp_path / "copy" / "model.safetensors")
        (tmp_path / "copy" / "config.json").write_bytes((base / "config.json").read_bytes())
        base = tmp_path / "copy"
    zoo = {"a": tmp_path / "a", "b": tmp_path / "a"}
    (model, _) = open_zoo(zoo, base).models
    for name in model.tensors:
        torch.testing.assert_close(model.read(name), expected[name], rtol=0, atol=1e-14)
    mergekern.merge(zoo, base, "weight_average", output=tmp_path / "m", dtype="float64")
    found = loaded(tmp_path / "m").state_dict()
    for name in (EMBEDDING, HEAD):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-14)
    differ = not torch.equal(expected[EMBEDDING], expected[HEAD])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["tie_word_embeddings"] != differ
    assert (HEAD in load_file(tmp_path / "m" / "model.safetensors")) == differ


def test_saved_embeddings_alone_tie_the_head_where_that_is_ensured(base, tmp_path):
    adapt(loaded(base), tmp_path / "a", merge=False, r=2, **ADAPTERS["tying ensured"])
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, path)
    zoo = open_zoo({"a": tmp_path / "a", "b": tmp_path / "a"}, base)
    assert len(zoo.tensors) == len(load_file(base / "model.safetensors"))
    assert torch.equal(zoo.models[0].read(EMBEDDING), tensors[f"base_model.model.{EMBEDDING}"])


def test_factors_of_both_are_refused(base, tmp_path):
    """PEFT adds both to the one tensor when it merges, and each to its own use when it runs."""
    adapt(loaded(base), tmp_path / "a", merge=False, r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(CheckpointError, match="which are one tensor in the base; merge it"):
        open_zoo({"a": tmp_path / "a", "b": tmp_path / "a"}, base)


def folder(path, tensors, **config):
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    if config:
        (path / "config.json").write_text(json.dumps(config))
    return path


def model(seed, head=None):
    """Return an embedding and a norm; with the head's seed a head too, a copy for the same one."""
    tensors = {EMBEDDING: draw(9, 4, seed=seed), OTHER: draw(4, seed=seed + 1)}
    return tensors | ({} if head is None else {HEAD: draw(9, 4, seed=head)})


TIED = {"model_type": "llama", "tie_word_embeddings": True}
# Seeds of (embedding, head) of the base and of two models; None where the file lacks the head.
FILES = {
    "no head anywhere": ((0, None), (1, None), (2, None)),
    "models hold copies": ((0, None), (1, 1), (2, 2)),
    "one model holds a copy": ((0, None), (1, 1), (2, None)),
    "the base holds a copy": ((0, 0), (1, None), (2, None)),
    "one model holds none": ((0, 0), (1, 1), (2, None)),
    "a model differs": ((0, None), (1, 5), (2, None)),
    "all models differ": ((0, None), (1, 5), (2, 6)),
    "the base differs": ((0, 4), (1, None), (2, None)),
    "all hold copies": ((0, 0), (1, 1), (2, 2)),
    "all hold both, and differ": ((0, 0), (1, 5), (2, 6)),
}


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_files_with_and_without_the_head(files, tmp_path):
    names = ("base", "one", "two")
    paths = [folder(tmp_path / n, model(*seeds), **TIED) for n, seeds in zip(names, files, strict=True)]
    meant = [model(e, e if h is None else h) for e, h in files]
    is_tied = all(torch.equal(tensors[EMBEDDING], tensors[HEAD]) for tensors in meant)
    counted = [EMBEDDING, OTHER] + ([] if is_tied else [HEAD])
    deltas = [np.concatenate([(m[n].double() - meant[0][n].double()).flatten() for n in counted]) for m in meant[1:]]
    zoo = open_zoo(paths[1:], paths[0])
    np.testing.assert_allclose(mergekern.measure(zoo).inner, np.inner(deltas, deltas), rtol=1e-12)
    for on_mismatch in ("error", "skip"):
        mergekern.merge(paths[1:], paths[0], "weight_average", output=tmp_path / "m", overwrite=True,
                        on_mismatch=on_mismatch)  # fmt: skip
        merged = load_file(tmp_path / "m" / "model.safetensors")
        says = json.loads((tmp_path / "m" / "config.json").read_text())["tie_word_embeddings"]
        for name, found in ((EMBEDDING, merged[EMBEDDING]), (HEAD, merged[EMBEDDING if says else HEAD])):
            torch.testing.assert_close(found, (meant[1][name] + meant[2][name]) / 2, rtol=0, atol=1e-6)
    differing = [m for m in zoo.models if any("differs from its" in note for note in m.notes)]
    assert len(differing) == (0 if files[0][1] == 4 else sum(h not in (None, e) for e, h in files[1:]))


NOT_TIED = {
    "the configuration says no": ({"model_type": "gpt2", "tie_word_embeddings": False}, model(1), model(0, 7)),
    "a body alone": ({"model_type": "llama", "architectures": ["LlamaModel"]}, model(1), model(0, 7)),
    "a classifier": ({"architectures": ["LlamaForSequenceClassification"]}, model(1), model(0, 7)),
    "nothing known": ({}, model(1), model(0, 7)),
}


@pytest.mark.parametrize(("config", "tensors", "base"), NOT_TIED.values(), ids=NOT_TIED)
def test_a_head_that_is_simply_not_there(config, tensors, base, tmp_path):
    paths = {name: folder(tmp_path / name, tensors, **config) for name in ("one", "two")}
    with pytest.raises(MismatchError, match=r"lm_head\.weight: in 'base' but missing"):
        open_zoo(paths, base)


def test_a_body_under_shorter_names_has_no_head(tmp_path):
    tensors = {name.removeprefix("model."): values for name, values in model(1).items()}
    paths = [folder(tmp_path / name, tensors, model_type="llama") for name in ("one", "two")]
    with pytest.raises(MismatchError, match=r"lm_head\.weight: in 'base' but missing"):
        open_zoo(paths, model(0, 7))


def test_without_configurations_equal_copies_are_ties():
    zoo = open_zoo({"one": model(1), "two": model(2, 2)}, model(0, 0))
    assert [tensor.name for tensor in zoo.tensors] == [EMBEDDING, OTHER]


def test_untied_results_in_shards(tmp_path):
    """The head goes to the shard of its embedding, and the nested word of the configuration changes too."""
    base = tmp_path / "base"
    base.mkdir()
    shards = {EMBEDDING: "model-00001-of-00002.safetensors", OTHER: "model-00002-of-00002.safetensors"}
    for name, file in shards.items():
        save_file({name: model(0)[name]}, base / file, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (base / "config.json").write_text(json.dumps({"text_config": {"tie_word_embeddings": True}}))
    zoo = {"one": model(1, 5), "two": model(2, 6)}
    mergekern.merge(zoo, base, "weight_average", output=tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == shards | {HEAD: shards[EMBEDDING]}
    found = load_file(tmp_path / "m" / shards[EMBEDDING])[HEAD]
    torch.testing.assert_close(found, (zoo["one"][HEAD] + zoo["two"][HEAD]) / 2, rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config == {"text_config": {"tie_word_embeddings": False}, "tie_word_embeddings": False}


def test_biases_of_heads_of_bert(tmp_path):
    """Older files hold the weight and the bias of the decoder twice, newer ones once."""
    tensors = {
        "bert.embeddings.word_embeddings.weight": draw(9, 4), "cls.predictions.bias": draw(9, seed=1),
        "cls.predictions.transform.dense.weight": draw(4, 4, seed=2),
    }  # fmt: skip
    copies = {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
    }
    for base, tuned in ((tensors, tensors | copies), (tensors | copies, tensors)):
        zoo = open_zoo({"one": tuned, "two": tensors}, base)
        assert len(zoo.tensors) == 3


def test_a_classifier_has_no_head_to_tell_apart(tmp_path):
    base = tmp_path / "base"
    seeded(bert).save_pretrained(base)
    options = {"target_modules": ["query"], "modules_to_save": ["word_embeddings", "classifier"]}
    adapt(seeded(bert), tmp_path / "a", merge=False, task_type="SEQ_CLS", r=2, **options)
    zoo = open_zoo({"a": tmp_path / "a", "b": tmp_path / "a"}, base)
    assert len(zoo.tensors) == len(zoo.base.tensors)
