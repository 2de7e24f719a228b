"""The tokenizer of a result: whose files it gets, and the rows that its embeddings have with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekern._internal.text import listed
from mergekern.checkpoints.configuration import read_json_object
from mergekern.errors import CheckpointError, OptionError, did_you_mean
from mergekern.merging.recipes.chat_templates import CHAT_TEMPLATES
from mergekern.merging.recipes.embeddings import Embeddings, rows_of_vocabulary
from mergekern.merging.recipes.models import Model, Models
from mergekern.merging.recipes.schema import ModelPart, Recipe
from mergekern.merging.recipes.tokenizer_files import check_removable, with_vocabulary
from mergekern.merging.recipes.vocabulary import Vocabulary, read_vocabulary

# Files that belong to a tokenizer.
_FILES = re.compile(
    r"tokenizer.*\.(json|model|txt)|(source|target|sentencepiece\.bpe|spiece)\.(spm|model)|vocab(ulary)?\.(json|txt)"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)|spiece\.model"
)
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a result.

    Attributes:
        folder: whose files it is; None for those of the model that the result is laid out like.
        template: the chat template; None for that of the files.
        held: the tokens that the files have; None where the recipe names no tokenizer.
        embeddings: the rows of embeddings and heads for its tokens; None where the recipe names no tokenizer.
        assumed: the models whose tokens are not known.
        notes: what is left out, and which rows are zeros.
    """

    folder: Path | None = None
    template: str | None = None
    held: Vocabulary | None = None
    embeddings: Embeddings | None = None
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def files(self, copied: Mapping[str, Path]) -> dict[str, Path | bytes]:
        """Return the files of a result, given those that would be copied without a tokenizer of its own."""
        found: dict[str, Path | bytes] = dict(copied)
        if self.folder is not None:
            found = {name: path for name, path in found.items() if not _FILES.fullmatch(name)}
            found |= tokenizer_files(self.folder)
        if self.held is not None and self.embeddings is not None:
            found = with_vocabulary(found, self.held, self.embeddings.vocabulary)
        if self.template is not None:
            found.pop("chat_template.json", None)
            found[_TEMPLATE] = self.template.encode()
            if _CONFIG in found:
                content = found[_CONFIG]
                read = json.loads(content) if isinstance(content, bytes) else read_json_object(content)
                # Where programs of before 2025 look for it.
                config = {**{name: value for name, value in read.items() if name != "chat_template"},
                          "chat_template": self.template}  # fmt: skip
                found[_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        return found


def find_tokenizer(recipe: Recipe, models: Models, donor: Model) -> Tokenizer:
    """Return the tokenizer that a recipe asks for.

    Raises:
        OptionError: embeddings cannot be made for its tokens.
        CheckpointError: the base, or the model that is named, has no tokenizer.
    """
    source = recipe.tokenizer_of
    template = _template(recipe.chat_template, models.opened)
    if source is None:
        return Tokenizer(template=template)
    tokens = (recipe.tokenizer.tokens if recipe.tokenizer else None) or {}
    merged = models.opened
    whole = {donor.text: _needed(donor.folder, donor.text)}
    of_models = {donor.text: whole[donor.text].below(rows_of_vocabulary(donor))}
    assumed = []
    for model in merged:
        if model is donor:
            continue
        held = read_vocabulary(model.folder) if model.folder else None
        if held is None:
            assumed.append(f"{model.text} has no tokenizer that can be read; its tokens count as those of {donor.text}")
        whole[model.text] = held or whole[donor.text]
        of_models[model.text] = whole[model.text].below(rows_of_vocabulary(model))
    folder, files = donor.folder, whole[donor.text]
    found = of_models[donor.text]
    if source == "union":
        found = found.united([of_models[model.text] for model in merged if model is not donor])
    elif source != "base":
        part = ModelPart.model_validate(source)
        folder = models.folder(part)
        found = files = _needed(folder, part.text)
    found = found.plus(tokens)
    assert folder is not None
    check_removable(folder, files, found)
    count = len(found.numbers)
    if sorted(found.numbers.values()) != list(range(count)):
        raise OptionError(
            f"tokenizer_source: the {count} tokens of {folder} are not numbered from 0 on without gaps; leave "
            "tokenizer_source out"
        )
    multiple = (recipe.tokenizer.pad_to_multiple_of if recipe.tokenizer else None) or 1
    embeddings = Embeddings(found, of_models, tokens, -count % multiple)
    return Tokenizer(folder, template, files, embeddings, tuple(assumed), tuple(_notes(embeddings, merged)))


def _needed(folder: Path | None, text: str) -> Vocabulary:
    found = read_vocabulary(folder) if folder else None
    if found is None:
        raise CheckpointError(
            f"{text}: has no tokenizer.json, vocab.json or vocab.txt, which tokenizer_source needs; leave it out"
        )
    return found


def _notes(embeddings: Embeddings, models: Sequence[Model]) -> list[str]:
    """Return which tokens no model has, and how many rows of each model go into no row of the result."""
    numbers, notes = embeddings.vocabulary.numbers, []
    held = [embeddings.of_models[model.text].numbers for model in models]
    if unknown := [token for token in numbers if token not in embeddings.tokens and not any(token in n for n in held)]:
        notes.append(f"tokens that no model has, whose rows are zeros ({len(unknown):,}): {listed(unknown)}")
    for model, own in zip(models, held, strict=True):
        rows = model.rows_of_embedding
        if rows is not None and (lost := rows - sum(token in numbers for token in own)) > 0:
            notes.append(f"rows of embeddings of {model.text} that belong to no token of the result: {lost:,}")
    return notes


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return the files of the tokenizer in a folder, by name."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _FILES.fullmatch(path.name)}


def _template(named: str | None, models: Sequence[Model]) -> str | None:
    if named is None or named in CHAT_TEMPLATES:
        return CHAT_TEMPLATES.get(named or "")
    if named == "auto":
        found = [text for model in models if model.folder and (text := _own_template(model.folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if len(named) < 20 or "{" not in named:
        raise OptionError(
            f"chat_template {named[:40]!r} is not supported{did_you_mean(named, [*CHAT_TEMPLATES, 'auto'])}; give "
            f"auto, {', '.join(CHAT_TEMPLATES)}, or the text of a template"
        )
    return named


def _own_template(folder: Path) -> str | None:
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text("utf-8").strip()
    if (folder / _CONFIG).is_file():
        found = read_json_object(folder / _CONFIG).get("chat_template")
        return found.strip() if isinstance(found, str) else None
    return None
