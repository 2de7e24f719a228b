"""Small valid files of every kind that a command reads."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import mergekern
from mergekern.cli import main
from tests.fuzz.running import silent

SHAPES = {"layer.0.weight": (6, 4), "layer.0.bias": (6,), "layer.1.weight": (3, 6)}
MODELS = tuple("abcdef")
# What builds the model that `metrics --calibration` runs.
MODEL = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3, bias=False))

    def forward(self, inputs):
        return self.layer(inputs)

def build():
    return Model()
"""
# What `measure` evaluates models by: no task is known to it, and any weights have a number.
EVALUATOR = """
def score(state, task):
    return float(state["layer.1.weight"].double().abs().mean() / 10) + ord(task[0]) / 1000
"""
# Layers of one model, then layers merged of two.
RECIPE = """
merge_method: linear
slices:
  - sources:
      - model: zoo/a.safetensors
        layer_range: [0, 2]
        parameters: {weight: [1, 0.5]}
  - sources:
      - model: zoo/a.safetensors
        layer_range: [0, 1]
      - model: zoo/e.safetensors
        layer_range: [0, 1]
parameters:
  weight: [{filter: bias, value: 1e-1}, {value: 0.5}]
dtype: float32
"""


# The body of a BERT of transformers, hidden 4, with a vocabulary of 8.
BODY = {
    "embeddings.word_embeddings.weight": (8, 4), "embeddings.position_embeddings.weight": (8, 4),
    "embeddings.token_type_embeddings.weight": (2, 4), "embeddings.LayerNorm.weight": (4,),
    "embeddings.LayerNorm.bias": (4,), "pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,),
    **{
        f"encoder.layer.0.{part}.{kind}": (4, 4) if kind == "weight" and "Norm" not in part else (4,)
        for part in (
            "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
        )
        for kind in ("weight", "bias")
    },
}  # fmt: skip
CONFIG = {
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": 8, "hidden_size": 4,
    "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4, "max_position_embeddings": 8,
}  # fmt: skip
TOKENIZER: dict[str, Any] = {
    "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None, "decoder": None, "truncation": None, "padding": None,
    "model": {"type": "WordLevel", "unk_token": "u", "vocab": {word: place for place, word in enumerate("pubcdefg")}},
}  # fmt: skip


def make_world(folder: Path) -> None:
    """Write zoo/, adapters/, encoders/, a recipe, calibration/ with model.py, tables, scores, a predictor, ..."""
    draw = torch.Generator().manual_seed(0)
    zoo = folder / "zoo"
    zoo.mkdir(parents=True)
    _write_models(zoo, draw)
    for scale, name in enumerate("xyz"):
        _write_adapter(folder / "adapters" / name, scale + 1, draw)
    _write_encoders(folder / "encoders" / "zoo", draw)
    samples = [{"text": "b c", "label": 1}, {"text": "d e f", "label": "x", "model": "p"}, {"text": "g", "label": 0}]
    (folder / "encoders" / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    (folder / "encoders" / "data.csv").write_text("text,label\nb c,1\nd e f,0\ng,1\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "model.py").write_text(MODEL)
    (folder / "evaluator.py").write_text(EVALUATOR)
    _write_calibration(folder / "calibration", draw)
    table = mergekern.compute_all(zoo, statistics=folder / "statistics", per_layer=True)
    for suffix in ("json", "csv", "parquet"):
        table.save(folder / f"table.{suffix}")
    for share in (1, 2):
        mergekern.measure_shard(zoo, statistics=folder / "shards", shard=(share, 2))
    pairs = [(a, b) for i, a in enumerate(MODELS) for b in MODELS[i + 1 :]]
    rows = [f"ties,{a},{b},{0.5 + 0.03 * i:.2f}" for i, (a, b) in enumerate(pairs[:-3])]
    (folder / "scores.csv").write_text("\n".join(["method,model_a,model_b,accuracy", *rows, ""]))
    (folder / "to_measure.csv").write_text("method,model_a,model_b,accuracy\nties,a,b,\ntsv,c,d,\n,e,f,0.5\n")
    (folder / "models.csv").write_text("model,own_accuracy,base_accuracy\na,0.5,0.25\nb,,0.25\n")
    run = ["fit", folder / "table.json", "--scores", folder / "scores.csv", "--method", "ties"]
    with silent():
        main([*map(str, run), "--out", str(folder / "predictor.json")], standalone_mode=False)
    mergekern.sketch(zoo, size=64).save(folder / "sketches.safetensors")


def _write_models(zoo: Path, draw: torch.Generator) -> None:
    """Write a base and models, in every form that holds whole tensors."""
    base = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    states = {name: {n: t + 0.1 * torch.randn(t.shape, generator=draw) for n, t in base.items()} for name in MODELS}
    save_file(base, zoo / "base.safetensors")
    save_file(states["a"], zoo / "a.safetensors", {"format": "pt"})
    torch.save(states["b"], zoo / "b.pt")
    _write_shards(zoo / "c", states["c"])
    save_file({name: tensor.bfloat16() for name, tensor in states["d"].items()}, zoo / "d.safetensors")
    for name in "ef":
        save_file(states[name], zoo / f"{name}.safetensors")


def _write_shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    places: dict[str, str] = {}
    for number, names in enumerate((list(state)[:2], list(state)[2:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {"model_type": "bert", "tie_word_embeddings": False, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))


def _write_adapter(folder: Path, scale: int, draw: torch.Generator) -> None:
    folder.mkdir(parents=True)
    factors = {"A": torch.randn(2, 4, generator=draw), "B": torch.randn(6, 2, generator=draw)}
    tensors = {f"base_model.model.layer.0.lora_{side}.weight": tensor for side, tensor in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": scale, "target_modules": ["0"], "rank_pattern": {"0": 2}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _write_encoders(folder: Path, draw: torch.Generator) -> None:
    """Write a base and two classifiers as folders of transformers, whose heads are their own."""
    for labels, name in enumerate(("base", "p", "q")):
        (folder / name).mkdir(parents=True)
        shapes = {f"bert.{part}": shape for part, shape in BODY.items()}
        shapes |= {"classifier.weight": (2 + labels, 4), "classifier.bias": (2 + labels,)}
        state = {part: torch.randn(shape, generator=draw) for part, shape in shapes.items()}
        save_file(state, folder / name / "model.safetensors", {"format": "pt"})
        names = {str(label): "wxyz"[label] for label in range(2 + labels)}
        config = {**CONFIG, "id2label": names, "label2id": {text: int(label) for label, text in names.items()}}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        said = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "p", "unk_token": "u"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(said))


def _write_calibration(folder: Path, draw: torch.Generator) -> None:
    namespace: dict = {}
    exec(compile(MODEL, "model.py", "exec"), namespace)
    tasks = {}
    for name in MODELS:
        inputs, labels = torch.randn(4, 4, generator=draw), torch.tensor([0, 1, 0, 1])
        tasks[name] = (inputs, labels, (torch.randn(2, 3, generator=draw), torch.zeros(2)))
    mergekern.Calibration(namespace["build"](), tasks, "layer").save(folder)
