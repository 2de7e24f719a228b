"""The tokenizer of a result: whose files it gets, and how many rows its embeddings have with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergekern.checkpoints.configuration import read_json_object
from mergekern.checkpoints.tying import is_head
from mergekern.errors import CheckpointError, OptionError, did_you_mean
from mergekern.merging.recipes.models import Model, Models
from mergekern.merging.recipes.schema import ModelPart, Recipe
from mergekern.merging.recipes.slices import is_before_layers

# Files that belong to a tokenizer.
_FILES = re.compile(
    r"tokenizer.*\.(json|model|txt)|(source|target|sentencepiece\.bpe|spiece)\.(spm|model)|vocab(ulary)?\.(json|txt)"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)|spiece\.model"
)
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# The chat templates that are known by name.
_TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a result.

    Attributes:
        model: whose files it is; None for those of the model that the result is laid out like.
        template: the chat template; None for that of the files.
        vocabulary: the number of tokens; None where the recipe does not name a tokenizer.
        rows: rows of embeddings in a model -> rows in the result, where those differ.
    """

    model: Model | None = None
    template: str | None = None
    vocabulary: int | None = None
    rows: Mapping[int, int] = field(default_factory=dict)

    def files(self, copied: Mapping[str, Path]) -> dict[str, Path | bytes]:
        """Return the files of a result, given those that would be copied without a tokenizer of its own."""
        found: dict[str, Path | bytes] = dict(copied)
        if self.model is not None and self.model.folder is not None:
            found = {name: path for name, path in found.items() if not _FILES.fullmatch(name)}
            found |= tokenizer_files(self.model.folder)
        if self.template is not None:
            found.pop("chat_template.json", None)
            found[_TEMPLATE] = self.template.encode()
            path = found.get(_CONFIG)
            if isinstance(path, Path):
                config = {name: value for name, value in read_json_object(path).items() if name != "chat_template"}
                # Where programs of before 2025 look for it.
                config["chat_template"] = self.template
                found[_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        return found


def find_tokenizer(recipe: Recipe, models: Models, donor: Model) -> Tokenizer:
    """Return the tokenizer that a recipe asks for.

    Raises:
        OptionError: vocabularies differ, so that embeddings would have to be made anew.
        CheckpointError: a model has no tokenizer.
    """
    of = recipe.tokenizer_of
    template = _template(recipe.chat_template, models.opened)
    if of is None:
        return Tokenizer(template=template)
    merged = models.opened
    if of == "union":
        source = donor
    elif of == "base":
        if recipe.base_model is None:
            raise OptionError("tokenizer_source: base needs a base_model")
        source = models[recipe.base_model]
    else:
        source = models[ModelPart.model_validate(of)]
    vocabulary = vocabulary_of(source)
    for model in merged:
        if model is not source and vocabulary_of(model) != vocabulary:
            raise OptionError(
                f"tokenizer_source: the vocabularies of {source.text} and {model.text} differ, and embeddings are not "
                "made anew here; leave tokenizer_source out, or merge models of one vocabulary"
            )
    count = len(vocabulary)
    if sorted(vocabulary.values()) != list(range(count)):
        raise OptionError(
            f"tokenizer_source: the {count} tokens of {source.text} are not numbered from 0 on without gaps; leave "
            "tokenizer_source out"
        )
    return Tokenizer(source, template, count, _rows(merged, count))


def _rows(models: Sequence[Model], count: int) -> dict[int, int]:
    """Return how many rows of embeddings are kept: those of tokens."""
    found = {}
    for model in models:
        for name, tensor in model.checkpoint.tensors.items():
            if len(tensor.shape) != 2 or not (is_head(name) or _is_embedding(name)):
                continue
            if tensor.shape[0] < count:
                raise OptionError(
                    f"tokenizer_source: {name!r} of {model.text} has {tensor.shape[0]} rows for {count} tokens; leave "
                    "tokenizer_source out"
                )
            if tensor.shape[0] > count:
                found[tensor.shape[0]] = count
    return found


def _is_embedding(name: str) -> bool:
    return is_before_layers(name) and any(part in name for part in ("embed_tokens", "wte", "word_embed", "embed_in"))


def vocabulary_of(model: Model) -> dict[str, int]:
    """Return the numbers of a model's tokens.

    Raises:
        CheckpointError: the model has no tokenizer, or one whose vocabulary cannot be read.
    """
    folder = model.folder
    if folder is not None and (folder / "tokenizer.json").is_file():
        content = read_json_object(folder / "tokenizer.json")
        vocabulary = content.get("model", {}).get("vocab")
        if isinstance(vocabulary, list):  # Unigram: pairs of token and score.
            vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
        if isinstance(vocabulary, dict):
            added = {each["content"]: each["id"] for each in content.get("added_tokens", [])}
            return {**vocabulary, **added}
    if folder is not None and (folder / "vocab.json").is_file():
        added_tokens = folder / "added_tokens.json"
        return {
            **read_json_object(folder / "vocab.json"),
            **(read_json_object(added_tokens) if added_tokens.is_file() else {}),
        }
    if folder is not None and (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text("utf-8").splitlines()
        return {token: number for number, token in enumerate(lines)}
    raise CheckpointError(
        f"{model.text}: has no tokenizer.json, vocab.json or vocab.txt, which tokenizer_source needs; leave it out"
    )


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return the files of the tokenizer in a folder, by name."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _FILES.fullmatch(path.name)}


def _template(named: str | None, models: Sequence[Model]) -> str | None:
    if named is None or named in _TEMPLATES:
        return _TEMPLATES.get(named or "")
    if named == "auto":
        found = [text for model in models if model.folder and (text := _own_template(model.folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if len(named) < 20 or "{" not in named:
        raise OptionError(
            f"chat_template {named[:40]!r} is not supported{did_you_mean(named, [*_TEMPLATES, 'auto'])}; give auto, "
            f"{', '.join(_TEMPLATES)}, or the text of a template"
        )
    return named


def _own_template(folder: Path) -> str | None:
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text("utf-8").strip()
    if (folder / _CONFIG).is_file():
        found = read_json_object(folder / _CONFIG).get("chat_template")
        return found.strip() if isinstance(found, str) else None
    return None
