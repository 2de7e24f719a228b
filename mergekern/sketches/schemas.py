"""What the JSON in a file of sketches must hold, as a schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mergekern._internal.documents import Document


class SketchDescription(Document):
    """Description of sketches: the models, and what makes two sketches comparable."""

    format: int
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    random_state: int
    base: str | None
    notes: Annotated[list[str], Field(default_factory=list)]

    @model_validator(mode="after")
    def _names_differ(self) -> SketchDescription:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models: a name is there twice")
        return self
