"""Texts and images as models of transformers take them: by the tokenizer or preprocessor in a model's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekern._internal.extras import needs
from mergekern.errors import CalibrationError
from mergekern.functional.calibration.architectures import library
from mergekern.functional.calibration.losses import IGNORED
from mergekern.functional.processors import Auto, first_processor, give_padding

# Inputs, targets of language models, and the token of padding.
Prepared = tuple[dict[str, Tensor], Tensor | None, int | None]


def causal_lm(texts: Any, folders: Sequence[Path], max_length: int) -> Prepared:
    """Return tokens of texts, and the same as labels, padding left out."""
    inputs, _ = _tokens(texts, folders, max_length)
    labels = _masked(inputs)
    if (labels[:, 1:] == IGNORED).all(dim=1).any():
        raise CalibrationError("a text of fewer than two tokens has no next token to be told; leave it out")
    return inputs, labels, None


def seq2seq_lm(pairs: Any, folders: Sequence[Path], max_length: int) -> Prepared:
    """Return tokens of texts and of their targets, which the decoder takes one later."""
    pairs = list(pairs)
    if not pairs or not all(
        isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs
    ):
        raise CalibrationError("samples of models with encoder and decoder are pairs (text, target)")
    inputs, pad = _tokens([text for text, _ in pairs], folders, max_length)
    labels = _masked(_tokens([target for _, target in pairs], folders, max_length)[0])
    decoder = torch.full_like(labels, pad)
    decoder[:, 1:] = labels[:, :-1].where(labels[:, :-1] != IGNORED, pad)
    return {**inputs, "decoder_input_ids": decoder}, labels, None


def sequences(texts: Any, folders: Sequence[Path], max_length: int) -> Prepared:
    """Return tokens of texts, or of pairs of texts."""
    inputs, pad = _tokens(texts, folders, max_length)
    return inputs, None, pad


def images(given: Any, folders: Sequence[Path], max_length: int) -> Prepared:
    """Return images as values of pixels: a tensor (n, channels, height, width) is taken as it is."""
    if isinstance(given, Tensor):
        return {"pixel_values": given.float()}, None, None
    opened = [_image(each) for each in given]
    if not opened:
        raise CalibrationError("no images")
    processor = _first(folders, "AutoImageProcessor", "preprocessor of images")
    return {"pixel_values": processor(images=opened, return_tensors="pt")["pixel_values"].float()}, None, None


INPUTS: dict[str, Callable[[Any, Sequence[Path], int], Prepared]] = {
    "causal-lm": causal_lm, "seq2seq-lm": seq2seq_lm, "sequence-classification": sequences,
    "image-classification": images,
}  # fmt: skip


def _tokens(texts: Any, folders: Sequence[Path], max_length: int) -> tuple[dict[str, Tensor], int]:
    """Return token ids and masks of texts, and the token of padding; those that are given as tensors as they are."""
    if isinstance(texts, Mapping):
        found = {str(key): torch.as_tensor(values) for key, values in texts.items()}
        if "input_ids" not in found:
            raise CalibrationError(f"tokens are a mapping with input_ids, not with {', '.join(found) or 'nothing'}")
        return found, 0
    if isinstance(texts, str):
        raise CalibrationError("texts are several, one for each sample, not one text")
    texts = [tuple(text) if isinstance(text, list) else text for text in texts]
    if not texts or not all(
        isinstance(part, str) for text in texts for part in (text if isinstance(text, tuple) else [text])
    ):
        raise CalibrationError("texts are strings, or pairs of them, one for each sample")
    tokenizer = _first(folders, "AutoTokenizer", "tokenizer")
    pad = give_padding(tokenizer, f"in {folders[0]}", CalibrationError)
    tokenizer.padding_side = "right"
    try:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    except Exception as error:  # the library of tokenizers raises Exception itself
        line = str(error).strip().partition("\n")[0][:200]
        raise CalibrationError(f"the tokenizer in {folders[0]} fails on the samples: {line}") from error
    return dict(encoded), pad


def _masked(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return token ids as labels: padding takes no part."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"] if mask is None else inputs["input_ids"].masked_fill(mask == 0, IGNORED)


def _image(given: Any) -> Any:
    if not isinstance(given, str | os.PathLike):
        return given
    try:
        from PIL import Image
    except ImportError as error:
        raise CalibrationError(needs("an image", "evaluation", error)) from error
    try:
        with Image.open(given) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{os.fspath(given)}: cannot be read as an image ({error})") from error


def _first(folders: Sequence[Path], auto: Auto, what: str) -> Any:
    """Return what the first folder holds that has one of its kind."""
    library()
    found = first_processor(folders, auto, what, CalibrationError)
    if found is None:
        where = (
            f"no {what} in {' nor '.join(map(str, folders))}" if folders else f"no {what}: the models are no folders"
        )
        raise CalibrationError(f"{where}; give what it makes, as tensors, or copy one into the folder of the base")
    return found
