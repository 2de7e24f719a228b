"""Make a zoo to try mergekern on: a vision transformer pretrained on handwritten digits and fine-tuned on 20 tasks.

    python python/make_digits_zoo.py zoo
    mergekern metrics zoo --calibration zoo/calibration --model-fn python/make_digits_zoo.py:build_model

The digits are the 1,797 images of 8×8 pixels that come with scikit-learn, so nothing is downloaded. `--architecture`
makes other encoders of the same digits (cnn, mlp), or one of text, on passages of Python's own standard library;
`--model-fn mergekern.study.zoos.encoders:cnn` builds them. A run that was stopped continues. The folder gets

    base.safetensors, TASK.safetensors   encoders, with the same tensors in each
    calibration/TASK.safetensors         inputs, labels: a few held-out examples; test.inputs, test.labels: all
                                         others; head.weight, head.bias: the linear layer on the encoder
    calibration/calibration.json         the layer whose output is the activation
    model.json                           how the encoder is built and trained; what the tasks are, how well learned
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from mergekern.cli.group import Program
from mergekern.study.zoos import encoders
from mergekern.study.zoos.digits import TASKS
from mergekern.study.zoos.making import default_options, make_zoo

OPTIONS = default_options("vit")


def build_model(config: Mapping[str, Any] = OPTIONS) -> nn.Module:
    """Return a new encoder, for a state dict of a zoo to be loaded into.

    Args:
        config: the content of the zoo's model.json; only "encoder" and "architecture" are used.

    >>> import torch
    >>> build_model()(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 64])
    """
    return encoders.build(config["encoder"], config["architecture"])


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--architecture", type=click.Choice(list(encoders.CLASSES)), default="vit", show_default=True)
@click.option("--tasks", "count", type=click.IntRange(2, len(TASKS)), default=len(TASKS), show_default=True,
              help="Fine-tune on so many tasks.")  # fmt: skip
@click.option("--random-state", default=0, show_default=True)
@click.option("--force", is_flag=True, help="Make everything anew, replacing a zoo made with other options.")
def main(out: Path, architecture: str, count: int, random_state: int, force: bool) -> None:
    """Make a zoo in the folder OUT: an encoder pretrained on ten classes, and fine-tuned on each task."""
    options = OPTIONS if architecture == "vit" else default_options(architecture)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        records = make_zoo(out, options, count, random_state, bar, force)
    table = Table("task", "kind", "classes", "chance", "accuracy", box=None)
    for name, record in records.items():
        rates = (f"{record[rate]:.3f}" for rate in ("chance", "accuracy"))
        table.add_row(name, record["kind"], str(record["classes"]), *rates)
    Console().print(table)
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
