"""Zoos of models that were trained to tasks: measured, merged to folders, loaded again, and able to do their tasks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

import mergekern
from mergekern import Calibration, CalibrationError
from mergekern.cli import main
from tests.support import trained_zoos as trained

STUDY = len(mergekern.CATALOGUE)


def zoo_of(make):
    @pytest.fixture(scope="module")
    def zoo(tmp_path_factory):
        torch.set_num_threads(1)
        return make(tmp_path_factory.mktemp("zoo"))

    return zoo


classifiers, languages = zoo_of(trained.classifier_zoo), zoo_of(trained.language_zoo)
adapters = zoo_of(lambda folder: trained.language_zoo(folder, lora=True))
translators, pictures = zoo_of(trained.translating_zoo), zoo_of(trained.image_zoo)


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(7)


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def loaded(folder, auto):
    """Return a model, which must find every tensor that it needs in its folder, and no other."""
    model, loading = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def accuracy(folder, name, draw):
    texts, labels = trained.texts_of(*trained.CLASSIFIERS[name], 60, draw)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt")
    with torch.no_grad():
        told = loaded(folder, "AutoModelForSequenceClassification")(**tokens).logits.argmax(dim=1)
    return (told == labels).float().mean().item()


# --- classifiers of texts


@pytest.fixture(scope="module")
def measured(classifiers, tmp_path_factory):
    """The table of all metrics and probes by the command line alone, the calibration's folder, and its samples."""
    folder, draw = tmp_path_factory.mktemp("runs"), torch.Generator().manual_seed(5)
    samples = {name: trained.texts_of(*how, 12, draw) for name, how in trained.CLASSIFIERS.items()}
    rows = [
        {"text": text, "label": f"{name}-{label}", "model": name}
        for name, (texts, labels) in samples.items()
        for text, label in zip(texts, labels.tolist(), strict=True)
    ]
    path = trained.write_samples(folder / "samples.jsonl", rows)
    said = run("calibrate", classifiers, "--texts", path, "--out", folder / "calibration")
    assert "Calibration(TransformersModel(kind='sequence-classification'), 2 tasks, 24 samples" in said
    run(
        "metrics", classifiers, "--calibration", folder / "calibration", "--on-mismatch", "skip", "--merge-probes",
        "weight_average,ties", "--direct-probes", "--out", folder / "t.json",
    )  # fmt: skip
    return mergekern.MetricTable.load(folder / "t.json"), folder / "calibration", samples


def test_all_metrics_and_probes_by_the_command_line(measured):
    table, _, _ = measured
    values = table.to_pandas()
    assert len(set(mergekern.CATALOGUE) & set(values)) == STUDY
    assert sum(name.startswith(("solo", "direct")) for name in values) == 2 * len(mergekern.MERGE_PROBES)
    assert np.isfinite(values.to_numpy()).all()


def test_gradients_are_those_of_the_models_themselves(measured, classifiers):
    table, _, samples = measured
    gradients = []
    for name, (texts, labels) in samples.items():
        model = loaded(classifiers / name, "AutoModelForSequenceClassification")
        tokens = transformers.AutoTokenizer.from_pretrained(classifiers / name)(texts, return_tensors="pt")
        total = 0
        for start in (0, 8):
            rows = slice(start, start + 8)
            model.zero_grad()
            model(**{key: values[rows] for key, values in tokens.items()}, labels=labels[rows]).loss.backward()
            body = [p.grad.double().flatten() for p in model.base_model.parameters() if p.grad is not None]
            total = total + torch.cat(body)
        gradients.append(total / len(labels))
    cosine = torch.cosine_similarity(*gradients, dim=0).item()
    values = table.to_pandas().iloc[0]
    assert values["encoder_gradient_dot_product"] == pytest.approx((gradients[0] @ gradients[1]).item(), rel=1e-4)
    assert values["encoder_gradient_cosine_similarity"] == pytest.approx(cosine, rel=1e-4)


def test_a_folder_is_whole(measured, classifiers):
    _, folder, samples = measured
    texts = {name: texts for name, (texts, _) in samples.items()}
    labels = {name: labels for name, (_, labels) in samples.items()}
    made = Calibration.for_sequence_classification(classifiers, texts, labels)
    again = Calibration.from_folder(folder)
    module = made.build()
    assert again.content_hash(again.build()) == made.content_hash(module) is not None
    predicted = Calibration.for_sequence_classification(classifiers, texts)
    assert all(torch.equal(predicted.tasks[name].labels, labels[name]) for name in labels)  # they are well trained
    other = dataclasses.replace(made, batch_size=4)
    assert other.content_hash(module) != made.content_hash(module)
    assert repr(made).count("\n") == 0
    with pytest.raises(CalibrationError, match="which it builds; give no model"):
        Calibration.from_folder(folder, module)
    said = json.loads((folder / "calibration.json").read_text())
    assert said["config"].keys().isdisjoint({"auto_map", "_attn_implementation"})


def test_classifiers_do_their_tasks_after_the_merge(classifiers, draw, tmp_path):
    run(
        "merge",
        classifiers,
        "--method",
        "task_arithmetic",
        "-o",
        "scale=0.7",
        "--heads",
        "each",
        "--out",
        tmp_path / "m",
    )
    swapped = mergekern.merge(classifiers, method="task_arithmetic", heads="first", output=tmp_path / "first")
    for name, (classes, _) in trained.CLASSIFIERS.items():
        assert accuracy(tmp_path / "m" / name, name, draw) > 0.85 > 1.5 / classes
    assert loaded(swapped, "AutoModelForSequenceClassification").config.id2label == {0: "first-0", 1: "first-1"}


def test_classifiers_that_are_adapters(classifiers, draw, tmp_path):
    for name, (classes, first) in trained.CLASSIFIERS.items():
        trained.classifier_adapter(classifiers / "base", tmp_path / "zoo" / name, classes, first)
    mergekern.merge(tmp_path / "zoo", classifiers / "base", "weight_average", heads="each", output=tmp_path / "m")
    for name, (classes, _) in trained.CLASSIFIERS.items():
        model = loaded(tmp_path / "m" / name, "AutoModelForSequenceClassification")
        assert model.config.num_labels == classes
        assert accuracy(tmp_path / "m" / name, name, draw) > 1.3 / classes
    calibration = Calibration.for_sequence_classification(
        tmp_path / "zoo", ["w1 w2", "w9 w13", "w22 w3"], base=classifiers / "base"
    )
    table = mergekern.compute_all(
        tmp_path / "zoo", classifiers / "base", calibration=calibration, on_mismatch="skip",
        metrics=["activation", "gradient"],
    )  # fmt: skip
    assert np.isfinite(table.to_pandas().to_numpy()).all()


# --- language models


def loss(folder, batch, auto="AutoModelForCausalLM"):
    with torch.no_grad():
        return loaded(folder, auto)(**batch).loss.item()


@pytest.mark.parametrize("kind", ["languages", "adapters"])
def test_language_models(kind, request, draw, tmp_path):
    zoo, tokens = request.getfixturevalue(kind), trained.tokenizer()
    rows = [{"text": text, "model": n} for n in trained.STRIDES for text in trained.patterns(n, 8, draw)]
    path = trained.write_samples(tmp_path / "texts.jsonl", rows)
    run("calibrate", zoo, "--texts", path, "--task", "causal-lm", "--out", tmp_path / "c")
    run(
        "metrics", zoo, "--calibration", tmp_path / "c", "--merge-probes", "weight_average", "--direct-probes",
        "--top-k", 4, "--out", tmp_path / "t.json",
    )  # fmt: skip
    values = mergekern.MetricTable.load(tmp_path / "t.json").to_pandas()
    assert len(set(mergekern.CATALOGUE) & set(values)) == STUDY
    # A matrix that an adapter of rank 8 changes has no last singular vectors of its own.
    undefined = {name for name in values if values[name].isna().any()}
    assert undefined == ({n for n in values if n.endswith("bottom_k")} if kind == "adapters" else set())
    assert not any("accuracy" in name for name in values)
    merged = mergekern.merge(zoo, method="weight_average", output=tmp_path / "m")
    for name in trained.STRIDES:
        batch = trained._next(tokens, name, draw)
        before = loss(zoo / "base", batch)
        assert loss(merged, batch) < 0.6 * before
    model = loaded(merged, "AutoModelForCausalLM")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tasks = Calibration.from_folder(tmp_path / "c").tasks
    batches = {name: {**task.inputs, "labels": task.labels} for name, task in tasks.items()}
    if kind == "languages":
        worse = [loss(merged, batch) - loss(zoo / name, batch) for name, batch in batches.items()]
        assert values["direct_loss_mean[weight_average]"].iloc[0] == pytest.approx(np.mean(worse), rel=1e-4)


def test_models_with_encoder_and_decoder(translators, draw, tmp_path):
    pairs = {name: trained.translated(name, 8, draw) for name in trained.SHIFTS}
    calibration = Calibration.for_seq2seq_lm(translators, pairs)
    calibration.save(tmp_path / "c")
    table = mergekern.compute_all(translators, calibration=Calibration.from_folder(tmp_path / "c"))
    assert len(table.metrics) == STUDY
    assert np.isfinite(table.to_pandas().to_numpy()).all()
    merged = mergekern.merge(translators, method="weight_average", output=tmp_path / "m")
    for name in trained.SHIFTS:
        batch = trained._pairs(trained.tokenizer(), name, draw)
        kind = "AutoModelForSeq2SeqLM"
        assert loss(merged, batch, kind) < 0.7 * loss(translators / "base", batch, kind)


# --- classifiers of images


def test_classifiers_of_images(pictures, draw, tmp_path):
    images, labels = (
        {name: trained.images_of(c, 12, draw)[part] for name, c in trained.CHANNELS.items()} for part in (0, 1)
    )
    calibration = Calibration.for_image_classification(pictures, images, labels)
    calibration.save(tmp_path / "c")
    assert calibration.input_layer is None
    run("metrics", pictures, "--calibration", tmp_path / "c", "--on-mismatch", "skip", "--out", tmp_path / "t.json")
    values = mergekern.MetricTable.load(tmp_path / "t.json").to_pandas()
    assert len(values.columns) == STUDY
    assert np.isfinite(values.to_numpy()).all()
    paths = mergekern.merge_all(pictures, methods="weight_average", heads="each", output=tmp_path / "all")
    for path in paths:
        model = loaded(path, "AutoModelForImageClassification")
        images, labels = trained.images_of(trained.CHANNELS[path.name], 80, draw)
        with torch.no_grad():
            told = model(images).logits.argmax(dim=1)
        assert (told == labels).float().mean() > 0.7
        assert model.config.id2label[2] == f"{path.name}-2"


def test_files_of_images_need_a_preprocessor(pictures, tmp_path):
    from PIL import Image

    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_resize": True}
    for index in range(4):
        colours = np.full((9, 11, 3), 60 * index, dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / f"{index}.png")
    rows = [{"image": f"{index}.png", "label": index} for index in range(4)]
    path = trained.write_samples(tmp_path / "samples.jsonl", rows)
    given = ["calibrate", pictures, "--images", path, "--out", tmp_path / "c"]
    result = CliRunner().invoke(main, [str(each) for each in given])
    assert result.exit_code == 1
    assert "no preprocessor of images in" in result.output
    (pictures / "base/preprocessor_config.json").write_text(json.dumps(processor))
    try:
        run(*given)
    finally:
        (pictures / "base/preprocessor_config.json").unlink()
    task = Calibration.from_folder(tmp_path / "c").tasks["first"]
    assert task.inputs["pixel_values"].shape == (4, 3, 8, 8)
    assert task.labels.tolist() == [0, 1, 2, 3]


# --- what is refused


WRONG = {
    "one text": (dict(texts="a text"), "texts are several"),
    "no texts": (dict(texts=[]), "texts are strings"),
    "an unknown label": (dict(labels=["first-0", "other"]), "no label is called 'other'"),
    "a label outside": (dict(labels=[0, 2]), "label 2 of sample 1 is outside the head's 2 classes"),
    "too few labels": (dict(labels=[0]), "the samples do not match"),
    "samples of one model": (dict(texts={"first": ["w1", "w2"]}), "no samples for 'second'"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_wrong_samples_are_refused(given, message, classifiers):
    given = {"texts": ["w1", "w2"], "labels": None, **given}
    with pytest.raises(CalibrationError, match=message):
        Calibration.for_sequence_classification(classifiers, **given)


LINES = {
    "no JSON": ("{", "line 1: no JSON"), "an unknown word": ('{"txt": "a"}', "line 1: a sample is an object of"),
    "nothing": ("", "holds no samples"), "an unknown model": ('{"text": "w1", "model": "x"}', "'x', which is no model"),
    "no text": ('{"label": 1}', "has 'text', a string"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_wrong_lines_are_refused(line, message, classifiers, tmp_path):
    (tmp_path / "s.jsonl").write_text(line)
    given = ["calibrate", classifiers, "--samples", tmp_path / "s.jsonl", "--out", tmp_path / "c"]
    result = CliRunner().invoke(main, [str(each) for each in given])
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "c").exists()


def test_folders_that_are_no_models_of_the_library(tmp_path):
    state = {"w": torch.ones(3, 3)}
    with pytest.raises(CalibrationError, match=r"no config\.json of transformers"):
        Calibration.for_causal_lm({"a": state, "b": state}, ["a b"], state)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/kept.txt").write_text("mine")
    trained.write_samples(tmp_path / "s.jsonl", [{"text": "w1"}])
    given = ["calibrate", tmp_path, "--samples", tmp_path / "s.jsonl", "--out", tmp_path / "x"]
    result = CliRunner().invoke(main, [str(each) for each in given])
    assert "is there and is no calibration" in result.output
