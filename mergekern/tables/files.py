"""Files of a table: Parquet, CSV and the study's JSON, chosen by the suffix of the path."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekern._internal.files import write_output
from mergekern.errors import OptionError, StatisticsError
from mergekern.metrics import is_metric, metric_of
from mergekern.tables.frames import INDEX, pair_frame, pair_matrices

if TYPE_CHECKING:
    import pandas as pd

# pandas and pyarrow, which take as long to import as all else, are imported where they are used.


@dataclass(frozen=True)
class TableContent:
    """The content of a table's file, with the values of whole models and, where there are any, of single tensors.

    Attributes:
        models: N names, in the order of every matrix.
        values: (N, N) float64 of each metric.
        layers: (N, N) float64 of each metric and tensor; None for a table without values of single tensors.
        notes: what a reader must know.
        provenance: versions, device, backend, dtypes, content hashes, options.
    """

    models: Sequence[str]
    values: Mapping[str, np.ndarray]
    layers: Mapping[str, Mapping[str, np.ndarray]] | None
    notes: list[str]
    provenance: Mapping[str, Any] | None


def write_table(path: Path, content: TableContent) -> None:
    """Write a table in the form that the suffix of the path names.

    Raises:
        OptionError: another suffix.
        OutputError: it cannot be written.
    """
    write_output(path, _WRITERS[check_suffix(path)](content))


def read_table(path: Path) -> TableContent:
    """Read a table in the form that the suffix of the path names. Columns outside the catalogue get a note.

    Raises:
        OptionError: another suffix.
        StatisticsError: the file is missing, damaged or something else.
    """
    read = _READERS[check_suffix(path)]
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StatisticsError(f"{path}: not a readable table ({type(error).__name__}: {error})") from error


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

    table = pa.Table.from_pandas(_long_frame(content))
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


def _from_parquet(path: Path) -> TableContent:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    extra = json.loads((pq.read_metadata(path).metadata or {}).get(b"mergekern", b"{}"))
    frame = table.to_pandas()
    return _from_frame(frame.reset_index() if frame.index.names[0] else frame, extra)


def _to_csv(content: TableContent) -> bytes:
    return _long_frame(content).to_csv().encode()


def _from_csv(path: Path) -> TableContent:
    import pandas as pd

    # As text: a model may be called NA, and Python's float() reads back what was written, to the last bit.
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    values = [name for name in frame.columns if name not in (*INDEX, "tensor")]
    frame[values] = frame[values].replace("", "nan").astype(object).map(float)
    if "tensor" in frame:
        frame["tensor"] = frame["tensor"].replace("", None)
    return _from_frame(frame, {})


def _long_frame(content: TableContent) -> pd.DataFrame:
    """Return the frame of pairs; with per-layer values, also a row for each pair and tensor."""
    import pandas as pd

    whole = pair_frame(content.models, content.values)
    if content.layers is None:
        return whole
    tensors = list(dict.fromkeys(tensor for layers in content.layers.values() for tensor in layers))
    frames = [whole.assign(tensor=None)]
    for tensor in tensors:
        present = {name: layers[tensor] for name, layers in content.layers.items() if tensor in layers}
        frames.append(pair_frame(content.models, present).assign(tensor=tensor))
    return pd.concat(frames).reindex(columns=["tensor", *content.values])


def _from_frame(frame: pd.DataFrame, extra: dict[str, Any]) -> TableContent:
    """Return the content of a long frame, completed by the metadata of a Parquet file."""
    models = extra.get("models") or list(dict.fromkeys([*frame["model_a"], *frame["model_b"]]))
    metrics = [name for name in frame.columns if name not in (*INDEX, "tensor")]
    values = pair_matrices(models, frame if "tensor" not in frame else frame[frame["tensor"].isna()], metrics)
    for name, diagonal in extra.get("diagonal", {}).items():
        np.fill_diagonal(values[name], np.array(diagonal, dtype=np.float64))
    layers: dict[str, dict[str, np.ndarray]] = {}
    if "tensor" in frame:
        for tensor, rows in frame[frame["tensor"].notna()].groupby("tensor", sort=False):
            for name, matrix in pair_matrices(models, rows, metrics).items():
                # Where a metric is not defined for a tensor, its whole column is missing; Parquet says which are.
                if "tensors" in extra:
                    is_defined = tensor in extra["tensors"].get(name, ())
                else:
                    is_defined = is_metric(name) and (metric_of(name).every_tensor or not np.isnan(matrix).all())
                if is_defined:
                    layers.setdefault(name, {})[str(tensor)] = matrix
    return _content(models, values, layers, extra)


def _to_json(content: TableContent) -> bytes:
    """Return the study's form of a table, with notes and provenance beside it."""
    i, j = np.triu_indices(len(content.models), 1)
    keys = _pair_keys(content.models)
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


def _from_json(path: Path) -> TableContent:
    document = json.loads(path.read_text())
    models = document["datasets"]
    i, j = np.triu_indices(len(models), 1)
    keys = _pair_keys(models)
    values: dict[str, np.ndarray] = {}
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, entry in document["metrics"].items():
        matrix = np.array(entry["matrix"], dtype=np.float64).reshape(len(models), len(models))
        values[name] = np.where(np.tri(len(models), k=-1, dtype=bool), matrix.T, matrix)
        for key, a, b in zip(keys, i, j, strict=True):
            for tensor, value in entry.get("per_layer", {}).get(key, {}).items():
                matrices = layers.setdefault(name, {})
                matrices.setdefault(tensor, np.full(matrix.shape, np.nan))
                matrices[tensor][[a, b], [b, a]] = np.nan if value is None else value
    return _content(models, values, layers, document)


def _pair_keys(models: Sequence[str]) -> list[str]:
    """Return the study's key of each pair, a__b; where two pairs get the same one, the later ones are numbered."""
    keys: dict[str, None] = {}
    for first, second in itertools.combinations(models, 2):
        plain = key = f"{first}__{second}"
        number = 1
        while key in keys:
            number += 1
            key = f"{plain}#{number}"
        keys[key] = None
    return list(keys)


def _jsonable(values: np.ndarray) -> Any:
    """Return nested lists with None for NaN."""
    missing: Any = None
    return np.where(np.isnan(values), missing, values.astype(object)).tolist()


def _content(
    models: Sequence[str],
    values: Mapping[str, np.ndarray],
    layers: Mapping[str, Mapping[str, np.ndarray]],
    extra: Mapping[str, Any],
) -> TableContent:
    """Return the content of a file, with a note on the columns that are not in the catalogue."""
    notes = list(extra.get("notes", []))
    if unknown := [name for name in values if not is_metric(name)]:
        notes.append(f"columns not in the catalogue, left out: {', '.join(unknown)}")
    every = {name: layers.get(name, {}) for name in values} if layers else None
    return TableContent(models, values, every, notes, extra.get("provenance"))


_WRITERS = {".parquet": _to_parquet, ".csv": _to_csv, ".json": _to_json}
_READERS = {".parquet": _from_parquet, ".csv": _from_csv, ".json": _from_json}
SUFFIXES = tuple(_WRITERS)
