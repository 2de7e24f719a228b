"""Tokenizers and preprocessors of images, as transformers reads them in folders of models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from mergekern.errors import MergekernError

Auto = Literal["AutoTokenizer", "AutoImageProcessor"]
# A folder without such a file has none, and the next one may; what one has and cannot be read is an error.
_FILES = {
    "AutoTokenizer": re.compile(
        r"(tokenizer|vocab|merges|spiece|sentencepiece|source\.|target\.|bpe\.|tekken).*|.*\.spm", re.IGNORECASE
    ),
    "AutoImageProcessor": re.compile(r"((video_)?preprocessor|(image_)?processor|feature_extractor).*", re.IGNORECASE),
}


def first_processor(folders: Iterable[Path], auto: Auto, what: str, error: type[MergekernError]) -> Any:
    """Return what transformers reads in the first of some folders that has its files; None where none has.

    Args:
        folders: folders of models, in this order.
        auto: the class of transformers that reads it.
        what: its name in errors.
        error: kind of error that is raised.

    Raises:
        MergekernError: of this kind; the files of one cannot be read.
        ImportError: transformers is not installed.
    """
    import transformers

    for folder in folders:
        if not folder.is_dir() or not any(_FILES[auto].fullmatch(path.name) for path in folder.iterdir()):
            continue
        try:
            return getattr(transformers, auto).from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as reason:  # the library of tokenizers raises Exception itself
            said = str(reason).strip().partition("\n")[0][:200] or type(reason).__name__
            raise error(f"{folder}: the {what} in it cannot be read: {said}") from reason
    return None


def give_padding(tokenizer: Any, where: str, error: type[MergekernError]) -> int:
    """Return the token that a tokenizer pads with: where it has none, that which ends a text, or of unknown words.

    Args:
        tokenizer: tokenizer, which is changed.
        where: where it comes from, for errors.
        error: kind of error that is raised.

    Raises:
        MergekernError: of this kind; it has none of these.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise error(
            f"the tokenizer {where} has no token for padding, nor one that ends a text: set tokenizer.pad_token, and "
            "save it there (save_pretrained)"
        )
    return int(tokenizer.pad_token_id)
