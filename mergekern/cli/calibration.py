"""`mergekern calibrate`: samples, and the heads of a zoo's models, for the metrics and probes that run models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import mergekern
from mergekern.cli.display import say
from mergekern.cli.models import NamedPath, models_of, say_what_is_left_out
from mergekern.cli.parameters import ModelPath, io_option, rename_option
from mergekern.errors import CalibrationError, OutputError

TASKS = ("causal-lm", "seq2seq-lm", "sequence-classification", "image-classification")
# What a row of samples may say.
_COLUMNS = frozenset({"text", "text_pair", "target", "image", "label", "model"})


@click.command(
    help="""\
Write a folder of samples and heads, with which `metrics --calibration` runs the models in the folder ZOO.

The models are folders of transformers, or LoRA adapters of one. --samples is a file of JSON lines, such as
{"text": "…", "label": "positive"}, {"text": "…", "target": "…"} or {"image": "cat.png", "label": 3}; with "model": NAME
a line is a sample of that model alone. Lines without labels get those that each model predicts.
"""
)
@click.argument("zoo", type=ModelPath(), nargs=-1, required=True)
@click.option("--base", type=click.Path(path_type=Path), help="The checkpoint all models were fine-tuned from "
              "[default: base.* or base/ in ZOO].")  # fmt: skip
@click.option("--samples", "--texts", "--images", "samples", type=click.Path(path_type=Path), required=True,
              help="File of JSON lines, one a sample.")  # fmt: skip
@click.option("--task", type=click.Choice(TASKS), help="What the models do [default: by their architectures].")
@click.option("--max-length", default=128, show_default=True, help="Tokens beyond which a text is cut off.")
@click.option("--layer", help="The module whose output is the activation [default: the last hidden state].")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder.")
@click.option("--overwrite", is_flag=True, help="Replace the samples of a calibration that is there.")
@io_option
@rename_option
def calibrate(
    zoo: tuple[NamedPath, ...], base: Path | None, samples: Path, task: str | None, max_length: int, layer: str | None,
    out: Path, overwrite: bool, io: Any, rename: Mapping[str, str] | None,
) -> None:  # fmt: skip
    from mergekern.checkpoints import open_zoo
    from mergekern.functional.calibration.from_models import kind_of

    _check_output(out, overwrite)
    rows = _rows(samples)
    models = models_of(zoo, base)
    say_what_is_left_out(models, base)
    opened = open_zoo(models, base, on_mismatch="skip", io=io, rename=rename)
    kind = task or kind_of(opened)
    given = _by_model([_sample(row, kind, samples) for row in rows], rows, opened.model_names)
    labels: Any = None
    if any("label" in row for row in rows):
        labels = _by_model([row.get("label") for row in rows], rows, opened.model_names)
    if kind == "causal-lm":
        calibration = mergekern.Calibration.for_causal_lm(opened, given, max_length=max_length, layer=layer)
    elif kind == "seq2seq-lm":
        calibration = mergekern.Calibration.for_seq2seq_lm(opened, given, max_length=max_length, layer=layer)
    elif kind == "sequence-classification":
        calibration = mergekern.Calibration.for_sequence_classification(
            opened, given, labels, max_length=max_length, layer=layer
        )
    else:
        calibration = mergekern.Calibration.for_image_classification(opened, given, labels, layer=layer)
    calibration.save(out)
    say(f"{calibration!r}\nwrote {out}; mergekern metrics … --calibration {out}")


def _check_output(out: Path, overwrite: bool) -> None:
    """Raise OutputError unless a folder is new, or its writing was stopped, or it may be replaced."""
    from mergekern.functional.calibration.folder import is_unfinished

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; a calibration is a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / "calibration.json").is_file():
            raise OutputError(f"{out}: is there and is no calibration; give another folder")
        if not overwrite and not is_unfinished(out):
            raise OutputError(f"{out}: is there already; --overwrite replaces it")


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines.

    Raises:
        CalibrationError: a line is no JSON object, or says what no sample has.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: cannot be read ({error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{path}, line {number}: no JSON ({error})") from error
        if not isinstance(row, dict) or not row or not row.keys() <= _COLUMNS:
            raise CalibrationError(f"{path}, line {number}: a sample is an object of {', '.join(sorted(_COLUMNS))}")
        rows.append(row)
    if not rows:
        raise CalibrationError(f"{path}: holds no samples")
    return rows


def _sample(row: Mapping[str, Any], kind: str, path: Path) -> Any:
    """Return what a model is run on: a text, a pair of texts, or the path of an image."""
    needed = {"image-classification": ("image",), "seq2seq-lm": ("text", "target")}.get(kind, ("text",))
    if lacking := [name for name in needed if not isinstance(row.get(name), str)]:
        raise CalibrationError(f"{path}: a sample of {kind} has {lacking[0]!r}, a string; one is {str(row)[:60]}")
    if kind == "image-classification":
        return path.parent / row["image"]
    second = row.get("target") if kind == "seq2seq-lm" else row.get("text_pair")
    return row["text"] if second is None else (row["text"], second)


def _by_model(values: list[Any], rows: list[dict[str, Any]], models: tuple[str, ...]) -> Any:
    """Return values by the model that their rows name, or as they are where no row names one."""
    if not any("model" in row for row in rows):
        return values
    if unknown := next((row["model"] for row in rows if row.get("model") not in (None, *models)), None):
        raise CalibrationError(f"samples of {unknown!r}, which is no model of the zoo ({', '.join(models)})")
    return {
        model: [value for value, row in zip(values, rows, strict=True) if row.get("model") in (None, model)]
        for model in models
    }
