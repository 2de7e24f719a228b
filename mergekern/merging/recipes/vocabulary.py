"""The tokens of a tokenizer: their numbers, and those that were added to what it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekern.checkpoints.configuration import read_json_object
from mergekern.errors import CheckpointError

# An added token as files of tokenizers hold it, without its number.
AddedToken = dict[str, Any]
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Where tokenizer_config.json names tokens by what they are for.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
_AS_SPECIAL = {"normalized": False, "special": True}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        numbers: the number of each token.
        added: the tokens that were added to it, in the order of their numbers.
    """

    numbers: dict[str, int]
    added: dict[str, AddedToken] = field(default_factory=dict)

    def below(self, count: int) -> Vocabulary:
        """Return the vocabulary without the tokens whose number is `count` or more: embeddings have no rows for them.

        >>> Vocabulary({"a": 0, "b": 1}).below(1).numbers
        {'a': 0}
        """
        numbers = {token: number for token, number in self.numbers.items() if number < count}
        return Vocabulary(numbers, {token: each for token, each in self.added.items() if token in numbers})

    def plus(self, tokens: Iterable[str | AddedToken]) -> Vocabulary:
        """Return the vocabulary with further tokens; those that it has keep their numbers.

        >>> Vocabulary({"a": 0}).plus(["b", "a", "c"]).numbers
        {'a': 0, 'b': 1, 'c': 2}
        """
        numbers, added = dict(self.numbers), dict(self.added)
        following = 1 + max(numbers.values(), default=-1)
        for token in tokens:
            if isinstance(token, str) and token in numbers:
                continue
            entry = _entry(token)
            if entry["content"] in added:
                continue
            if entry["content"] not in numbers:
                numbers[entry["content"]], following = following, following + 1
            added[entry["content"]] = entry
        return Vocabulary(numbers, dict(sorted(added.items(), key=lambda each: numbers[each[0]])))

    def united(self, others: Sequence[Vocabulary]) -> Vocabulary:
        """Return the vocabulary with the tokens of others: those that these were trained on, then their added ones.

        >>> other = Vocabulary({"b": 0, "<x>": 1, "a": 2}, {"<x>": {"content": "<x>", "special": True}})
        >>> Vocabulary({"a": 0}).united([other, Vocabulary({"c": 0})]).numbers
        {'a': 0, 'b': 1, 'c': 2, '<x>': 3}
        """
        added = {token for each in (self, *others) for token in each.added}
        plain = (
            token
            for each in others
            for token in sorted(each.numbers, key=each.numbers.__getitem__)
            if token not in added
        )
        return self.plus(plain).plus(entry for each in others for entry in each.added.values())


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary of the tokenizer in a folder, as transformers reads it; None where there is none.

    Raises:
        CheckpointError: a file of it cannot be read, or does not say what the files of tokenizers say.
    """
    try:
        found = _read_whole(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: not a usable tokenizer ({type(error).__name__}: {error}); leave `tokenizer` and "
            "`tokenizer_source` out"
        ) from error
    for token, number in found.numbers.items() if found else ():
        if type(number) is not int or number < 0:
            raise CheckpointError(f"{folder}: the number of token {token!r} is {number!r}")
    return found


def _read_whole(folder: Path) -> Vocabulary | None:
    """Return the vocabulary with the tokens that tokenizer_config.json names."""
    found = _read_tokenizer(folder)
    if found is None:
        return None
    config = _read(folder / "tokenizer_config.json")
    by_number = config.get("added_tokens_decoder", {})
    further = [by_number[number] for number in sorted(by_number, key=int)]
    further += [{"content": token, **_AS_SPECIAL} for token in _read(folder / "added_tokens.json")]
    for name in (*_SPECIAL, *_MORE_SPECIAL):
        named = config.get(name) or []
        for each in named if isinstance(named, list) else [named]:
            further.append({**_AS_SPECIAL, **each} if isinstance(each, dict) else {"content": each, **_AS_SPECIAL})
    known = found.numbers
    return found.plus(each for each in further if each.get("content") not in known)


def _read_tokenizer(folder: Path) -> Vocabulary | None:
    """Return what the tokenizer's own files hold."""
    if (folder / "tokenizer.json").is_file():
        content = _read(folder / "tokenizer.json")
        held = content.get("model", {}).get("vocab")
        if isinstance(held, list):  # Unigram: pairs of token and score.
            held = {entry[0]: number for number, entry in enumerate(held)}
        if isinstance(held, dict):
            added = sorted(content.get("added_tokens") or [], key=lambda each: each["id"])
            numbers = {**held, **{each["content"]: each["id"] for each in added}}
            return Vocabulary(numbers, {each["content"]: _entry(each) for each in added})
    if (folder / "vocab.json").is_file():
        numbers = {**_read(folder / "vocab.json"), **_read(folder / "added_tokens.json")}
        return Vocabulary(numbers)
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text("utf-8").splitlines()
        return Vocabulary({token: number for number, token in enumerate(lines)} | _read(folder / "added_tokens.json"))
    return None


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _entry(token: str | AddedToken) -> AddedToken:
    """Return an added token with all its flags; a plain one is found in text that the tokenizer has normalised."""
    given: AddedToken = {"content": token, "normalized": True} if isinstance(token, str) else token
    flags = {name: bool(given.get(name, False)) for name in _FLAGS}
    if not isinstance(given["content"], str):
        raise TypeError(f"the token {given['content']!r} is no text")
    return {"content": given["content"], **flags}
