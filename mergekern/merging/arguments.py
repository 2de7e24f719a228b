"""Arguments of merges as a caller gives them, checked and resolved: weights, groups of models and dtypes."""

from __future__ import annotations

from mergekern.checkpoints.dtypes import FLOATS

DTYPES = {str(row.dtype).removeprefix("torch."): row.dtype for row in FLOATS if row.is_written}
