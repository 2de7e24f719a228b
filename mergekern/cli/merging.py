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
from mergekern.cli.parameters import ByteSize, ModelPath, io_option, parse_options, rename_option, with_options

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
    io_option,
    rename_option,
)  # fmt: skip


@click.command(
    help="Merge MODELS: checkpoints, each as PATH or NAME=PATH, or one folder of them, fine-tuned from one base."
)
@click.argument("models", type=ModelPath(), nargs=-1, required=True)
@merge_options
@click.option("--method", required=True, help=f"One of {', '.join(mergekern.METHODS)}.")
@click.option("-o", "--option", "options", multiple=True, callback=parse_options, metavar="NAME=VALUE",
              help="Of the method, such as density=0.2; may be repeated.")  # fmt: skip
@click.option("--weights", help="Comma-separated, in the order of MODELS.")
@click.option("--mergekit-config", is_flag=True, help="Write a mergekit configuration to --out, and merge nothing.")
def merge(
    models: tuple[NamedPath, ...], base: Path | None, out: Path, method: str, options: dict[str, Any],
    weights: str | None, mergekit_config: bool, overwrite: bool, dtype: str | None, device: str,
    max_memory: int | None, on_mismatch: OnMismatch, io: IO, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    by_model = _numbers(weights)
    checkpoints = models_of(models, base)
    say_what_is_left_out(checkpoints, base)
    if mergekit_config:
        check_output(out)
        if out.exists() and not overwrite:
            raise click.BadParameter(f"{out} is there already; --overwrite replaces it", param_hint="--out")
        sources = _mergekit_sources(checkpoints, base, rename)
        text = mergekern.mergekit_config(
            sources[1:], sources[0], method, options=options, weights=by_model, dtype=dtype or "float32"
        )
        write_output(out, text.encode())
    else:
        with progress_display() as progress:
            mergekern.merge(
                checkpoints, base, method, options=options, output=out, overwrite=overwrite, weights=by_model,
                dtype=dtype, device=device, max_memory=max_memory, on_mismatch=on_mismatch, progress=progress, io=io,
                rename=rename,
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
    overwrite: bool, dtype: str | None, device: str, max_memory: int | None, on_mismatch: OnMismatch, io: IO,
    rename: Mapping[str, str] | None,
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
            max_memory=max_memory, on_mismatch=on_mismatch, progress=progress, io=io, rename=rename,
        )  # fmt: skip
    say(f"wrote {len(paths)} merged checkpoints to {out}")


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(value) for value in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,0.5", param_hint="--weights") from None


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
