"""What a recipe may hold, as a schema of mergekit's keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mergekern._internal.documents import Document
from mergekern.errors import did_you_mean
from mergekern.merging.depth import Filtered

# Keys that mergekit has and that cannot be done here, with what to do instead.
_NOT_SUPPORTED = {
    "override_architecture": "tensors are matched by their names: leave it out",
    "experts": "this is a recipe of mergekit-moe, which does not merge weights",
    "gate_mode": "this is a recipe of mergekit-moe, which does not merge weights",
    "genome": "this is a recipe of mergekit-evolve, which searches for weights: `mergekern best` searches for a merge",
    "pad_to_multiple_of": "write it under `tokenizer`",
}
# Keys that recipes have and that change nothing, in mergekit neither; those with x- hold what YAML refers to.
_WITHOUT_EFFECT = frozenset({"name", "random_seed", "residual_weight"})
Parameters = dict[str, Any]


def is_idle(key: Any) -> bool:
    """Tell whether a key changes nothing.

    >>> is_idle("random_seed"), is_idle("x-defaults"), is_idle("models")
    (True, True, False)
    """
    return key in _WITHOUT_EFFECT or str(key).startswith("x-")


class RecipePart(Document):
    """A mapping of a recipe; keys that it cannot have are errors that name the nearest one."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict | cls):
            raise ValueError(f"{content!r} is no mapping with the keys {', '.join(sorted(cls.model_fields))}")
        if isinstance(content, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in content:
                if is_idle(key):
                    continue
                if key in _NOT_SUPPORTED and content[key] is not None and key not in known:
                    raise ValueError(f"the key {key!r} is not supported; {_NOT_SUPPORTED[key]}")
                if key not in known and key not in _NOT_SUPPORTED:
                    nearest = did_you_mean(str(key), known)
                    raise ValueError(f"unknown key {key!r}{nearest}; known are {', '.join(sorted(known))}")
            content = {key: value for key, value in content.items() if key in known}
        return content


class PathPart(RecipePart):
    """Where a model or an adapter lies: a path, or its id on the Hub."""

    path: str
    revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, content: Any) -> Any:
        if not isinstance(content, str):
            return content
        if content.count("@") > 1:
            raise ValueError(f"{content!r} has two @ signs; write path: and revision: instead")
        path, _, revision = content.partition("@")
        return {"path": path, "revision": revision or None}


class ModelPart(RecipePart):
    """A model, with or without an adapter: "path", "path@revision", "path+adapter", or the parts by name."""

    model: PathPart
    lora: PathPart | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, content: Any) -> Any:
        if not isinstance(content, str):
            return content
        if content.count("+") > 1:
            raise ValueError(f"{content!r} has two + signs; write model: and lora: instead")
        model, plus, adapter = content.partition("+")
        return {"model": model, "lora": adapter if plus else None}

    @property
    def text(self) -> str:
        """The model in one line."""
        parts = [self.model] if self.lora is None else [self.model, self.lora]
        return "+".join(part.path if part.revision is None else f"{part.path}@{part.revision}" for part in parts)


def _setting(value: Any) -> Any:
    """Return a parameter's setting as `depth.value_at` takes it."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return _scalar(value)
    if not value:
        raise ValueError("an empty list")
    if not any(isinstance(each, dict) for each in value):
        return [_scalar(each) for each in value]
    found = []
    for each in value:
        if not (isinstance(each, dict) and "value" in each and each.keys() <= {"filter", "value"}):
            raise ValueError(f"{each!r} is not `value` with or without `filter`")
        if not isinstance(each.get("filter"), str | None):
            raise ValueError(f"the filter {each['filter']!r} is no text")
        inner = each["value"]
        inner = [_scalar(one) for one in inner] if isinstance(inner, list) and inner else _scalar(inner)
        found.append(Filtered(each.get("filter"), inner))
    return found


def _scalar(value: Any) -> float | int | bool:
    """Return a plain value; YAML 1.1 takes 8e-3 for a text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{value!r} is no number") from None
    if not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise ValueError(f"{value!r} is no finite number")
    return value


class WithParameters(RecipePart):
    """A part with values of parameters."""

    parameters: Parameters = Field(default_factory=dict)

    @field_validator("parameters", mode="before")
    @classmethod
    def _settings(cls, content: Any) -> Any:
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise ValueError("is not a mapping of parameters to values")
        found = {}
        for name, value in content.items():
            try:
                found[str(name)] = _setting(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return found


class InputModel(WithParameters):
    """A model that is merged whole."""

    model: ModelPart


class SourcePart(InputModel):
    """Some layers of a model: from the first of `layer_range` to the one before the last."""

    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)]

    @field_validator("layer_range")
    @classmethod
    def _ascending(cls, layers: list[int]) -> list[int]:
        if not 0 <= layers[0] < layers[1]:
            raise ValueError(f"{layers} are no layers: give the first one, and the one after the last")
        return layers


class SlicePart(WithParameters):
    """Some layers of the result, with where they come from."""

    sources: Annotated[list[SourcePart], Field(min_length=1)]
    base_model: ModelPart | None = None

    @model_validator(mode="after")
    def _one_length(self) -> SlicePart:
        lengths = {source.layer_range[1] - source.layer_range[0] for source in self.sources}
        if len(lengths) > 1:
            raise ValueError(f"its sources have {' and '.join(map(str, sorted(lengths)))} layers; give equally many")
        return self


class Zero(RecipePart):
    """The embedding of a token is zero."""

    kind: Literal["zero"]


class ModelToken(RecipePart):
    """The embedding of a token is that of another token of a model."""

    kind: Literal["model_token"]
    model: ModelPart
    token: str | None = None
    token_id: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_token(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("give either `token` or `token_id`")
        return self


_KINDS: dict[str, type[RecipePart]] = {"zero": Zero, "model_token": ModelToken}


class TokenPart(RecipePart):
    """Where the embedding of one token comes from; `force` says that models which have the token get it too."""

    source: Zero | ModelToken | ModelPart | None = None
    force: bool = False

    @field_validator("source", mode="before")
    @classmethod
    def _by_kind(cls, content: Any) -> Any:
        if content is None or isinstance(content, RecipePart):
            return content
        if not isinstance(content, dict) or "kind" not in content:
            return ModelPart.model_validate(content)
        kind = str(content["kind"])
        if kind not in _KINDS:
            raise ValueError(f"kind {kind!r} is not known{did_you_mean(kind, _KINDS)}; known are {', '.join(_KINDS)}")
        return _KINDS[kind].model_validate(content)


class TokenizerPart(RecipePart):
    """Whose tokenizer the result has, and where the embeddings of single tokens come from."""

    source: str | ModelPart = "union"
    tokens: dict[str, TokenPart] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class Inputs(WithParameters):
    """What is merged: models as a whole, or slices of their layers."""

    models: list[InputModel] | None = None
    slices: list[SlicePart] | None = None


class ModulePart(Inputs):
    """A module of the result, and what is merged to it."""

    @model_validator(mode="after")
    def _one_input(self) -> ModulePart:
        if bool(self.models) == bool(self.slices):
            raise ValueError("give either `models` or `slices`")
        return self


class Recipe(Inputs):
    """A recipe of mergekit."""

    merge_method: str
    modules: dict[str, ModulePart] | None = None
    base_model: ModelPart | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | ModelPart | None = None
    tokenizer: TokenizerPart | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Recipe:
        if bool(self.models) + bool(self.slices) + bool(self.modules) != 1:
            raise ValueError("give either `models` or `slices`, or `modules` with these")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either `tokenizer_source` or `tokenizer`")
        return self

    @property
    def tokenizer_of(self) -> str | ModelPart | None:
        """Whose tokenizer the result has: "base", "union", a model, or None where the recipe does not say."""
        return self.tokenizer_source if self.tokenizer is None else self.tokenizer.source
