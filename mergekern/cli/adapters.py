"""`mergekern merge-adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

import mergekern
from mergekern.cli.display import progress_display, say
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import ModelPath, io_option, parse_numbers, rename_option
from mergekern.merging.adapters.registry import COMBINATIONS, MAJORITY_SIGNS, SAVED_WHOLE

if TYPE_CHECKING:
    from mergekern.checkpoints.sources import IO
    from mergekern.merging.adapters.registry import MajoritySign, SavedWhole


@click.command(
    "merge-adapters",
    help="""\
Merge ADAPTERS into one LoRA adapter, a folder that PEFT loads. No base is needed.

ADAPTERS are PEFT folders of one model, each as PATH or NAME=PATH, or one folder of them. cat is exact, and its rank is
the sum of theirs; svd is the best of a given rank; the others are those of PEFT (docs/adapters.md).
""",
)
@click.argument("adapters", type=ModelPath(), nargs=-1, required=True)
@click.option("--combination", type=click.Choice(list(COMBINATIONS)), required=True, help="How they become one.")
@click.option("--weights", callback=parse_numbers, help="Comma-separated, in the order of ADAPTERS; as --weights=-1,1 "
              "if the first is negative [default: 1 each].")  # fmt: skip
@click.option("--density", type=float, help="Share of the elements that ties, dare and magnitude_prune keep.")
@click.option("--svd-rank", type=int, help="Largest rank of svd and the forms in _svd [default: that of ADAPTERS].")
@click.option("--majority-sign", type=click.Choice(MAJORITY_SIGNS), default="total", show_default=True,
              help="How ties elects a sign: of the sum, or by the number of signs.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random masks of dare.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what mergekern wrote there before.")
@click.option("--dtype", help="Dtype of the result: float32, bfloat16, float16 or float64 [default: the factors'].")
@click.option("--base-name", help="Name of the base that the result is said to be of [default: what ADAPTERS say].")
@click.option("--saved-whole", type=click.Choice(SAVED_WHOLE), default="error", show_default=True,
              help="What to do about tensors that adapters hold whole (modules_to_save) and that differ.")  # fmt: skip
@io_option
@rename_option
def merge_adapters(
    adapters: tuple[NamedPath, ...], combination: str, weights: list[float] | None, density: float | None,
    svd_rank: int | None, majority_sign: MajoritySign, seed: int, out: Path, overwrite: bool, dtype: str | None,
    base_name: str | None, saved_whole: SavedWhole, io: IO, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    given = models_of(adapters, None)
    say_what_is_left_out(given, None)
    with progress_display() as progress:
        mergekern.merge_adapters(
            given, combination, weights=weights, density=density, svd_rank=svd_rank, majority_sign=majority_sign,
            seed=seed, output=out, overwrite=overwrite, dtype=dtype, base_name=base_name, saved_whole=saved_whole,
            rename=rename, progress=progress, io=io,
        )  # fmt: skip
    say(f"wrote {out}")
