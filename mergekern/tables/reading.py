"""Reading tables that others may have written: Parquet, CSV and the study's JSON. Every value is checked."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekern._internal.documents import checked, parse_json, read_document
from mergekern._internal.text import listed, shortened
from mergekern.metrics import is_metric, metric_of
from mergekern.tables.cells import from_cell
from mergekern.tables.frames import INDEX, error_column, pair_keys
from mergekern.tables.rows import Rows, check_models, check_size
from mergekern.tables.schemas import MetricEntry, ParquetMetadata, TableDocument

if TYPE_CHECKING:
    import pyarrow as pa

Layers = dict[str, dict[str, np.ndarray]]
TENSOR = "tensor"
# Rows that a Parquet file may say it has, for each of its bytes: equal values take hardly any room in it.
ROWS_PER_BYTE = 100


@dataclass(frozen=True)
class Found:
    """The content of a table's file.

    Attributes:
        models, values, layers, notes, provenance: as in `TableContent`.
        unknown: names of columns that are not in the catalogue; they are not read.
        errors, layer_errors: as in `TableContent`.
    """

    models: Sequence[str]
    values: Mapping[str, np.ndarray]
    layers: Layers = field(default_factory=dict)
    notes: Iterable[str] = ()
    provenance: Mapping[str, Any] | None = None
    unknown: Iterable[str] = ()
    errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    layer_errors: Layers = field(default_factory=dict)


def from_csv(path: Path) -> Found:
    """Read a CSV table: one row for each pair, with model_a, model_b and a column for each metric.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such table; the message names row and column.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            return _from_csv_rows(csv.reader(file, strict=True))
        except csv.Error as error:
            raise ValueError(f"no CSV: {error}") from error


def _from_csv_rows(reader: Iterator[list[str]]) -> Found:
    header = [from_cell(cell) for cell in next(reader, [])]
    check_header(header)
    a, b = (header.index(name) for name in INDEX)
    at_tensor = header.index(TENSOR) if TENSOR in header else None
    wanted = {place: name for place, name in enumerate(header) if is_metric(name)}
    first, second, tensor = [], [], []
    numbers: dict[str, list[float]] = {name: [] for name in wanted.values()}
    for number, row in enumerate(filter(None, reader), 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} values, and the header {len(header)} columns")
        first.append(from_cell(row[a]))
        second.append(from_cell(row[b]))
        if at_tensor is not None:
            tensor.append(from_cell(row[at_tensor]) or None)
        for place, name in wanted.items():
            numbers[name].append(_number(row[place], number, name))
    rows = _rows(first, second, tensor)
    return _from_rows(rows, {name: np.array(values) for name, values in numbers.items()}, header, ParquetMetadata())


def _number(text: str, row: int, column: str) -> float:
    """Return a cell's number, NaN where it is empty; Python's float() reads what was written, to the last bit."""
    try:
        value = float(text or "nan")
        if "_" not in text and not math.isinf(value):
            return value
    except ValueError:
        pass
    raise ValueError(f"row {row}, {column}: {shortened(text)!r} is not a finite number; leave empty what has no value")


def check_header(header: Sequence[str]) -> None:
    """Raise ValueError where columns of a table are missing, or two have one name."""
    if missing := [name for name in INDEX if name not in header]:
        there = shortened(", ".join(header)) or "none"
        raise ValueError(f"no column {' and no column '.join(missing)}; it has {there}")
    if len(set(header)) < len(header):
        twice = next(name for place, name in enumerate(header) if name in header[:place])
        raise ValueError(f"two columns are named {shortened(twice)!r}; keep one of them")


def _rows(first: Sequence[str], second: Sequence[str], tensor: Sequence[str | None]) -> Rows:
    """Return rows by their names, checked."""
    models = list(dict.fromkeys([*first, *second]))
    at = {name: position for position, name in enumerate(models)}
    tensors = [name for name in dict.fromkeys(tensor) if name is not None]
    places: dict[str | None, int] = {None: -1} | {name: position for position, name in enumerate(tensors)}
    of_row = [places[name] for name in tensor] if tensor else [-1] * len(first)
    a, b = (np.array([at[name] for name in side], dtype=np.int64) for side in (first, second))
    rows = Rows(models, a, b, tensors, np.array(of_row, dtype=np.int64))
    rows.check()
    return rows


def from_parquet(path: Path) -> Found:
    """Read a Parquet table; raises as `from_csv` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _in_words(pa), pq.ParquetFile(path) as file:
        header = file.schema_arrow.names
        check_header(header)
        count, size = file.metadata.num_rows, path.stat().st_size
        if count > ROWS_PER_BYTE * size:
            raise ValueError(f"{count:,} rows in {size:,} bytes; no table of different pairs is so small")
        metadata = (file.metadata.metadata or {}).get(b"mergekern", b"{}")
        extra = checked(ParquetMetadata, parse_json(metadata))
        # Names are checked before numbers are read.
        rows = _rows_of(file.read(columns=[name for name in header if name in (*INDEX, TENSOR)]), extra)
        wanted = [name for name in header if is_metric(name)]
        of_error = {name: error_column(name) for name in wanted if error_column(name) in header}
        table = file.read(columns=[*wanted, *of_error.values()])
        errors = {name: _errors_of(table, column) for name, column in of_error.items()}
        return _from_rows(rows, {name: _numbers_of(table, name) for name in wanted}, header, extra, errors)


@contextmanager
def _in_words(pa: Any) -> Iterator[None]:
    """Turn pyarrow's errors into ValueErrors of one line."""
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"no Parquet: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _rows_of(table: pa.Table, extra: ParquetMetadata) -> Rows:
    import pyarrow as pa
    import pyarrow.compute as pc

    names: dict[str, list[str]] = {}
    for name in table.column_names:
        kind = table[name].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or (name, kind) == (TENSOR, pa.null())):
            raise ValueError(f"column {name} holds {shortened(str(kind))}, not names")
        names[name] = pc.unique(table[name].cast(pa.large_string())).to_pylist()
    models = list(dict.fromkeys([*names["model_a"], *names["model_b"]]))
    if None in models:
        raise ValueError("a row does not name its two models")
    if extra.models is not None:
        check_models(extra.models)
        if differing := sorted({*models} ^ {*extra.models}):
            what = "are in no row" if differing[0] in extra.models else "are in rows, and not among its models"
            counts = f"its metadata name {len(extra.models):,} models, its rows {len(models):,}"
            raise ValueError(f"{counts}: {listed(map(repr, map(shortened, differing)), 5)} {what}")
        models = extra.models

    def positions(name: str, known: list[str]) -> np.ndarray:
        found = pc.index_in(table[name].cast(pa.large_string()), value_set=pa.array(known, pa.large_string()))
        return found.fill_null(-1).to_numpy().astype(np.int64)

    tensors = [name for name in names.get(TENSOR, []) if name is not None]
    tensor = positions(TENSOR, tensors) if TENSOR in names else np.full(len(table), -1)
    rows = Rows(models, positions("model_a", models), positions("model_b", models), tensors, tensor)
    rows.check()
    return rows


def _numbers_of(table: pa.Table, name: str) -> np.ndarray:
    import pyarrow as pa

    kind = table[name].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"column {name} holds {shortened(str(kind))}, not numbers")
    return table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()


def _errors_of(table: pa.Table, name: str) -> np.ndarray:
    numbers = _numbers_of(table, name)
    if (bad := np.flatnonzero(np.isinf(numbers) | (numbers < 0))).size:
        raise ValueError(f"row {bad[0] + 1}: {name} is {numbers[bad[0]]:g}, and an error is from 0 on")
    return numbers


def _from_rows(
    rows: Rows,
    numbers: Mapping[str, np.ndarray],
    header: Sequence[str],
    extra: ParquetMetadata,
    errors: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Found:
    """Return the content of rows, completed by the metadata of a Parquet file; `errors` are by metric."""
    values = {name: rows.matrix(column) for name, column in numbers.items()}
    for name, diagonal in extra.diagonal.items():
        if name in values:
            if len(diagonal) != len(rows.models):
                raise ValueError(f"{name}: {len(diagonal):,} values of models with themselves, of {len(rows.models):,}")
            np.fill_diagonal(values[name], np.array(diagonal, dtype=np.float64))
    layers: Layers = {}
    for place, tensor in enumerate(rows.tensors):
        for name, column in numbers.items():
            matrix = rows.matrix(column, place)
            # Where a metric is not defined for a tensor, its whole column is missing; Parquet says which are.
            if extra.tensors is not None:
                is_defined = tensor in extra.tensors.get(name, ())
            else:
                is_defined = metric_of(name).every_tensor or not np.isnan(matrix).all()
            if is_defined:
                layers.setdefault(name, {})[tensor] = matrix
    notes = [*extra.notes, *filter(None, [rows.lacking()])]
    unknown = [name for name in header if name not in (*INDEX, TENSOR, *numbers, *map(error_column, errors))]
    of_whole = {name: _of_pairs(rows, column) for name, column in errors.items()}
    of_layers = {
        name: {tensor: _of_pairs(rows, column, rows.tensors.index(tensor)) for tensor in layers.get(name, {})}
        for name, column in errors.items()
    }
    return Found(rows.models, values, layers, notes, extra.provenance, unknown, of_whole, of_layers)


def _of_pairs(rows: Rows, column: np.ndarray, tensor: int = -1) -> np.ndarray:
    """Return the errors of pairs as a matrix; a model with itself has none."""
    matrix = rows.matrix(column, tensor)
    np.fill_diagonal(matrix, 0.0)
    return matrix


def from_json(path: Path) -> Found:
    """Read a table in the study's form; raises as `from_csv` does."""
    document = read_document(path, TableDocument)
    models = document.datasets
    check_models(models)
    if document.n_datasets not in (None, len(models)):
        raise ValueError(f"it says n_datasets {document.n_datasets:,}, and names {len(models):,}")
    if not document.metrics:
        raise ValueError(f"it names {len(models):,} models, and holds no metric")
    entries = {name: _entry(name, entry) for name, entry in document.metrics.items() if is_metric(name)}
    values = {name: _matrix(name, entry, models) for name, entry in entries.items()}
    layers = {name: _layers(name, entry, models) for name, entry in entries.items() if entry.per_layer}
    unknown = [name for name in document.metrics if name not in entries]
    return Found(models, values, layers, document.notes, document.provenance, unknown)


def _entry(name: str, entry: Any) -> MetricEntry:
    try:
        return checked(MetricEntry, entry)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _matrix(name: str, entry: MetricEntry, models: Sequence[str]) -> np.ndarray:
    """Return the symmetric matrix of a metric; of two triangles that are given, both must say the same."""
    count = len(models)
    lengths = {len(row) for row in entry.matrix}
    if len(entry.matrix) != count or lengths != {count}:
        widths = " and ".join(map(str, sorted(lengths)[:3])) or "0"
        raise ValueError(f"{name}: a matrix of {len(entry.matrix):,} rows of {widths}, for {count:,} models")
    upper = np.array(entry.matrix, dtype=np.float64)
    lower = np.where(np.isnan(upper.T), upper, upper.T)
    upper = np.where(np.isnan(upper), upper.T, upper)
    _check_equal(name, models, upper, lower)
    if entry.pairs:
        i, j = np.triu_indices(count, 1)
        by_key = [entry.pairs.get(key, math.nan) for key in pair_keys(models)]
        said = np.full_like(upper, np.nan)
        said[i, j] = np.array(by_key, dtype=np.float64)
        _check_equal(name, models, upper, np.where(np.isnan(said), upper, said))
    return upper


def _check_equal(name: str, models: Sequence[str], one: np.ndarray, other: np.ndarray) -> None:
    differing = np.argwhere(~np.isclose(one, other, rtol=1e-6, atol=0, equal_nan=True))
    if len(differing):
        i, j = differing[0]
        raise ValueError(f"{name} of {models[i]!r} and {models[j]!r} is both {one[i, j]:g} and {other[i, j]:g}")


def _layers(name: str, entry: MetricEntry, models: Sequence[str]) -> dict[str, np.ndarray]:
    at = {
        key: pair
        for key, pair in zip(pair_keys(models), zip(*np.triu_indices(len(models), 1), strict=True), strict=True)
    }
    if unknown := [key for key in entry.per_layer if key not in at]:
        raise ValueError(f"{name}: per_layer names {shortened(unknown[0])!r}, which is no pair of its models")
    tensors = dict.fromkeys(tensor for each in entry.per_layer.values() for tensor in each)
    check_size(len(models), len(tensors), sum(map(len, entry.per_layer.values())))
    found = {tensor: np.full((len(models), len(models)), np.nan) for tensor in tensors}
    for key, each in entry.per_layer.items():
        a, b = at[key]
        for tensor, value in each.items():
            found[tensor][[a, b], [b, a]] = np.nan if value is None else value
    return found
