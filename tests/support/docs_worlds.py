"""The folders that the examples of README and docs/ suppose, with tiny models."""

import json
import shutil

import torch
from safetensors.torch import save_file

import mergekern
from tests.support import trained_zoos

NAMES = ("mnist", "svhn", "cars")
MORE = ("old_model", "one_or_seven", "prime", "seventh", "eighth", "ninth", "tenth")
# What a user would have written: a model, and a number for it.
MY_EVAL = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 8))

def my_samples(task):
    draw = torch.Generator().manual_seed(sum(map(ord, task)))
    return torch.randn(40, 1, 4, 4, generator=draw), torch.arange(40) % 8

def accuracy(model, task):
    if isinstance(model, dict):
        module = build()
        module.load_state_dict(model)
        model = module
    inputs, labels = my_samples(task)
    with torch.no_grad():
        return torch.softmax(model(inputs), 1)[torch.arange(40), labels].mean().item()
"""
RECIPE = """
merge_method: ties
base_model: base
models:
  - model: a
  - model: b
parameters: {density: 0.5, weight: 0.4}
"""


def own_code():
    """Return the names that a user's file has."""
    names = {}
    exec(compile(MY_EVAL, "my_eval.py", "exec"), names)
    return names


def encoders(folder, names=NAMES):
    """A base and encoders of images in zoo/, and what belongs to them."""
    torch.manual_seed(0)
    base = own_code()["build"]().state_dict()
    places = {name: folder / "zoo" / f"{name}.safetensors" for name in names}
    places |= {name: folder / name / "model.safetensors" for name in ("a", "b", "new")}
    for path in places.values():
        path.parent.mkdir(exist_ok=True, parents=True)
        save_file({key: value + 0.1 * torch.randn(value.shape) for key, value in base.items()}, path)
    (folder / "base").mkdir()
    for path in (
        folder / "zoo" / "base.safetensors",
        folder / "base.safetensors",
        folder / "base" / "model.safetensors",
    ):
        save_file(base, path)
    for name in ("a", "b", "base"):
        (folder / name / "config.json").write_text('{"model_type": "bert"}')
    (folder / "models").mkdir()
    for name in names[:2]:
        (folder / "models" / f"{name}.safetensors").write_bytes(places[name].read_bytes())
    (folder / "my_eval.py").write_text(MY_EVAL)
    for name in ("recipe.yml", "recipe.yaml"):
        (folder / name).write_text(RECIPE)
    return folder


def ten_encoders(folder):
    """The same with ten models, their metrics, and samples with heads."""
    encoders(folder, NAMES + MORE)
    table = mergekern.compute_all(folder / "zoo", statistics=folder / "zoo.stats")
    for name in ("metrics.parquet", "table.parquet"):
        table.save(folder / name)
    (folder / "encoder.py").write_text(MY_EVAL)
    calibration(NAMES + MORE).save(folder / "samples")
    return folder


def decided(folder):
    """The same with measured merges, and predictors that were fitted to them."""
    from mergekern.prediction import MergePredictor, plan_measurements, read_scores

    ten_encoders(folder)
    plan = list(plan_measurements(NAMES + MORE, k=20).index)
    methods, scores = ["tsv", "ties"], folder / "scores.csv"
    evaluate = own_code()["accuracy"]
    mergekern.measure_merges(folder / "zoo", evaluate=evaluate, methods=methods, pairs=plan, scores=scores)
    table = mergekern.MetricTable.load(folder / "metrics.parquet")
    for method in methods:
        MergePredictor.fit(table, read_scores(scores, method), method, "additive").save(folder / f"{method}.json")
    return folder


def matrices(folder):
    """A base and models of matrices in zoo/, with names as transformers have them."""
    draw = torch.Generator().manual_seed(0)
    (folder / "zoo").mkdir()
    for name in ("base", *NAMES):
        save_file({"layers.0.mlp.weight": torch.randn(24, 16, generator=draw)}, folder / "zoo" / f"{name}.safetensors")
    return folder


def calibration(names):
    """Samples and heads of encoders."""
    draw = torch.Generator().manual_seed(0)
    tasks = {
        name: (torch.randn(10, 1, 4, 4, generator=draw), torch.arange(10) % 3,
               (torch.randn(3, 8, generator=draw), torch.zeros(3)))
        for name in names
    }  # fmt: skip
    return mergekern.Calibration(model=own_code()["build"](), tasks=tasks, layer="1")


def classifiers(folder):
    """Folders of transformers: a body, and two classifiers with heads of their own, also beside the zoo."""
    trained_zoos.classifier_zoo(folder / "zoo", steps=4)
    for name, model in (("sst2", "first"), ("mnli", "second"), ("bert-base-uncased", "base")):
        (folder / name).symlink_to(folder / "zoo" / model)
    rows = [{"text": f"w{number} w{number + 1}", "label": number % 2} for number in range(4)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "data").mkdir()
    for name in trained_zoos.CLASSIFIERS:
        shutil.copy(folder / "texts.jsonl", folder / "data" / f"{name}.jsonl")
    return folder


def languages(folder):
    """Folders of transformers: a language model and ten that were fine-tuned from it, with texts."""
    import transformers

    trained_zoos.language_zoo(folder / "zoo", steps=1)
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "zoo" / "base")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(8):
        torch.manual_seed(number)
        tuned = {name: value + 0.02 * torch.randn(value.shape) for name, value in base.state_dict().items()}
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "zoo" / "base")
        model.load_state_dict(tuned)
        trained_zoos.save(model, folder / "zoo" / f"model_{number}")
    for path in (folder / "zoo").iterdir():
        lines = trained_zoos.patterns("first", 4, torch.Generator().manual_seed(len(path.name)))
        (texts / f"{path.name}.txt").write_text("\n".join(lines))
    return folder


def adapters(folder):
    """LoRA adapters, in adapters/ and beside it, and their base."""
    draw = torch.Generator().manual_seed(0)
    for rank, name in ((2, "math"), (3, "code"), (4, "chat")):
        factors = {"lora_A": torch.randn(rank, 20, generator=draw), "lora_B": torch.randn(30, rank, generator=draw)}
        tensors = {f"base_model.model.proj.{side}.weight": values for side, values in factors.items()}
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["proj"]}
        for place in (folder / "adapters" / name, folder / name):
            place.mkdir(parents=True)
            save_file(tensors, place / "adapter_model.safetensors")
            (place / "adapter_config.json").write_text(json.dumps(config))
    save_file({"proj.weight": torch.randn(30, 20, generator=draw)}, folder / "base.safetensors")
    return folder


def empty(folder):
    """An empty folder."""
    return folder
