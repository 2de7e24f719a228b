"""Files of a table: Parquet, CSV and the study's JSON, chosen by the suffix of the path."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekern._internal.files import write_output
from mergekern._internal.text import listed, shortened
from mergekern.errors import OptionError, OutputError, StatisticsError
from mergekern.tables.cells import to_csv
from mergekern.tables.frames import error_column, pair_frame, pair_keys
from mergekern.tables.rows import check_values

if TYPE_CHECKING:
    import pandas as pd

# pandas, pyarrow and the readers, which take as long to import as all else, are imported where they are used.


@dataclass(frozen=True)
class TableContent:
    """The content of a table's file, with the values of whole models and, where there are any, of single tensors.

    Attributes:
        models: N names, in the order of every matrix.
        values: (N, N) float64 of each metric.
        layers: (N, N) float64 of each metric and tensor; None for a table without values of single tensors.
        notes: what a reader must know.
        provenance: versions, device, backend, dtypes, content hashes, options.
        errors, layer_errors: estimated errors, as values and layers, of the metrics that have them.
    """

    models: Sequence[str]
    values: Mapping[str, np.ndarray]
    layers: Mapping[str, Mapping[str, np.ndarray]] | None
    notes: list[str]
    provenance: Mapping[str, Any] | None
    errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    layer_errors: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


def write_table(path: Path, content: TableContent) -> None:
    """Write a table in the form that the suffix of the path names.

    Raises:
        OptionError: another suffix.
        OutputError: it cannot be written, or a name is not Unicode, as the names of files may be.
    """
    try:
        text = _WRITERS[check_suffix(path)](content)
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 40) : error.end + 40]
        raise OutputError(f"{path}: the name {name!r} is not Unicode, which this file must be; rename it") from error
    write_output(path, text)


def read_table(path: Path) -> TableContent:
    """Read a table in the form that the suffix of the path names. Columns outside the catalogue get a note.

    Nothing that the file says of itself is believed: memory is taken by the rows that there are, every value must be
    possible for its metric, and no pair or name may be there twice.

    Raises:
        OptionError: another suffix.
        StatisticsError: the file is missing, damaged or something else; the message names the place.
    """
    suffix = check_suffix(path)
    from mergekern.tables import reading

    read = {".parquet": reading.from_parquet, ".csv": reading.from_csv, ".json": reading.from_json}[suffix]
    try:
        found = read(path)
        check_values(found.models, found.values, found.layers)
    except (OSError, ValueError) as error:
        raise StatisticsError(f"{path}: not a readable table ({error})") from error
    notes = list(found.notes)
    if unknown := list(found.unknown):
        notes.append(f"columns not in the catalogue, left out: {listed(map(shortened, unknown))}")
    every = {name: found.layers.get(name, {}) for name in found.values} if found.layers else None
    return TableContent(found.models, found.values, every, notes, found.provenance, found.errors, found.layer_errors)


def check_suffix(path: Path) -> str:
    """Return the suffix of a table's path; raise OptionError if no table can be kept there."""
    if path.suffix not in SUFFIXES:
        raise OptionError(
            f"{path}: a table is kept as {', '.join(SUFFIXES)}, not {path.suffix or 'without a suffix'!r}"
        )
    return path.suffix


def _to_parquet(content: TableContent) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(_long_frame(content, with_errors=True))
    extra = {
        "models": content.models,
        "diagonal": {name: _jsonable(np.diagonal(matrix)) for name, matrix in content.values.items()},
        "notes": content.notes,
        "provenance": content.provenance,
    }
    if content.layers is not None:
        extra["tensors"] = {name: list(layers) for name, layers in content.layers.items()}
    metadata = {**(table.schema.metadata or {}), b"mergekern": json.dumps(extra).encode()}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


def _to_csv(content: TableContent) -> bytes:
    return to_csv(_long_frame(content))


def _long_frame(content: TableContent, *, with_errors: bool = False) -> pd.DataFrame:
    """Return the frame of pairs; with per-layer values, also a row for each pair and tensor."""
    import pandas as pd

    errors = {error_column(name): matrix for name, matrix in content.errors.items()} if with_errors else {}
    whole = pair_frame(content.models, {**content.values, **errors})
    if content.layers is None:
        return whole
    tensors = list(dict.fromkeys(tensor for layers in content.layers.values() for tensor in layers))
    frames = [whole.assign(tensor=None)]
    for tensor in tensors:
        present = {name: layers[tensor] for name, layers in content.layers.items() if tensor in layers}
        if with_errors:
            known = content.layer_errors.items()
            present |= {error_column(name): layers[tensor] for name, layers in known if tensor in layers}
        frames.append(pair_frame(content.models, present).assign(tensor=tensor))
    return pd.concat(frames).reindex(columns=["tensor", *content.values, *errors])


def _to_json(content: TableContent) -> bytes:
    """Return the study's form of a table, with notes and provenance beside it."""
    i, j = np.triu_indices(len(content.models), 1)
    keys = pair_keys(content.models)
    lower = np.tri(len(content.models), k=-1, dtype=bool)
    metrics: dict[str, Any] = {}
    for name, matrix in content.values.items():
        metrics[name] = {
            "matrix": _jsonable(np.where(lower, np.nan, matrix)),
            "pairs": dict(zip(keys, _jsonable(matrix[i, j]), strict=True)),
        }
        if content.layers is not None:
            metrics[name]["per_layer"] = {
                key: {tensor: _jsonable(m[a, b]) for tensor, m in content.layers[name].items()}
                for key, a, b in zip(keys, i, j, strict=True)
            }
    document = {
        "datasets": list(content.models),
        "n_datasets": len(content.models),
        "layer_wise": content.layers is not None,
        "metrics": metrics,
        "notes": content.notes,
        "provenance": content.provenance,
    }
    return json.dumps(document, indent=1, allow_nan=False).encode()


def _jsonable(values: np.ndarray) -> Any:
    """Return nested lists with None for NaN."""
    missing: Any = None
    return np.where(np.isnan(values), missing, values.astype(object)).tolist()


_WRITERS = {".parquet": _to_parquet, ".csv": _to_csv, ".json": _to_json}
SUFFIXES = tuple(_WRITERS)
