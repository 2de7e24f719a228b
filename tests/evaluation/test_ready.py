"""Ready evaluators: what they return is what a loop over single samples returns, on models that transformers loads."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import EvaluationError, measure_merges
from mergekern.cli import main
from mergekern.evaluation import Accuracy, Harness, Perplexity
from mergekern.evaluation.examples import read_tensors
from mergekern.evaluation.harness import check_end
from tests.support.digits import Network, accuracy, samples

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "many", "dogs", "run", "far", "away", "from", "home"]
TEXTS = {
    "first": ["the cat sat on a mat", "many dogs run far away", "home"],
    "second": ["a mat and the cat saw many dogs run far away from home on a mat " * 3, "dogs saw the cat"],
}


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def save_zoo(folder, make, names=("base", "first", "second")):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for name in names:
            make(name).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    """A base that ties head and embedding, and two models that do not."""

    def make(name):
        config = transformers.LlamaConfig(
            **SMALL, vocab_size=20, max_position_embeddings=16, tie_word_embeddings=name == "base"
        )
        return transformers.LlamaForCausalLM(config)

    folder = save_zoo(tmp_path_factory.mktemp("language"), make)
    tokenizer().save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    def make(name):
        labels = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(**SMALL, vocab_size=20, max_position_embeddings=16, num_labels=3, **labels)
        )

    folder = save_zoo(tmp_path_factory.mktemp("classifiers"), make)
    tokenizer().save_pretrained(folder / "base")
    return folder


def one_by_one(model, texts, window):
    """Return 1 / perplexity, from a run of the model for each window alone."""
    logs = []
    read = tokenizer()
    for text in texts:
        tokens = read(text)["input_ids"]
        for start in range(0, len(tokens), window):
            part = tokens[start : start + window]
            with torch.no_grad():
                found = model(torch.tensor([part])).logits[0].double().log_softmax(1)
            logs += [float(found[place, token]) for place, token in enumerate(part[1:])]
    return math.exp(np.mean(logs))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_perplexity_is_that_of_the_model_that_a_merge_in_files_loads_as(language_models, tmp_path, batch_size):
    found = measure_merges(
        language_models, evaluate=Perplexity(TEXTS, batch_size=batch_size), methods="weight_average", device="cpu",
        scores=tmp_path / "scores.csv",
    )  # fmt: skip
    out = mergekern.merge(language_models, method="weight_average", output=tmp_path / "merged")
    load = transformers.LlamaForCausalLM.from_pretrained
    expected = [one_by_one(load(out), TEXTS[task], 16) for task in TEXTS]
    row = found.scores.iloc[0]
    np.testing.assert_allclose([row["inverse_perplexity_a"], row["inverse_perplexity_b"]], expected, rtol=1e-5)
    assert row["inverse_perplexity"] == pytest.approx(np.mean(expected), rel=1e-5)
    own, base = ([one_by_one(load(language_models / name), TEXTS[task], 16) for name, task in pairs] for pairs in
                 ([("first", "first"), ("second", "second")], [("base", "first"), ("base", "second")]))  # fmt: skip
    np.testing.assert_allclose(found.models["own_accuracy"], own, rtol=1e-5)
    np.testing.assert_allclose(found.models["base_accuracy"], base, rtol=1e-5)
    assert mergekern.model_scores(["first", "second"], tmp_path / "models.csv").notna().all(axis=None)


def test_perplexity_as_a_command_with_one_file_for_all_models(language_models, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS["second"]))
    line = [
        "measure",
        tmp_path / "scores.csv",
        "--zoo",
        language_models,
        "--evaluate",
        "perplexity",
        "--methods",
        "ties",
    ]
    result = CliRunner().invoke(main, [*map(str, line), "--texts", str(tmp_path / "texts.jsonl")])
    assert result.exit_code == 0, result.output
    expected = one_by_one(transformers.LlamaForCausalLM.from_pretrained(language_models / "first"), TEXTS["second"], 16)
    assert pd.read_csv(tmp_path / "models.csv")["own_accuracy"][0] == pytest.approx(expected, rel=1e-5)
    assert pd.read_csv(tmp_path / "scores.csv")["inverse_perplexity"].between(0, 1).all()
    for options, said in [
        ([], "--evaluate perplexity needs --texts"),
        (["--texts", tmp_path / "none.jsonl"], "no such file"),
        (["--data", tmp_path], "--data is of use with --evaluate accuracy"),
    ]:
        result = CliRunner().invoke(main, [str(each) for each in (*line, *options)])
        assert said in result.output


def test_accuracy_on_texts(classifiers, tmp_path):
    names, texts = ["red", "green", "blue"], [text for of_task in TEXTS.values() for text in of_task]
    rows = [{"text": text, "label": names[place % 3]} for place, text in enumerate(texts)]
    for task in ("first", "second"):
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measure_merges(classifiers, evaluate=Accuracy(tmp_path, batch_size=2), methods="ties", device="cpu")
    model = transformers.BertForSequenceClassification.from_pretrained(classifiers / "first").eval()
    read = tokenizer()
    with torch.no_grad():
        told = [
            int(model(**read(t, truncation=True, max_length=16, return_tensors="pt")).logits.argmax()) for t in texts
        ]
    assert found.models["own_accuracy"][0] == np.mean([told[place] == place % 3 for place in range(len(texts))])
    assert not found.failures
    rows[0]["label"] = "violet"
    (tmp_path / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measure_merges(classifiers, evaluate=Accuracy(tmp_path), methods="ties", device="cpu")
    assert (
        "'violet' is no number of a class, nor a name of the model's: red, green, blue" in found.failures["model first"]
    )


def test_accuracy_on_images(tmp_path):
    from PIL import Image

    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=2)
    zoo = save_zoo(tmp_path / "zoo", lambda name: transformers.ViTForImageClassification(config))
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(zoo / "base")
    (tmp_path / "data").mkdir()
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(5)]
    for number, image in enumerate(images):
        image.save(tmp_path / "data" / f"{number}.png")
    table = pd.DataFrame({"image": [f"{number}.png" for number in range(5)], "label": [0, 1, 0, 1, 1]})
    table.to_csv(tmp_path / "data" / "all.csv", index=False)
    found = measure_merges(zoo, evaluate=Accuracy(tmp_path / "data" / "all.csv"), methods="ties", device="cpu")
    model = transformers.ViTForImageClassification.from_pretrained(zoo / "first").eval()
    with torch.no_grad():
        told = [int(model(**processor(image, return_tensors="pt")).logits.argmax()) for image in images]
    assert found.models["own_accuracy"][0] == np.mean(np.equal(told, table["label"]))
    table["image"] = "lost.png"
    table.to_csv(tmp_path / "data" / "all.csv", index=False)
    with pytest.raises(EvaluationError, match=r"no image .*lost\.png"):
        measure_merges(zoo, evaluate=Accuracy(tmp_path / "data" / "all.csv"), methods="ties")


def test_accuracy_on_tensors_with_and_without_a_head(digits_zoo, tmp_path):
    for task in ("left", "down"):
        inputs, labels = samples(task, held_out=True)
        save_file({"inputs": inputs.contiguous(), "labels": labels.contiguous()}, tmp_path / f"{task}.safetensors")
    zoo = {name: digits_zoo / f"{name}.safetensors" for name in ("left", "down")}
    how = {"base": digits_zoo / "base.safetensors", "methods": ["ties", "tsv"], "device": "cpu"}
    expected = measure_merges(zoo, evaluate=accuracy, **how).scores
    found = measure_merges(zoo, evaluate=Accuracy(tmp_path), model=Network, **how).scores
    pd.testing.assert_frame_equal(found, expected)
    # The same network with its second layer as the head of each task, for the base's second layer.
    second = load_file(digits_zoo / "base.safetensors")
    for task in ("left", "down"):
        data = load_file(tmp_path / f"{task}.safetensors")
        head = {"head.weight": second["second.weight"], "head.bias": second["second.bias"]}
        save_file(data | head, tmp_path / f"{task}.safetensors")
    bodies = {
        name: {key: tensor for key, tensor in load_file(path).items() if "first" in key} for name, path in zoo.items()
    }
    base = {key: tensor for key, tensor in second.items() if "first" in key}

    def body():
        made = torch.nn.Sequential()
        made.first = torch.nn.Linear(64, 24)
        made.relu = torch.nn.ReLU()
        return made

    found = measure_merges(bodies, base, evaluate=Accuracy(tmp_path), model=body, methods="ties", device="cpu").models
    for row in found.itertuples():
        assert row.own_accuracy == float(accuracy(bodies[row.model] | second | bodies[row.model], row.model))


def test_samples_for_tests_count_where_a_file_has_them(tmp_path):
    tests = {"inputs": torch.ones(3, 2), "inputs.mask": torch.ones(3, 1), "labels": torch.arange(3)}
    head = {"head.weight": torch.ones(3, 2), "head.bias": torch.zeros(3)}
    metrics = {
        "inputs": torch.zeros(4, 2),
        "inputs.mask": torch.zeros(4, 1),
        "labels": torch.zeros(4),
        "inputs_2": torch.ones(1),
    }
    save_file(
        metrics | {f"test.{name}": values for name, values in tests.items()} | head, tmp_path / "task.safetensors"
    )
    found = read_tensors(tmp_path / "task.safetensors")
    assert found.keys() == (tests | head).keys()
    assert all(torch.equal(found[name], values) for name, values in (tests | head).items())


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("left.jsonl", "{", "cannot be read"),
        ("left.jsonl", '{"text": "x"}', "no 'label'"),
        ("left.csv", "label,words\n1,x\n", "have a text or an image"),
        ("left.csv", "label,text\n", "has no example"),
        ("left.safetensors", "x", "not a readable safetensors"),
        ("lefft.csv", "label,text\n1,x\n", "nothing for the task 'left' .did you mean 'lefft'."),
        ("left.zip", "", "no file in it is of examples"),
    ],
)
def test_data_that_cannot_be_used(digits_zoo, tmp_path, file, content, said):
    (tmp_path / file).write_text(content)
    zoo = {"left": digits_zoo / "left.safetensors", "down": digits_zoo / "down.safetensors"}
    with pytest.raises(EvaluationError, match=said):
        measure_merges(
            zoo, digits_zoo / "base.safetensors", evaluate=Accuracy(tmp_path), methods="ties", model=Network,
            tasks={"down": "left"},
        )  # fmt: skip


def test_a_module_is_needed_and_cannot_be_built(digits_zoo):
    with pytest.raises(EvaluationError, match="this evaluator runs a module: give the function"):
        measure_merges(digits_zoo, evaluate=Harness(["arc_easy"]), methods="ties")


def test_the_harness_says_how_to_install_it(language_models, tmp_path):
    line = [
        "measure",
        tmp_path / "s.csv",
        "--zoo",
        language_models,
        "--methods",
        "ties",
        "--evaluate",
        "lm-eval:arc_easy",
    ]
    result = CliRunner().invoke(main, [str(each) for each in line])
    assert result.exit_code == 1
    assert 'pip install "mergekern[lm-eval]"' in result.output
    assert not list(tmp_path.iterdir())


def test_the_metric_of_a_task_of_the_harness():
    of_task = {"alias": "arc_easy", "acc,none": 0.7, "acc_stderr,none": 0.01, "acc_norm,none": 0.6}
    found = {"results": {"arc_easy": of_task}, "higher_is_better": {"arc_easy": {"acc": True, "acc_norm": True}}}
    assert Harness(["arc_easy"])._chosen(found, "arc_easy") == 0.7
    assert Harness(["tasks/easy.yaml"])._chosen(found, "tasks/easy.yaml") == 0.7  # the file says the name
    assert Harness(["arc_easy"], metric="acc_norm")._chosen(found, "arc_easy") == 0.6
    with pytest.raises(EvaluationError, match=r"no metric 'f1'; it has .*acc"):
        Harness(["arc_easy"], metric="f1")._chosen(found, "arc_easy")
    found["higher_is_better"]["arc_easy"] = {"acc": False}
    with pytest.raises(EvaluationError, match="no metric of which larger"):
        Harness(["arc_easy"])._chosen(found, "arc_easy")


def test_tokenizers_without_tokens_that_evaluators_need(tmp_path):
    """A decoder that classifies, by a tokenizer that pads with no token; and one that cannot end a text."""
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16, num_labels=2)
    zoo = save_zoo(tmp_path / "zoo", lambda name: transformers.GPT2ForSequenceClassification(config))
    read = tokenizer()
    read.pad_token = None
    read.save_pretrained(zoo / "base")
    texts, labels = TEXTS["first"], [0, 1, 1]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "all.csv", index=False)
    found = measure_merges(zoo, evaluate=Accuracy(tmp_path / "all.csv"), methods="ties", device="cpu")
    model = transformers.GPT2ForSequenceClassification.from_pretrained(zoo / "first").eval()
    with torch.no_grad():
        told = [int(model(**read(text, return_tensors="pt")).logits.argmax()) for text in texts]
    assert found.models["own_accuracy"][0] == np.mean(np.equal(told, labels))
    read.unk_token = None
    with pytest.raises(
        EvaluationError, match=r"no token for padding, nor one that ends a text: set tokenizer\.pad_tok"
    ):
        measure_merges(zoo, evaluate=Accuracy(tmp_path / "all.csv", processor=read), methods="ties")
    with pytest.raises(EvaluationError, match=r"no token that ends a text \(eos_token\).*--processor"):
        check_end(read)
    check_end(transformers.PreTrainedTokenizerFast(tokenizer_object=read.backend_tokenizer, eos_token="[UNK]"))


def test_perplexity_is_of_models_that_continue_a_text(classifiers, tmp_path):
    with pytest.raises(EvaluationError, match=r"a BertForSequenceClassification tells no next token: perplexity"):
        measure_merges(classifiers, evaluate=Perplexity(TEXTS), methods="ties")
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    zoo = save_zoo(tmp_path, lambda name: transformers.T5ForConditionalGeneration(config))
    with pytest.raises(EvaluationError, match="a T5ForConditionalGeneration has an encoder"):
        measure_merges(zoo, evaluate=Perplexity(TEXTS, tokenizer=tokenizer()), methods="ties")
