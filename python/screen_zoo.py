"""Screen a zoo on a Ray cluster: metrics of all pairs, predicted scores of their merges, and the most promising first.

    python python/screen_zoo.py ZOO --statistics zoo.stats --predictor tsv.json --out pairs.parquet
    python python/screen_zoo.py ZOO --statistics zoo.stats --address auto --num-cpus 8 --num-gpus 1

Every worker must see the checkpoints and the folder of statistics under the same paths. Without --address the cluster
is this machine. Stopped at any moment, or with a worker lost, the same command continues, on whatever workers there are
then; the table is the same to the last bit as that of one process.

With a scheduler that knows nothing of Ray the same is

    mergekern metrics ZOO --statistics zoo.stats --shard 1/5    # … 5/5, anywhere, in any order
    mergekern combine zoo.stats
    mergekern screen --statistics zoo.stats --predictor tsv.json --out pairs.parquet
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from mergekern.cli.parameters import ByteSize
from mergekern.cli.prediction import show_pairs
from mergekern.distributed.cluster import SHARDS, measure_on_cluster
from mergekern.errors import MergekernError
from mergekern.measurement.options import MeasureOptions
from mergekern.prediction import MergePredictor
from mergekern.prediction.screening import check_screening, screen

path_type = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("zoo", type=path_type)
@click.option("--base", type=path_type, help="The checkpoint all models were fine-tuned from [default: base.* in ZOO].")
@click.option("--statistics", type=path_type, required=True, help="A folder that all workers can write to.")
@click.option("--predictor", "predictor_files", type=path_type, multiple=True,
              help="A file of `mergekern fit`, one for each merge method [default: rank by a metric].")  # fmt: skip
@click.option("--out", type=path_type, help="Write all pairs, metrics and predictions here, as .parquet.")
@click.option("--address", help='Of the cluster, such as "auto" [default: this machine].')
@click.option("--shards", default=SHARDS, show_default=True, help="Into which the work is cut.")
@click.option("--num-cpus", default=1, show_default=True, help="Of each worker.")
@click.option("--num-gpus", default=0.0, show_default=True, help="Of each worker.")
@click.option("--max-memory", type=ByteSize(), help="Bytes of weights that a worker holds at a time [default: 1G].")
@click.option("--rows", default=20, show_default=True, help="Pairs shown.")
def main(
    zoo: Path, base: Path | None, statistics: Path, predictor_files: tuple[Path, ...], out: Path | None,
    address: str | None, shards: int, num_cpus: int, num_gpus: float, max_memory: int | None,
    rows: int,
) -> None:  # fmt: skip
    """Rank the pairs of the folder ZOO by the score that their merge is predicted to have, measured on a cluster."""
    began = time.perf_counter()
    try:
        predictors = [MergePredictor.load(path) for path in predictor_files]
        check_screening(predictors, out)
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("measuring", total=shards)
            measure_on_cluster(
                zoo.absolute(), None if base is None else base.absolute(), statistics=statistics, address=address,
                shards=shards, num_cpus=num_cpus, num_gpus=num_gpus, options=MeasureOptions(max_memory=max_memory),
                finished=lambda done, count: bar.update(task, completed=done, total=count),
            )  # fmt: skip
            bar.reset(task, description="computing pairs")
            found = screen(
                statistics, predictors, out, progress=lambda done, count: bar.update(task, completed=done, total=count)
            )
    except MergekernError as error:
        raise click.ClickException(str(error)) from error
    show_pairs(found.ranked.head(rows), 0, None, found.ranked)
    click.echo(f"{found.models} models, {found.pairs:,} pairs, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
