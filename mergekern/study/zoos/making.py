"""Making a zoo: pretraining, fine-tuning on each task, and files that a run which was stopped continues from."""

from __future__ import annotations

import copy
import json
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergekern._internal.files import write_atomically
from mergekern.errors import MergekernError, OutputError
from mergekern.functional.calibration import OPTIONS_FILE
from mergekern.study.zoos.digits import DIGITS
from mergekern.study.zoos.encoders import CONFIGS, build, initialise
from mergekern.study.zoos.tasks import Domain, Task
from mergekern.study.zoos.texts import TEXTS
from mergekern.training import regularizers

CALIBRATION_SAMPLES = 10
DOMAINS: dict[str, Domain] = {"vit": DIGITS, "cnn": DIGITS, "mlp": DIGITS, "text": TEXTS}
# Steps and learning rates of pretraining and fine-tuning.
RECIPES = {
    "vit": (240, 2e-3, 100, 1e-3),
    "cnn": (160, 2e-3, 100, 1e-3),
    "mlp": (160, 2e-3, 100, 1e-3),
    "text": (500, 4e-3, 200, 1e-3),
}
REGULARIZERS: dict[str, Callable[[Tensor, nn.Module, Mapping[str, Tensor]], Tensor]] = {
    "distance_from_base": lambda loss, encoder, base: regularizers.distance_from_base(encoder, base),
    "gradient_magnitude": lambda loss, encoder, base: regularizers.gradient_magnitude(loss, encoder),
    "subspace_distance": lambda loss, encoder, base: regularizers.subspace_distance(
        encoder, base, regularizers.leading_subspaces(base)
    ),
}


def default_options(kind: str) -> dict[str, Any]:
    """Return how an encoder of a kind is built and trained: what model.json says beside the tasks."""
    pretraining, pretraining_rate, fine_tuning, fine_tuning_rate = RECIPES[kind]
    options = {
        "encoder": kind,
        "architecture": CONFIGS[kind],
        "activations": f"blocks.{CONFIGS[kind]['depth'] - 1}",
        "pretraining": {"steps": pretraining, "batch_size": 32, "learning_rate": pretraining_rate},
        "fine_tuning": {"steps": fine_tuning, "batch_size": 32, "learning_rate": fine_tuning_rate},
        "calibration_samples": CALIBRATION_SAMPLES,
    }
    return copy.deepcopy(options)


def learn(
    task: Task, encoder: nn.Module, recipe: Mapping[str, Any], random_state: int, domain: Domain = DIGITS,
    samples: int = CALIBRATION_SAMPLES,
) -> tuple[dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """Train an encoder, all of it, and a new head on a task.

    Args:
        task: what to learn.
        encoder: where to start; changed in place.
        recipe: "steps", "batch_size" and "learning_rate"; "regularizers" may have weights of `REGULARIZERS`, by name.
        random_state: decides all random numbers of the zoo.
        domain: domain of the task.
        samples: number of calibration samples, at most half of the held-out ones; the others are test samples.

    Returns:
        The calibration data to be saved, and the entry of model.json.

    Raises:
        MergekernError: held-out accuracy, without regularizers, is not even halfway from the share of the most
            frequent class to 1.
    """
    # Each task has its own stream of random numbers, so that it comes out the same whichever others are made.
    generator = Generator().manual_seed(zlib.crc32(f"{random_state} {task.name}".encode()))
    every, classes = domain.load()
    inputs, labels = task.examples(every, classes, generator)
    # The same examples are held out from all tasks, so that merged models can be tested on any of them.
    train, held_out = train_test_split(torch.arange(len(classes)), test_size=0.25, stratify=classes, random_state=0)
    train, held_out = train[labels[train] >= 0], held_out[labels[held_out] >= 0]
    held_out = held_out[torch.randperm(len(held_out), generator=generator)]
    count = min(samples, len(held_out) // 2)
    calibration, test = held_out[:count], held_out[count:]
    head = nn.Linear(encoder.get_parameter("norm.weight").numel(), int(labels.max()) + 1)
    # Heads of one size start alike: from unlike heads, even like tasks pull the encoder in unlike directions.
    initialise(head, Generator().manual_seed(random_state))
    model = nn.Sequential(encoder, head)
    fit(model, inputs[train], labels[train], recipe, generator)

    with torch.no_grad():
        accuracy = (model(inputs[test]).argmax(dim=1) == labels[test]).double().mean().item()
    chance = labels[test].bincount().max().item() / len(test)
    # A regularizer that is too strong is a finding, not a mistake.
    if accuracy < (1 + chance) / 2 and not recipe.get("regularizers"):
        raise MergekernError(
            f"{task.name} was not learned: held-out accuracy is {accuracy:.3f}, where the most frequent class has a "
            f"share of {chance:.3f}; try another --random-state"
        )
    tensors = {
        "inputs": inputs[calibration].contiguous(), "labels": labels[calibration],
        "test.inputs": inputs[test].contiguous(), "test.labels": labels[test], **head.state_dict(prefix="head."),
    }  # fmt: skip
    record = {"kind": task.kind, "description": task.description, "classes": head.out_features}
    return tensors, {**record, "chance": chance, "accuracy": accuracy}


def fit(model: nn.Sequential, inputs: Tensor, labels: Tensor, recipe: Mapping[str, Any], generator: Generator) -> None:
    """Train an encoder followed by a head by a recipe, with its regularizers on the encoder."""
    base = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    weights = {name: weight for name, weight in recipe.get("regularizers", {}).items() if weight}
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["learning_rate"], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["learning_rate"], total_steps=recipe["steps"])
    for _ in range(recipe["steps"]):
        rows = torch.randint(len(inputs), (recipe["batch_size"],), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
        added = sum(weight * REGULARIZERS[name](loss, model[0], base) for name, weight in weights.items())
        (loss + added).backward()
        optimizer.step()
        schedule.step()


def files(out: Path, name: str) -> list[Path]:
    """Return the paths of a task's encoder and, but for the base, of its calibration data."""
    file = f"{name}.safetensors"
    return [out / file] if name == "base" else [out / file, out / "calibration" / file]


def is_whole(path: Path) -> bool:
    """Tell whether a safetensors file is there, with all the bytes that its header promises."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def write_config(out: Path, options: Mapping[str, Any], records: Mapping[str, Any]) -> None:
    """Write model.json: the options, and the entries of the base and of the tasks that are done."""
    names = [task.name for task in DOMAINS[options["encoder"]].tasks]
    tasks = {name: records[name] for name in names if name in records}
    text = json.dumps({**options, "base": records.get("base"), "tasks": tasks}, indent=2, ensure_ascii=False)
    write_atomically(out / "model.json", f"{text}\n".encode())


def take_over(out: Path, options: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """Return the entries, by name, that an earlier run finished; remove its files if they cannot be kept.

    Raises:
        OutputError: the earlier run had other options, and `force` is not set.
    """
    try:
        # What zoos did not say before there was a choice.
        unsaid = {"encoder": "vit", "calibration_samples": CALIBRATION_SAMPLES}
        found = {**unsaid, **json.loads((out / "model.json").read_text())}
    except (OSError, ValueError, TypeError):
        found = {}
    names = ["base", *dict.fromkeys(task.name for domain in DOMAINS.values() for task in domain.tasks)]
    present = [path for name in names for path in files(out, name) if path.exists()]
    differing = [key for key, value in options.items() if found.get(key) != value]
    if present and differing and not force:
        raise OutputError(
            f"{present[0]} was made with other options ({', '.join(differing)}); "
            "give another folder, or --force to replace the zoo"
        )
    known = {} if differing or force else {"base": found["base"], **found["tasks"]}
    done = [name for name in names if known.get(name) and all(map(is_whole, files(out, name)))]
    if "base" in done:
        return {name: known[name] for name in done}
    # Models belong to the base they were tuned from; without it, none can stay.
    for path in present:
        path.unlink()
    return {}


def make_zoo(
    out: Path, options: Mapping[str, Any], count: int, random_state: int, bar: Progress, force: bool = False
) -> dict[str, dict[str, Any]]:
    """Pretrain an encoder and fine-tune it on the first tasks of its domain, or what of that is not yet there.

    Args:
        out: the folder of the zoo.
        options: options of the zoo, from `default_options`.
        count: number of tasks.
        random_state: decides all random numbers.
        bar: shows how far it is.
        force: replace a zoo made with other options.

    Returns:
        The entries of model.json, of "base" and of each task.

    Raises:
        OutputError: a zoo made with other options is there.
        MergekernError: a task was not learned.
    """
    domain = DOMAINS[options["encoder"]]
    options = {"random_state": random_state, **options}
    records = take_over(out, options, force)
    (out / "calibration").mkdir(parents=True, exist_ok=True)
    calibration = {"layer": options["activations"]} | ({"input_layer": "token_embed"} if domain is TEXTS else {})
    write_atomically(out / "calibration" / OPTIONS_FILE, f"{json.dumps(calibration)}\n".encode())
    write_config(out, options, records)

    def make(task: Task) -> tuple[Task, dict[str, Any], str]:
        if task.name in records:
            return task, records[task.name], "done before"
        began = time.perf_counter()
        encoder = build(options["encoder"], options["architecture"])
        if task is domain.base:
            initialise(encoder, Generator().manual_seed(random_state))
        else:
            encoder.load_state_dict(load_file(out / "base.safetensors"))
        recipe = options["pretraining" if task is domain.base else "fine_tuning"]
        tensors, record = learn(task, encoder, recipe, random_state, domain, options["calibration_samples"])
        for path, content in zip(files(out, task.name), (encoder.state_dict(), tensors), strict=False):
            write_atomically(path, save(content))
        return task, record, f"accuracy {record['accuracy']:.3f}, {time.perf_counter() - began:.1f} s"

    # A second derivative, for which fused attention has no formula, is needed by one regularizer alone.
    differentiable = "gradient_magnitude" in options["fine_tuning"].get("regularizers", {})
    # A model a thread: these tensors are too small to share, and the number of cores must not change the results.
    pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))
    with pool, sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext():
        for stage, tasks in (("pretraining", (domain.base,)), ("fine-tuning", domain.tasks[:count])):
            for task, record, outcome in bar.track(pool.map(make, tasks), len(tasks), description=stage):
                records[task.name] = record
                # Only now that its files are there: an entry means that a task is done.
                write_config(out, options, records)
                bar.console.print(f"{task.name}: {outcome}", highlight=False)
    return {name: records[name] for name in ("base", *(task.name for task in domain.tasks[:count]))}
