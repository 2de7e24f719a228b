"""Files of a tokenizer with other tokens: what a recipe adds to them, and what they have no embedding for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from mergekern.checkpoints.configuration import read_json_object
from mergekern.errors import OptionError
from mergekern.merging.recipes.vocabulary import Vocabulary

_TOKENIZER, _CONFIG, _ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"


def check_removable(folder: Path, before: Vocabulary, after: Vocabulary) -> None:
    """Raise OptionError where tokens that go were not added to a tokenizer, and it is of a kind that needs them."""
    lost = [token for token in before.numbers if token not in after.numbers and token not in before.added]
    if not lost:
        return
    path = folder / _TOKENIZER
    kind = read_json_object(path).get("model", {}).get("type") if path.is_file() else None
    if kind not in ("BPE", "WordLevel"):
        raise OptionError(
            f"tokenizer_source: {len(lost)} tokens of {folder}, as {lost[0]!r}, have no row of the embedding, and "
            f"cannot be taken out of a tokenizer of the kind {kind}; correct vocab_size in its config.json, or leave "
            "tokenizer_source out"
        )


def with_vocabulary(
    files: Mapping[str, Path | bytes], before: Vocabulary, after: Vocabulary
) -> dict[str, Path | bytes]:
    """Return the files of a tokenizer with other tokens.

    Args:
        files: the files of a folder, by name; those that belong to no tokenizer stay as they are.
        before: the tokens that they have.
        after: the tokens that they shall have.
    """
    found = dict(files)
    if before == after:
        return found
    entries = {token: {"id": after.numbers[token], **entry} for token, entry in after.added.items()}
    if isinstance(path := files.get(_TOKENIZER), Path):
        content = read_json_object(path)
        content["added_tokens"] = list(entries.values())
        _take_out(content.get("model", {}), before.numbers.keys() - after.numbers.keys())
        found[_TOKENIZER] = _as_json(content)
    if isinstance(path := files.get(_CONFIG), Path) and "added_tokens_decoder" in (config := read_json_object(path)):
        config["added_tokens_decoder"] = {
            str(entry["id"]): {name: value for name, value in entry.items() if name != "id"}
            for entry in entries.values()
        }
        found[_CONFIG] = _as_json(config)
    if _ADDED in files or _TOKENIZER not in files:
        known = read_json_object(path) if isinstance(path := files.get(_ADDED), Path) else {}
        further = [token for token in after.numbers if token in known or token not in before.numbers]
        found[_ADDED] = _as_json({token: after.numbers[token] for token in further})
    return found


def _take_out(model: dict[str, Any], tokens: Set[str]) -> None:
    """Take tokens out of the model of a tokenizer, with the merges that they are part of."""
    if not tokens or not isinstance(model.get("vocab"), dict):
        return
    model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in tokens}
    if isinstance(model.get("merges"), list):
        parts = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
        gone = [any(part in tokens for part in each) or "".join(each) in tokens for each in parts]
        model["merges"] = [each for each, is_gone in zip(model["merges"], gone, strict=True) if not is_gone]


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
