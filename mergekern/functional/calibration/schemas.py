"""What a calibration.json may say, as a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from mergekern._internal.documents import Document

# `Calibration` refuses a text.
Size = Annotated[int, Field(ge=1, lt=1 << 31)] | Annotated[str, Field(max_length=100)]


class OptionsDocument(Document):
    """Options of a calibration; what is not said has the default of `Calibration`, or is given by the caller."""

    model_config = ConfigDict(extra="forbid")
    unfinished: bool = False  # while the files beside it are written
    layer: str | None = None
    input_layer: str | None = None
    batch_size: Size | None = None
    activation_batch_size: Size | None = None
    batch_weighting: Literal["published", "sample"] | None = None
    token_dim: Literal[0, 1, 2] | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    own_loss: bool = False
    loss: Literal["cross_entropy", "next_token", "tokens", "by_labels"] | None = None
    # Of models of transformers: the kind of task, and configurations of the shared model and of each task's.
    kind: Literal["causal-lm", "seq2seq-lm", "sequence-classification", "image-classification"] | None = None
    config: dict[str, Any] | None = None
    configs: dict[str, dict[str, Any]] | None = None
    normalize_features: bool = False
    logit_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
