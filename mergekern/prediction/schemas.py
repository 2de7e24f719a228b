"""What a predictor's file must hold, as a schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, JsonValue

from mergekern._internal.documents import Count, Document

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Three = Field(min_length=3, max_length=3)


class ErrorScaleDocument(Document):
    """How the widths of intervals change with the prediction."""

    slope: Finite
    centre: Finite
    spread: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class IntervalsDocument(Document):
    """Conformal intervals: half widths and held-out predictions by the number of measured models of a pair."""

    level: Annotated[float, Field(gt=0, lt=1)]
    widths: Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None], Three]
    held_out: Annotated[list[Count], Three]
    limits: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None
    scale: ErrorScaleDocument | None = None  # none in files of earlier versions


class RegimeDocument(Document):
    """Figures of one regime of a validation, or why there are none."""

    splitter: str
    why_not: str | None = None
    folds: Count | None = None
    val_r_mean: Finite | None = None
    val_r_sd: Finite | None = None
    pooled_r: Finite | None = None
    r_within_folds: Finite | None = None
    rmse: Finite | None = None
    rmse_of_mean: Finite | None = None
    additive_pooled_r: Finite | None = None
    additive_r_within_folds: Finite | None = None
    regrets: dict[str, dict[str, Finite | None]] | None = None
    additive_val_r_mean: Finite | None = None
    additive_val_r_sd: Finite | None = None
    additive_rmse: Finite | None = None


class PredictorDocument(Document):
    """A predictor of one merge method."""

    kind: str
    method: str
    target: str
    metrics: list[Name]
    ranges: dict[str, Annotated[list[Finite], Field(min_length=2, max_length=2)]]
    measured: list[Annotated[list[Name | Finite], Three]]
    dropped: list[Annotated[list[str], Three]]
    held_out: list[Annotated[list[Name | Finite], Three]]
    intervals: IntervalsDocument
    validation: dict[str, RegimeDocument]
    provenance: dict[str, JsonValue]
    estimator: dict[str, JsonValue]

    def pairs(self) -> list[tuple[str, str, float]]:
        """Return the measured pairs and their scores; ValueError where an entry is none, or is there twice."""
        found: dict[frozenset[Any], tuple[str, str, float]] = {}
        for first, second, score in self.measured:
            if not (isinstance(first, str) and isinstance(second, str) and isinstance(score, float)):
                raise ValueError("measured: an entry is not two names and a score")
            if first == second or frozenset((first, second)) in found:
                raise ValueError(f"measured: the pair {first!r} and {second!r} is there twice, or is of one model")
            found[frozenset((first, second))] = (first, second, score)
        return list(found.values())
