"""What the JSON in a folder of statistics must hold, as schemas: the manifest, and the descriptions of blocks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from mergekern._internal.documents import Count, Document

# A name of a file in the folder, never a way out of it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
Name = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]


class LayerDocument(Document):
    """Entry of one tensor; its hashes are one text."""

    model_config = ConfigDict(extra="forbid")
    name: str
    shape: list[Count]
    hashes: str
    blocks: list[FileName]


class SvdDocument(Document):
    """How matrices were factorised, where it was not exactly."""

    kind: Literal["randomized"]
    tolerance: Annotated[float, Field(gt=0, lt=1)]


class ProvenanceDocument(Document):
    """What is read again of the provenance of a measurement; the rest is only shown."""

    notes: Annotated[dict[str, list[str]], Field(default_factory=dict)]
    left_out: Annotated[list[str], Field(default_factory=list)]
    content_hashes: Annotated[dict[str, str], Field(default_factory=dict)]
    dtypes: Annotated[dict[str, list[str]], Field(default_factory=dict)]
    origins: Annotated[dict[str, str], Field(default_factory=dict)]
    svd: SvdDocument | None = None
    extras: Annotated[list[Literal["coordinates", "interference"]], Field(default_factory=list)]


class ManifestDocument(Document):
    """A manifest, without format and checksum."""

    model_config = ConfigDict(extra="forbid")
    models: list[Name]
    layers: list[LayerDocument]
    top_k: Positive
    spectrum_k: Positive
    skipped: list[str]
    provenance: dict[str, JsonValue] | None
    sources: dict[str, str | None]
    functional: dict[str, FileName]
    functional_models: list[Name]
    part: Annotated[list[Positive], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _agrees(self) -> ManifestDocument:
        """Check that the parts agree with each other."""
        ProvenanceDocument.model_validate(self.provenance or {})
        for what, names in (("models", self.models), ("functional_models", self.functional_models)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: a name is there twice")
        if len({layer.name for layer in self.layers}) < len(self.layers):
            raise ValueError("layers: a tensor is there twice")
        for layer in self.layers:
            if (models := layer.hashes.count(",")) != len(self.models):
                raise ValueError(f"{len(self.models)} models, but tensor {layer.name!r} has the hashes of {models}")
        if self.part[0] > self.part[1]:
            raise ValueError(f"part {self.part[0]} of {self.part[1]}")
        return self


class BlockDescription(Document):
    """Description of a block of a layer: its key, and the dimension of the subspaces."""

    name: str
    shape: list[Count]
    how: str
    base: str
    rows: list[str]
    columns: list[str]
    k: Count


class ActivationDescription(Document):
    """Description of the statistics of activations."""

    samples: Positive


class EncoderGradientDescription(Document):
    """Description of the statistics of encoder gradients: name and shape of each parameter."""

    parameters: list[Annotated[list[str | list[Count]], Field(min_length=2, max_length=2)]]


class InputGradientDescription(Document):
    """Description of the statistics of input gradients: their shapes."""

    shapes: list[list[Count]]
