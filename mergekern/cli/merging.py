"""`mergekern merge` and `mergekern merge-all`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mergekern
from mergekern._internal.files import check_output, write_output
from mergekern.cli.display import progress_display, say
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import (
    ByteSize,
    ModelPath,
    io_option,
    parse_numbers,
    parse_options,
    rename_option,
    with_options,
)

if TYPE_CHECKING:
    from mergekern.checkpoints.sources import IO
    from mergekern.checkpoints.zoo import OnMismatch

# Options of both commands.
merge_options = with_options(
    click.option("--base", type=click.Path(path_type=Path), help="The checkpoint all models were fine-tuned from "
                 "[default: base.* in a folder ZOO]."),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Write here."),
    click.option("--overwrite", is_flag=True, help="Replace what mergekern wrote there before."),
    click.option("--dtype", help="Of the result: float32, bfloat16, float16 or float64 [default: the base's]."),
    click.option("--device", default="auto", show_default=True, help="cpu, or a GPU such as cuda:1."),
    click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G; on a GPU "
                 "2/5 of its free memory]."),
    click.option("--on-mismatch", type=click.Choice(["error", "skip"]), default="error", show_default=True,
                 help="What to do about tensors that not all checkpoints share; skip takes the base's."),
    click.option("--heads", metavar="each|base|NAME", help="Merge the models' bodies, and give the result the head, "
                 "configuration and tokenizer of NAME, of the base, or one result for each model."),
    click.option("--head-tensors", multiple=True, metavar="PATTERN", help="Names of the heads' tensors, such as "
                 "classifier.*; may be repeated [default: what is no part of the body]."),
    io_option,
    rename_option,
)  # fmt: skip


@click.command(
    help="""\
Merge MODELS: checkpoints, each as PATH or NAME=PATH, or one folder of them, fine-tuned from one base.

With --config, merge what a recipe of mergekit says instead.
"""
)
@click.argument("models", type=ModelPath(), nargs=-1)
@merge_options
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A YAML recipe of mergekit, in place of MODELS and of how they are merged.",
)
@click.option("--method", help=f"One of {', '.join(mergekern.METHODS)}.")
@click.option("-o", "--option", "options", multiple=True, callback=parse_options, metavar="NAME=VALUE",
              help="Of the method, such as density=0.2; may be repeated.")  # fmt: skip
@click.option("--weights", callback=parse_numbers, help="Comma-separated, in the order of MODELS.")
@click.option("--mergekit-config", is_flag=True, help="Write a mergekit configuration to --out, and merge nothing.")
def merge(
    models: tuple[NamedPath, ...], base: Path | None, out: Path, config: Path | None, method: str | None,
    options: dict[str, Any], weights: list[float] | None, mergekit_config: bool, overwrite: bool, dtype: str | None,
    device: str, max_memory: int | None, on_mismatch: OnMismatch, heads: str | None, head_tensors: tuple[str, ...],
    io: IO, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    if config is not None:
        said = {
            "MODELS": models, "--base": base, "--method": method, "--option": options, "--weights": weights,
            "--mergekit-config": mergekit_config, "--dtype": dtype, "--rename": rename, "--heads": heads,
            "--head-tensors": head_tensors,
        }  # fmt: skip
        if given := next((name for name, value in said.items() if value), None):
            raise click.UsageError(f"{given} and --config exclude each other: the recipe says what is merged, and how")
        with progress_display() as progress:
            mergekern.merge_recipe(
                config, output=out, overwrite=overwrite, device=device, max_memory=max_memory,
                on_mismatch=on_mismatch, progress=progress, io=io,
            )  # fmt: skip
        say(f"wrote {out}")
        return
    if not models or method is None:
        raise click.UsageError(f"missing {'--method' if models else 'MODELS'}, or --config with a recipe")
    checkpoints = models_of(models, base)
    say_what_is_left_out(checkpoints, base)
    if mergekit_config:
        if heads is not None:
            raise click.UsageError("--heads is not what a mergekit configuration can say; merge without it")
        check_output(out)
        if out.exists() and not overwrite:
            raise click.BadParameter(f"{out} is there already; --overwrite replaces it", param_hint="--out")
        sources = _mergekit_sources(checkpoints, base, rename)
        text = mergekern.mergekit_config(
            sources[1:], sources[0], method, options=options, weights=weights, dtype=dtype or "float32"
        )
        write_output(out, text.encode())
    else:
        with progress_display() as progress:
            mergekern.merge(
                checkpoints, base, method, options=options, output=out, overwrite=overwrite, weights=weights,
                dtype=dtype, device=device, max_memory=max_memory, on_mismatch=on_mismatch, progress=progress, io=io,
                rename=rename, heads=heads, head_tensors=head_tensors,
            )  # fmt: skip
    say(f"wrote {out}")


@click.command(
    "merge-all",
    help="""\
Merge every pair of the models in the folder ZOO, or given groups, by several methods.

In place of ZOO several models may be given, as PATH or NAME=PATH.
""",
)
@click.argument("zoo", type=ModelPath(), nargs=-1, required=True)
@merge_options
@click.option("--methods", required=True, help=f"Comma-separated, of {', '.join(mergekern.METHODS)}.")
@click.option("--group", "groups", multiple=True, help="Models of one merge, as a+b+c; may be repeated "
              "[default: every pair].")  # fmt: skip
@click.option("--pairs", type=click.Path(path_type=Path), help="Merge the pairs in this CSV file, with the columns "
              "model_a and model_b.")  # fmt: skip
def merge_all(
    zoo: tuple[NamedPath, ...], base: Path | None, out: Path, methods: str, groups: tuple[str, ...], pairs: Path | None,
    overwrite: bool, dtype: str | None, device: str, max_memory: int | None, on_mismatch: OnMismatch,
    heads: str | None, head_tensors: tuple[str, ...], io: IO, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    models = models_of(zoo, base)
    say_what_is_left_out(models, base)
    names = [name.strip() for name in methods.split(",")]
    chosen = [group.split("+") for group in groups]
    if pairs is not None:
        from mergekern.evaluation.rows import read_pairs, unique_pairs

        chosen += [list(pair) for pair in unique_pairs(read_pairs(pairs))]
    with progress_display() as progress:
        paths = mergekern.merge_all(
            models, base, names, groups=chosen or None, output=out, overwrite=overwrite, dtype=dtype, device=device,
            max_memory=max_memory, on_mismatch=on_mismatch, progress=progress, io=io, rename=rename, heads=heads,
            head_tensors=head_tensors,
        )  # fmt: skip
    say(f"wrote {len(paths)} merged checkpoints to {out}")


def _mergekit_sources(checkpoints: Any, base: Path | None, rename: Mapping[str, str] | None) -> list[str]:
    """Return the paths of the base and of the models, as mergekit writes them."""
    from mergekern.checkpoints import open_zoo
    from mergekern.checkpoints.adapter import Adapter

    opened = open_zoo(checkpoints, base, rename=rename).checkpoints
    paths = [str(_mergekit_path(checkpoint.source)) for checkpoint in opened]
    # A plus sign joins a base and an adapter.
    return [
        f"{paths[0]}+{path}" if isinstance(checkpoint, Adapter) else path
        for checkpoint, path in zip(opened, paths, strict=True)
    ]


def _mergekit_path(source: str) -> Path:
    path = Path(source).resolve()
    return path.parent if (path.parent / "config.json").is_file() else path
