"""`mergekern merge` and `mergekern merge-all`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mergekern
from mergekern._internal.files import check_output, write_output
from mergekern.cli.display import progress_display, say
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import (
    ByteSize,
    Function,
    ModelPath,
    calibration_of,
    io_option,
    parse_options,
    parse_weights,
    rename_option,
    with_options,
)
from mergekern.merging.registry import EVERY_METHOD

if TYPE_CHECKING:
    from mergekern.checkpoints.checkpoint import Checkpoint
    from mergekern.checkpoints.sources import IO
    from mergekern.checkpoints.zoo import OnMismatch
    from mergekern.functional.calibration import Calibration

# Options of both commands.
merge_options = with_options(
    click.option("--base", type=click.Path(path_type=Path), help="The checkpoint all models were fine-tuned from "
                 "[default: base.* or base/ in a folder ZOO]."),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Write here."),
    click.option("--overwrite", is_flag=True, help="Replace what mergekern wrote there before."),
    click.option("--dtype", help="Dtype of the result: float32, bfloat16, float16 or float64 [default: the base's]."),
    click.option("--device", default="auto", show_default=True, help="cpu, or a GPU such as cuda:1."),
    click.option("--max-memory", type=ByteSize(), help="Bytes of weights held at a time [default: 1G; on a GPU "
                 "2/5 of its free memory]."),
    click.option("--on-mismatch", type=click.Choice(["error", "skip"]), default="error", show_default=True,
                 help="What to do about tensors that not all checkpoints share; skip takes the base's."),
    click.option("--heads", metavar="each|base|NAME", help="Merge the models' bodies, and give the result the head, "
                 "configuration and tokenizer of NAME, of the base, or one result for each model."),
    click.option("--head-tensors", multiple=True, metavar="PATTERN", help="Names of the heads' tensors, such as "
                 "classifier.*; may be repeated [default: what is no part of the body]."),
    click.option("--calibration", type=click.Path(path_type=Path), help="A folder of samples, for regmean and fisher, "
                 "which run the models; mergekern calibrate writes one."),
    click.option("--model-fn", type=Function(), help="What builds the model, as for mergekern metrics. Its code is "
                 "run."),
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
@click.option("--method", help=f"One of {', '.join(EVERY_METHOD)}.")
@click.option("-o", "--option", "options", multiple=True, callback=parse_options, metavar="NAME=VALUE",
              help="Option of the method, such as density=0.2; may be repeated.")  # fmt: skip
@click.option("--weights", callback=parse_weights, help="Comma-separated, in the order of MODELS; or JSON, where a "
              "weight may be a list of numbers from the first layer to the last, or a mapping from parts of "
              "names.")  # fmt: skip
@click.option("--only", multiple=True, metavar="PATTERN", help="Merge tensors that have PATTERN in their names, or "
              "match it where it has * or ?; others are the base's. May be repeated.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="PATTERN",
              help="Take such tensors from the base. May be repeated.")  # fmt: skip
@click.option("--mergekit-config", is_flag=True, help="Write a mergekit configuration to --out, and merge nothing.")
def merge(
    models: tuple[NamedPath, ...], base: Path | None, out: Path, config: Path | None, method: str | None,
    options: dict[str, Any], weights: Any, only: tuple[str, ...], exclude: tuple[str, ...], mergekit_config: bool,
    overwrite: bool, dtype: str | None, device: str, max_memory: int | None, on_mismatch: OnMismatch,
    heads: str | None, head_tensors: tuple[str, ...], calibration: Path | None, model_fn: Callable | None, io: IO,
    rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    if config is not None:
        said = {
            "MODELS": models, "--base": base, "--method": method, "--option": options, "--weights": weights,
            "--mergekit-config": mergekit_config, "--dtype": dtype, "--rename": rename, "--heads": heads,
            "--head-tensors": head_tensors, "--only": only, "--exclude": exclude, "--calibration": calibration,
            "--model-fn": model_fn,
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
        if only or exclude:
            raise click.UsageError("mergekit merges all tensors: --only and --exclude cannot be written for it")
        if calibration is not None:
            raise click.UsageError("--calibration is not what a mergekit configuration can say; merge without it")
        _write_mergekit_config(out, checkpoints, base, rename, method, options, weights, dtype)
    else:
        samples = _samples(calibration, model_fn)
        with progress_display() as progress:
            mergekern.merge(
                checkpoints, base, method, options=options, output=out, overwrite=overwrite, weights=weights,
                dtype=dtype, device=device, max_memory=max_memory, on_mismatch=on_mismatch, progress=progress, io=io,
                rename=rename, only=only, exclude=exclude, heads=heads, head_tensors=head_tensors, calibration=samples,
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
@click.option("--methods", required=True, help=f"Comma-separated, of {', '.join(EVERY_METHOD)}.")
@click.option("--group", "groups", multiple=True, help="Models of one merge, as a+b+c; may be repeated "
              "[default: every pair].")  # fmt: skip
@click.option("--pairs", type=click.Path(path_type=Path), help="Merge the pairs in this CSV file, with the columns "
              "model_a and model_b.")  # fmt: skip
def merge_all(
    zoo: tuple[NamedPath, ...], base: Path | None, out: Path, methods: str, groups: tuple[str, ...], pairs: Path | None,
    overwrite: bool, dtype: str | None, device: str, max_memory: int | None, on_mismatch: OnMismatch,
    heads: str | None, head_tensors: tuple[str, ...], calibration: Path | None, model_fn: Callable | None, io: IO,
    rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    samples = _samples(calibration, model_fn)
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
            head_tensors=head_tensors, calibration=samples,
        )  # fmt: skip
    say(f"wrote {len(paths)} merged checkpoints to {out}")


def _write_mergekit_config(
    out: Path, checkpoints: Any, base: Path | None, rename: Mapping[str, str] | None, method: str,
    options: dict[str, Any], weights: Any, dtype: str | None,
) -> None:  # fmt: skip
    """Write a configuration for mergekit, and say by which command it runs."""
    from mergekern.checkpoints import open_zoo
    from mergekern.checkpoints.adapter import Adapter
    from mergekern.merging.mergekit import mergekit_command
    from mergekern.merging.registry import find_method

    chosen, resolved = find_method(method, options)
    is_without_base = chosen.is_without_base(resolved)
    zoo = open_zoo(checkpoints, base, rename=rename, first_as_base=is_without_base, least=chosen.least)
    base_path, *paths = (_for_mergekit(checkpoint) for checkpoint in zoo.checkpoints)
    models = [
        (base_path, path) if isinstance(model, Adapter) else path for model, path in zip(zoo.models, paths, strict=True)
    ]
    dtypes = {str(stored).removeprefix("torch.") for stored in zoo.base.dtypes}
    written = dtype or (dtypes.pop() if len(dtypes) == 1 else None)
    if isinstance(weights, dict):
        weights = [weights.get(name) for name in zoo.model_names]
    text = mergekern.mergekit_config(models, base_path, method, options=options, weights=weights, out_dtype=written)
    write_output(out, text.encode())
    say(f"run it by: {mergekit_command([base_path, *models], str(out))}")


def _for_mergekit(checkpoint: Checkpoint) -> str:
    """Return where a checkpoint lies, as mergekit takes it: a name on the Hub, a folder, or a file."""
    if checkpoint.origin is not None:
        return checkpoint.origin
    path = Path(os.path.abspath(checkpoint.source))
    path = path.parent if (path.parent / "config.json").is_file() else path
    # A folder in the cache of the Hub: models--org--name/snapshots/commit.
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return f"{path.parent.parent.name.removeprefix('models--').replace('--', '/')}@{path.name}"
    return str(path)


def _samples(calibration: Path | None, model_fn: Callable | None) -> Calibration | None:
    if calibration is None and model_fn is not None:
        raise click.UsageError("--calibration and --model-fn are given together")
    return calibration_of(calibration, model_fn)
