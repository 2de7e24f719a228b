"""What a table's file must hold, as schemas. A file that says more is read; what is said must be of these types."""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue

from mergekern._internal.documents import Count, Document

# None where there is no value.
Number = float | None


class MetricEntry(Document):
    """One metric in the study's form: its matrix, or the upper half of it, and the same by pairs and tensors."""

    matrix: list[list[Number]]
    pairs: dict[str, Number] = Field(default_factory=dict)
    per_layer: dict[str, dict[str, Number]] = Field(default_factory=dict)


class TableDocument(Document):
    """A table as JSON, in the study's form. Entries of metrics that are not in the catalogue may be anything."""

    datasets: list[str]
    metrics: dict[str, Any]
    n_datasets: Count | None = None
    notes: list[str] = Field(default_factory=list)
    provenance: dict[str, JsonValue] | None = None


class ParquetMetadata(Document):
    """What a table's Parquet file says beside its rows."""

    models: list[str] | None = None
    diagonal: dict[str, list[Number]] = Field(default_factory=dict)
    tensors: dict[str, list[str]] | None = None
    notes: list[str] = Field(default_factory=list)
    provenance: dict[str, JsonValue] | None = None
