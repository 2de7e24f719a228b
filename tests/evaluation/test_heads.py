"""Models with heads of their own: a task is measured with its head, and the best merge is written with each."""

import json

import pandas as pd
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import mergekern
from mergekern import Calibration, EvaluationError, MismatchError, OptionError, OutputError, best_merge, measure_merges
from mergekern.cli import main
from mergekern.evaluation import Accuracy
from tests.support import trained_zoos as trained

SMALL = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
COUNT = 30


def samples(name):
    return trained.texts_of(*trained.SIX[name], COUNT, torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return trained.six_classifiers(tmp_path_factory.mktemp("six") / "zoo")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of samples for each task, with names of labels that are the task's own."""
    folder = tmp_path_factory.mktemp("data")
    for name in trained.SIX:
        rows = [{"text": text, "label": f"{name}-{label}"} for text, label in zip(*samples(name), strict=True)]
        trained.write_samples(folder / f"{name}.jsonl", rows)
    return folder


def share(model, name):
    """Return the share of samples that a model tells right."""
    texts, labels = samples(name)
    with torch.no_grad():
        told = model(**trained.tokenizer()(texts, return_tensors="pt")).logits.argmax(dim=1)
    return (told == labels).double().mean().item()


def loaded(folder, kind="SequenceClassification"):
    model, loading = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def run(*arguments):
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_best_merge_of_classifiers_with_heads_of_their_own(zoo, data, tmp_path, caplog):
    found = tmp_path / "found"
    given = ["best", zoo, "--evaluate", "accuracy", "--data", data, "--budget", 6, "--methods", "weight_average,tsv"]
    result = run(*given, "--metrics", "stable_rank", "--out", found)
    assert result.exit_code == 0, result.output
    assert "heads of the models differ (2): classifier.bias, classifier.weight" in caplog.text
    assert "each task was measured with the head of its own model" in result.stdout
    known = pd.read_csv(found / "models.csv").set_index("model")
    base = transformers.BertModel.from_pretrained(zoo / "base").state_dict()
    for name in trained.SIX:
        model = loaded(zoo / name)
        assert known["own_accuracy"][name] == share(model, name)
        model.bert.load_state_dict(base)
        assert known["base_accuracy"][name] == share(model, name)
    rows = pd.read_csv(found / "scores.csv")
    assert len(rows) == 6
    best = rows.loc[rows["accuracy"].idxmax()]
    pair = (best["model_a"], best["model_b"])
    for name, score in zip(pair, best[["accuracy_a", "accuracy_b"]], strict=True):
        folder = found / "merged" / best["method"] / "+".join(pair) / name
        assert share(loaded(folder), name) == score
        assert loaded(folder).config.label2id == {f"{name}-{n}": n for n in range(trained.SIX[name][0])}
        assert transformers.AutoTokenizer.from_pretrained(folder)("w3").input_ids
    # They are merges that know their tasks, so that the numbers above tell one head from another.
    assert best["accuracy"] > known["base_accuracy"].max() + 0.2
    text = (found / "report.html").read_text()
    assert f"merged/{best['method']}/{'+'.join(pair)}" in text
    assert "heads, which take no part in metrics (2)" in " ".join(
        mergekern.MetricTable.load(found / "metrics.parquet").notes
    )
    with pytest.raises(OutputError, match="search with other heads"):
        best_merge(
            zoo, evaluate=Accuracy(data), out=found, heads="reviews", methods=["weight_average", "tsv"], budget=6
        )
    assert run(*given, "--metrics", "stable_rank", "--out", found).stdout == result.stdout


def test_a_stopped_run_goes_on_to_the_same_bytes(zoo, tmp_path):
    class Stop(BaseException):
        pass

    def evaluate(model, task):
        calls.append(task)
        assert model.config.num_labels == trained.SIX[task][0]
        if len(calls) == stop:
            raise Stop
        return share(model, task)

    def measure(folder):
        folder.mkdir(exist_ok=True)
        return measure_merges(zoo, evaluate=evaluate, methods="ties", pairs=pairs, scores=folder / "scores.csv")

    pairs = [("topics", "reviews"), ("tones", "topics")]
    calls, stop = [], 0
    whole = measure(tmp_path / "whole")
    assert len(calls) == 6 + 6 + 4
    calls, stop = [], 15
    with pytest.raises(Stop):
        measure(tmp_path / "stopped")
    calls, stop = [], 0
    measure(tmp_path / "stopped")
    assert calls == ["tones", "topics"]
    for file in ("scores.csv", "models.csv"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    for row in whole.scores.itertuples():
        pair = [zoo / row.model_a, zoo / row.model_b]
        mergekern.merge(pair, zoo / "base", "ties", heads="each", output=tmp_path / row.model_a)
        found = [share(loaded(tmp_path / row.model_a / path.name), path.name) for path in pair]
        assert [row.accuracy_a, row.accuracy_b] == found


def test_one_head_for_all_tasks_and_methods_that_run_the_models(zoo):
    heads, pair = [], {name: zoo / name for name in ("topics", "tones")}

    def evaluate(model, task):
        heads.append((model.config.num_labels, task))
        return 0.5

    how = {"base": zoo / "base", "evaluate": evaluate, "tasks": ["x"]}
    found = measure_merges(pair, heads="tones", methods="ties", **how)
    assert heads == [(3, "x")] * 4  # the base, two models, a merge
    heads.clear()
    calibration = Calibration.for_sequence_classification(pair, ["w1 w2 w3", "w9 w4"], base=zoo / "base")
    assert not found.failures
    measure_merges(pair, methods="regmean", calibration=calibration, **how)
    assert heads == [(4, "x"), (3, "x")] * 3


def test_images_and_adapters_and_tokens(tmp_path, zoo):
    pictures = trained.image_zoo(tmp_path / "pictures", steps=10)
    (tmp_path / "data").mkdir()
    for name, channel in trained.CHANNELS.items():
        images, labels = trained.images_of(channel, 40, torch.Generator().manual_seed(3))
        save_file({"inputs.pixel_values": images, "labels": labels}, tmp_path / "data" / f"{name}.safetensors")
    found = measure_merges(pictures, evaluate=Accuracy(tmp_path / "data"), methods="weight_average").scores.iloc[0]
    mergekern.merge(pictures, method="weight_average", heads="each", output=tmp_path / "merged")
    for name, score in zip(trained.CHANNELS, found[["accuracy_a", "accuracy_b"]], strict=True):
        of_task = load_file(tmp_path / "data" / f"{name}.safetensors")
        with torch.no_grad():
            told = loaded(tmp_path / "merged" / name, "ImageClassification")(of_task["inputs.pixel_values"]).logits
        assert (told.argmax(1) == of_task["labels"]).double().mean() == score
    for name in ("topics", "tones"):
        trained.classifier_adapter(zoo / "base", tmp_path / "adapters" / name, *trained.SIX[name], steps=2)
    found = measure_merges(tmp_path / "adapters", zoo / "base", evaluate=share, methods="ties").scores.iloc[0]
    mergekern.merge(tmp_path / "adapters", zoo / "base", method="ties", heads="each", output=tmp_path / "of_adapters")
    for name, score in zip(("tones", "topics"), found[["accuracy_a", "accuracy_b"]], strict=True):
        assert share(loaded(tmp_path / "of_adapters" / name), name) == score
    config = transformers.BertConfig(vocab_size=20, **SMALL)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "tokens" / "base")
    for labels, dtype in ((3, torch.float32), (5, torch.bfloat16)):
        config.num_labels = labels
        model = transformers.BertForTokenClassification(config).to(dtype)
        model.save_pretrained(tmp_path / "tokens" / f"of_{labels}")

    def evaluate(model, task):
        assert model.dtype == torch.float32  # the base's, as in the files that merge writes
        return float(task == f"of_{model.config.num_labels}")

    found = measure_merges(tmp_path / "tokens", evaluate=evaluate, methods="ties")
    assert found.scores["accuracy"].tolist() == [1.0]
    assert found.models[["own_accuracy", "base_accuracy"]].eq(1.0).all(axis=None)


def test_texts_are_read_by_the_tokenizer_of_the_model_whose_head_it_is(tmp_path):
    read = trained.tokenizer()
    config = transformers.BertConfig(vocab_size=27, max_position_embeddings=8, **SMALL)
    for labels, name in enumerate(("base", "a", "b"), 2):
        config.num_labels = labels
        model = transformers.BertForSequenceClassification(config)
        if name == "b":
            read.backend_tokenizer.pre_tokenizer = None  # a text is one word, which is unknown
        model.save_pretrained(tmp_path / "zoo" / name)
        read.save_pretrained(tmp_path / "zoo" / name)
    lengths = {}

    class Lengths(Accuracy):
        def __call__(self, model, task):
            lengths[task] = self._samples[task].inputs(0, 1, None)["input_ids"].shape[1]
            return super().__call__(model, task)

    pd.DataFrame({"text": ["w1 w2 w3"], "label": [0]}).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({"text": ["w1 w2 w3"], "label": [0]}).to_csv(tmp_path / "b.csv", index=False)
    measure_merges(tmp_path / "zoo", evaluate=Lengths(tmp_path), methods="ties")
    assert lengths == {"a": 3, "b": 1}
    for path in (tmp_path / "zoo" / "b").glob("tokenizer*"):
        path.unlink()
    measure_merges(tmp_path / "zoo", evaluate=Lengths(tmp_path), methods="ties")
    assert lengths == {"a": 3, "b": 3}  # the base's


# --- plain files, and what is decided where nothing is said

BODY = {f"layers.{n}.{part}.weight": torch.ones(3, 3) for n in range(2) for part in "abcd"}


def plain(value, rows=None):
    head = {} if rows is None else {"score.weight": torch.full((rows, 3), float(rows))}
    return {name: values * value for name, values in BODY.items()} | head


def rows_and_body(state, task):
    asked.append((task, len(state.get("score.weight", ()))))
    return float(state["layers.0.a.weight"][0, 0])


asked: list[tuple[str, int]] = []


@pytest.fixture(autouse=True)
def nothing_asked():
    asked.clear()


def test_state_dicts_have_the_head_of_the_task(tmp_path):
    models = {"a": plain(1.0, 2), "b": plain(3.0, 4)}
    found = measure_merges(models, plain(0.0), evaluate=rows_and_body, methods="weight_average")
    assert asked == [("a", 2), ("b", 4)] * 3
    assert found.scores["accuracy"].tolist() == [2.0]
    assert found.models["own_accuracy"].tolist() == [1.0, 3.0]
    assert found.models["base_accuracy"].tolist() == [0.0, 0.0]
    asked.clear()
    measure_merges(models, plain(0.0, 5), evaluate=rows_and_body, methods="ties", heads="base")
    assert asked == [("a", 5), ("b", 5), ("a", 5), ("b", 5), ("a", 5), ("b", 5)]
    asked.clear()
    measure_merges(models, plain(0.0, 5), evaluate=rows_and_body, methods="ties", on_mismatch="skip")
    assert set(asked) == {("a", 2), ("b", 4)}
    with pytest.raises(MismatchError, match=r"score\.weight"):
        measure_merges(models, plain(0.0), evaluate=rows_and_body, methods="ties", heads="merged")
    with pytest.raises(MismatchError, match=r"layers\.0\.a\.weight"):  # bodies that do not match are no heads
        measure_merges(models, plain(0.0) | {"layers.0.a.weight": torch.ones(3, 4)}, evaluate=rows_and_body)
    for heads, said in [("c", "'each', 'base' or the name of a model, not 'c'"), (3, "not 3")]:
        with pytest.raises(OptionError, match=said):
            best_merge(models, plain(0.0), evaluate=rows_and_body, heads=heads, out=tmp_path / "out", methods=["ties"])
    assert not (tmp_path / "out").exists()


def test_heads_of_one_shape_are_merged_unless_their_labels_differ(tmp_path, caplog):
    def evaluate(state, task):
        return float(state["classifier.bias"][0])

    config = transformers.BertConfig(vocab_size=20, num_labels=3, **SMALL)
    for value, name in enumerate(("base", "a", "b")):
        model = transformers.BertForSequenceClassification(config)
        model.classifier.bias.data.fill_(value)
        model.save_pretrained(tmp_path / name)
    how = {"evaluate": evaluate, "methods": "weight_average", "model": "state_dict"}
    assert measure_merges(tmp_path, **how).scores[["accuracy_a", "accuracy_b"]].to_numpy().tolist() == [[1.5, 1.5]]
    assert not caplog.text
    said = json.loads((tmp_path / "b" / "config.json").read_text())
    said["id2label"] = {"0": "red", "1": "green", "2": "blue"}
    (tmp_path / "b" / "config.json").write_text(json.dumps(said))
    found = measure_merges(tmp_path, **how)
    assert found.scores[["accuracy_a", "accuracy_b"]].to_numpy().tolist() == [[1.0, 2.0]]
    assert 'heads="merged" (--heads merged) merges them' in caplog.text
    found = measure_merges(tmp_path, heads="merged", **how)
    assert found.scores["accuracy"].tolist() == [1.5]
    found = measure_merges(tmp_path, head_tensors="classifier.weight", **how)
    assert found.scores["accuracy"].tolist() == [1.5]


def test_own_modules_are_built_for_each_head(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self, rows):\n"
        "        super().__init__()\n"
        "        self.body, self.score = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, rows, bias=False)\n"
        "def build(name):\n"
        "    return Own({'a': 2, 'b': 4}[name])\n"
        "def score(model, task):\n"
        "    return float(model.score.weight.shape[0])\n"
    )
    for name, rows in {"base": 3, "a": 2, "b": 4}.items():
        save_file({"body.weight": torch.eye(3), "score.weight": torch.ones(rows, 3)}, tmp_path / f"{name}.safetensors")
    own = tmp_path / "own.py"
    given = ["measure", tmp_path / "s.csv", "--zoo", tmp_path, "--evaluate", f"{own}:score", "--methods", "ties"]
    result = run(*given, "--model-fn", f"{own}:build", "--heads", "each", "--head-tensors", "score.*")
    assert result.exit_code == 0, result.output
    row = pd.read_csv(tmp_path / "s.csv").iloc[0]
    assert [row["accuracy_a"], row["accuracy_b"]] == [2.0, 4.0]
    with pytest.raises(MismatchError, match="takes the name of a model may build one for each head"):
        measure_merges(tmp_path, evaluate=lambda model, task: 1.0, methods="ties", model=torch.nn.Linear(3, 3))


def test_a_head_without_configuration_is_no_module(zoo, tmp_path):
    save_file(load_file(zoo / "topics" / "model.safetensors"), tmp_path / "topics.safetensors")
    models = [zoo / "tones", tmp_path / "topics.safetensors"]
    with pytest.raises(EvaluationError, match=r"no config\.json of transformers beside the weights of 'topics'"):
        measure_merges(models, zoo / "base", evaluate=rows_and_body, methods="ties", scores=tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_merging_heads_is_offered_only_where_they_match(caplog):
    models = {name: {"body.w": torch.ones(2, 2), "head.w": torch.ones(n, 2)} for n, name in enumerate("ab", 3)}
    measure_merges(models, {"body.w": torch.zeros(2, 2)}, evaluate=lambda state, task: 0.5, methods="weight_average")
    assert 'own (heads="each")' in caplog.text
    assert "merges them" not in caplog.text
