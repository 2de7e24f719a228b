"""Make a zoo to try mergekern on: a vision transformer pretrained on handwritten digits and fine-tuned on 20 tasks.

    python python/make_digits_zoo.py zoo
    mergekern metrics zoo --calibration zoo/calibration --model python/make_digits_zoo.py:build_model

The digits are the 1,797 images of 8×8 pixels that come with scikit-learn, so nothing is downloaded. A run that was
stopped continues where it was. The folder gets

    base.safetensors, TASK.safetensors   encoders, with the same tensors in each
    calibration/TASK.safetensors         inputs, labels: a few held-out examples; test.inputs, test.labels: all
                                         others; head.weight, head.bias: the linear layer on the encoder
    calibration/calibration.json         the layer whose output is the activation
    model.json                           how the encoder is built and trained; what the tasks are, how well learned
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor, nn

from mergekern.calibration import OPTIONS_FILE
from mergekern.files import write_atomically

OPTIONS: dict[str, Any] = {
    "architecture": {"image_size": 8, "patch_size": 2, "dim": 64, "depth": 4, "heads": 4, "mlp_ratio": 4},
    "activations": "blocks.3",
    "pretraining": {"steps": 240, "batch_size": 32, "learning_rate": 2e-3},
    "fine_tuning": {"steps": 100, "batch_size": 32, "learning_rate": 1e-3},
}
CALIBRATION_SAMPLES = 10


class Attention(nn.Module):
    """Multi-head self-attention, from tokens (batch, tokens, dim) to tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Softmax cancels a bias of the keys, so fine-tuning would move it by rounding errors alone.
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(gathered.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised tokens (batch, tokens, dim) and added to them."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Encoder(nn.Module):
    """A vision transformer, from images (batch, 1, height, width) to the features (batch, dim) of its class token."""

    def __init__(self, image_size: int, patch_size: int, dim: int, depth: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens)[:, 0])


def build_model(config: Mapping[str, Any] = OPTIONS) -> Encoder:
    """Return a new encoder, for a state dict of a zoo to be loaded into.

    Args:
        config: the content of the zoo's model.json; only "architecture" is used.

    >>> build_model()(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 64])
    """
    return Encoder(**config["architecture"])


def initialise(model: nn.Module, generator: Generator) -> None:
    """Draw the weights of a new model from the generator, instead of torch's global one."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:
            # Class token and positions as large as patches: with small ones, it takes long to tell the places apart.
            std = 0.5 if parameter.dim() == 3 else parameter[0].numel() ** -0.5
            nn.init.normal_(parameter, std=std, generator=generator)


Examples = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """Something to learn about the digits."""

    name: str
    kind: str  # transformed, relabelled, subset, pairwise or other
    description: str
    examples: Examples  # from all images and digits to inputs and labels; a label −1 leaves the example out


def transformed(change: Callable[[Tensor, Generator], Tensor]) -> Examples:
    """Return the task to tell the ten digits on changed images.

    >>> transformed(lambda images, _: images.flip(-1))(torch.tensor([[1, 2]]), torch.tensor([7]), Generator())
    (tensor([[2, 1]]), tensor([7]))
    """
    return lambda images, digits, generator: (change(images, generator), digits)


def relabelled(classes: str) -> Examples:
    """Return the task to tell the classes written for the digits 0 to 9; a dot leaves a digit out.

    >>> relabelled("...0....1.")(torch.zeros(3, 2), torch.tensor([8, 3, 5]), Generator())[1]
    tensor([ 1,  0, -1])
    """
    table = torch.tensor([-1 if label == "." else int(label) for label in classes])
    return lambda images, digits, generator: (images, table[digits])


def erased_quadrant(images: Tensor, digits: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell which quadrant of each image was erased."""
    quadrants = torch.randint(4, (len(images),), generator=generator)
    kept = 1 - nn.functional.one_hot(quadrants, 4).float().view(-1, 1, 2, 2)
    return images * nn.functional.interpolate(kept, images.shape[-2:]), quadrants


def heavier_half(images: Tensor, digits: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell whether the lower half holds more ink than the upper half."""
    upper, lower = images.sum(dim=(1, 3)).unflatten(1, (2, -1)).sum(dim=-1).unbind(dim=1)
    return images, (lower > upper).long()


def quarter_turns(images: Tensor, digits: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the task to tell by how many quarters each image was turned."""
    turns = torch.randint(4, (len(images),), generator=generator)
    turned = [image.rot90(turn, (-2, -1)) for image, turn in zip(images, turns.tolist(), strict=True)]
    return torch.stack(turned), turns


BASE = Task("base", "pretraining", "the ten digits", transformed(lambda images, generator: images))
# The kinds take turns, so that a zoo of the first few tasks has some of each.
TASKS = (
    Task("rotated", "transformed", "digits rotated by 90°", transformed(lambda images, _: images.rot90(1, (-2, -1)))),
    Task("parity", "relabelled", "even or odd", relabelled("0101010101")),
    Task("three_or_eight", "pairwise", "3 or 8", relabelled("...0....1.")),
    Task("erased_quadrant", "other", "which quadrant was erased", erased_quadrant),
    Task("low_digits", "subset", "digits 0 to 4", relabelled("01234.....")),
    Task("flipped", "transformed", "digits mirrored left to right", transformed(lambda images, _: images.flip(-1))),
    Task("prime", "relabelled", "prime or not", relabelled("0011010100")),
    Task("one_or_seven", "pairwise", "1 or 7", relabelled(".0.....1..")),
    Task("heavier_half", "other", "upper or lower half holds more ink", heavier_half),
    Task("high_digits", "subset", "digits 5 to 9", relabelled(".....01234")),
    Task("inverted", "transformed", "digits, light and dark exchanged", transformed(lambda images, _: 1 - images)),
    Task("modulo_three", "relabelled", "remainder of division by 3", relabelled("0120120120")),
    Task("four_or_nine", "pairwise", "4 or 9", relabelled("....0....1")),
    Task("quarter_turns", "other", "turned by 0, 90, 180 or 270°", quarter_turns),
    Task("noisy", "transformed", "digits under noise",
         transformed(lambda images, generator: images + 0.3 * torch.randn(images.shape, generator=generator))),
    Task("closed_loop", "relabelled", "with a closed loop (0, 6, 8, 9) or without", relabelled("1000001011")),
    Task("shuffled_pixels", "transformed", "digits, all pixels in one shuffled order",
         transformed(lambda images, generator: images.flatten(2)[..., torch.randperm(64, generator=generator)]
                     .view_as(images))),
    Task("random_pairs", "relabelled", "five classes of two digits drawn at random", relabelled("3140214203")),
    Task("quadrants", "transformed", "digits, opposite quadrants exchanged",
         transformed(lambda images, _: images.roll((4, 4), (-2, -1)))),
    Task("blurred", "transformed", "digits blurred over 3×3 pixels",
         transformed(lambda images, _: nn.functional.avg_pool2d(images, 3, stride=1, padding=1))),
)  # fmt: skip


def learn(task: Task, encoder: Encoder, recipe: dict, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train an encoder, all of it, and a new head on a task.

    Args:
        task: what to learn.
        encoder: where to start; changed in place.
        recipe: "steps", "batch_size" and "learning_rate".
        seed: of the zoo.

    Returns:
        The calibration data to be saved, and the entry of model.json.

    Raises:
        click.ClickException: held-out accuracy is not even halfway from the share of the most frequent class to 1.
    """
    # Each task has its own stream of random numbers, so that it comes out the same whichever others are made.
    generator = Generator().manual_seed(zlib.crc32(f"{seed} {task.name}".encode()))
    data = load_digits()
    images, digits = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)
    inputs, labels = task.examples(images, digits, generator)
    # The same images are held out from all tasks, so that merged models can be tested on any of them.
    train, held_out = train_test_split(torch.arange(len(digits)), test_size=0.25, stratify=digits, random_state=0)
    train, held_out = train[labels[train] >= 0], held_out[labels[held_out] >= 0]
    held_out = held_out[torch.randperm(len(held_out), generator=generator)]
    calibration, test = held_out[:CALIBRATION_SAMPLES], held_out[CALIBRATION_SAMPLES:]
    head = nn.Linear(encoder.norm.weight.numel(), int(labels.max()) + 1)
    # Heads of one size start alike: from unlike heads, even like tasks pull the encoder in unlike directions.
    initialise(head, Generator().manual_seed(seed))
    model = nn.Sequential(encoder, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["learning_rate"], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["learning_rate"], total_steps=recipe["steps"])
    for _ in range(recipe["steps"]):
        rows = train[torch.randint(len(train), (recipe["batch_size"],), generator=generator)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        accuracy = (model(inputs[test]).argmax(dim=1) == labels[test]).double().mean().item()
    chance = labels[test].bincount().max().item() / len(test)
    if accuracy < (1 + chance) / 2:
        raise click.ClickException(
            f"{task.name} was not learned: held-out accuracy is {accuracy:.3f}, where the most frequent class has a "
            f"share of {chance:.3f}; try another --seed"
        )
    tensors = {
        "inputs": inputs[calibration].contiguous(), "labels": labels[calibration],
        "test.inputs": inputs[test].contiguous(), "test.labels": labels[test], **head.state_dict(prefix="head."),
    }  # fmt: skip
    record = {"kind": task.kind, "description": task.description, "classes": head.out_features}
    return tensors, {**record, "chance": chance, "accuracy": accuracy}


def files(out: Path, task: Task) -> list[Path]:
    """Return the paths of a task's encoder and, but for the base, of its calibration data."""
    name = f"{task.name}.safetensors"
    return [out / name] if task is BASE else [out / name, out / "calibration" / name]


def is_whole(path: Path) -> bool:
    """Tell whether a safetensors file is there, with all the bytes that its header promises."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def write_config(out: Path, options: Mapping[str, Any], records: Mapping[str, Any]) -> None:
    """Write model.json: the options, and the entries of the base and of the tasks that are done."""
    tasks = {task.name: records[task.name] for task in TASKS if task.name in records}
    text = json.dumps({**options, "base": records.get("base"), "tasks": tasks}, indent=2, ensure_ascii=False)
    write_atomically(out / "model.json", f"{text}\n".encode())


def take_over(out: Path, options: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """Return the entries, by name, of what an earlier run left whole; remove its files if they cannot be kept.

    Raises:
        click.ClickException: the earlier run had other options, and `force` is not set.
    """
    try:
        found = dict(json.loads((out / "model.json").read_text()))
    except (OSError, ValueError, TypeError):
        found = {}
    present = [path for task in (BASE, *TASKS) for path in files(out, task) if path.exists()]
    differing = [key for key, value in options.items() if found.get(key) != value]
    if present and differing and not force:
        raise click.ClickException(
            f"{present[0]} was made with other options ({', '.join(differing)}); "
            "give another folder, or --force to replace the zoo"
        )
    known = {} if differing or force else {"base": found["base"], **found["tasks"]}
    done = [task.name for task in (BASE, *TASKS) if known.get(task.name) and all(map(is_whole, files(out, task)))]
    if "base" in done:
        return {name: known[name] for name in done}
    # Models belong to the base they were tuned from; without it, none can stay.
    for path in present:
        path.unlink()
    return {}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tasks", "count", type=click.IntRange(2, len(TASKS)), default=len(TASKS), show_default=True,
              help="Fine-tune on so many tasks.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--force", is_flag=True, help="Make everything anew, replacing a zoo made with other options.")
def main(out: Path, count: int, seed: int, force: bool) -> None:
    """Make a zoo in the folder OUT: a vision transformer pretrained on digits, and fine-tuned on each task."""
    options = {"seed": seed, **OPTIONS}
    records = take_over(out, options, force)
    (out / "calibration").mkdir(parents=True, exist_ok=True)
    write_atomically(out / "calibration" / OPTIONS_FILE, f"{json.dumps({'layer': OPTIONS['activations']})}\n".encode())
    write_config(out, options, records)

    def make(task: Task) -> tuple[Task, dict[str, Any], str]:
        if task.name in records:
            return task, records[task.name], "done before"
        began = time.perf_counter()
        encoder = build_model(options)
        if task is BASE:
            initialise(encoder, Generator().manual_seed(seed))
        else:
            encoder.load_state_dict(load_file(out / "base.safetensors"))
        calibration, record = learn(task, encoder, options["pretraining" if task is BASE else "fine_tuning"], seed)
        for path, tensors in zip(files(out, task), (encoder.state_dict(), calibration), strict=False):
            write_atomically(path, save(tensors))
        return task, record, f"accuracy {record['accuracy']:.3f}, {time.perf_counter() - began:.1f} s"

    table = Table("task", "kind", "classes", "chance", "accuracy", box=None)
    # A model a thread: these tensors are too small to share, and the number of cores must not change the results.
    pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))
    with pool, Progress(console=Console(stderr=True), transient=True) as bar:
        for stage, tasks in (("pretraining", (BASE,)), ("fine-tuning", TASKS[:count])):
            for task, record, outcome in bar.track(pool.map(make, tasks), len(tasks), description=stage):
                records[task.name] = record
                # Only now that its files are there: an entry means that a task is done.
                write_config(out, options, records)
                bar.console.print(f"{task.name}: {outcome}", highlight=False)
                rates = (f"{record[rate]:.3f}" for rate in ("chance", "accuracy"))
                table.add_row(task.name, task.kind, str(record["classes"]), *rates)
    Console().print(table)
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
