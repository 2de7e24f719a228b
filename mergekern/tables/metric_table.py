"""MetricTable: the values of every metric for every pair of models, with notes and provenance."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekern._internal.files import write_atomically
from mergekern.errors import OptionError, StatisticsError, did_you_mean
from mergekern.metrics import as_names, in_order, is_metric, metric_of, select
from mergekern.metrics.subspace import Frozen
from mergekern.statistics import ZooStatistics
from mergekern.tables.notes import notes_of

if TYPE_CHECKING:
    import pandas as pd

# pandas and pyarrow, which take as long to import as all else, are imported where they are used.

SUFFIXES = (".parquet", ".csv", ".json")
INDEX = ["model_a", "model_b"]


class MetricTable:
    """Pairwise metrics of N models.

    Attributes:
        models: the names, in the order of every matrix.
        metrics: the names, in catalogue order.
        notes: what a reader must know: tensors left out, pairs without a value and why.
        provenance: versions, device, backend, dtypes, content hashes, options.

    >>> import mergekern
    >>> zoo = {"a": {"w": np.array([3.0, 4.0])}, "b": {"w": np.array([3.0, -4.0])}}
    >>> table = mergekern.compute_all(zoo, base={"w": np.zeros(2)}, metrics="task_vector_l2_distance")
    >>> table.to_pandas().to_dict("index")
    {('a', 'b'): {'task_vector_l2_distance': 8.0}}
    """

    def __init__(
        self,
        models: Iterable[str],
        values: Mapping[str, np.ndarray],
        layers: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        notes: Iterable[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a table from (N, N) matrices: values[metric], and layers[metric][tensor] if there are any."""
        self.models = tuple(models)
        self._values = {name: values[name] for name in in_order(values)}
        self._layers = None if layers is None else {name: dict(layers.get(name, {})) for name in self._values}
        self.notes = list(notes)
        self.provenance = dict(provenance or {})

    @staticmethod
    def from_statistics(
        statistics: ZooStatistics,
        metrics: str | Iterable[str] = "all",
        *,
        per_layer: bool = False,
        frozen: Frozen = "exclude",
    ) -> MetricTable:
        """Compute metrics from the statistics of a zoo; no weights are read.

        Args:
            statistics: from `mergekern.measure` or `ZooStatistics.load`.
            metrics: "all" (that the statistics allow), names of metrics or of categories.
            per_layer: also compute each metric for every tensor alone.
            frozen: whether tensors equal to the base take part in the layer averages ("include", as in the
                published code) or not ("exclude").

        Raises:
            OptionError: an unknown metric, or one whose statistics were not measured.
        """
        if frozen not in ("exclude", "include"):
            raise OptionError(f"frozen must be 'exclude' or 'include', not {frozen!r}")
        metrics = as_names(metrics)
        chosen = select(metrics)
        lacking = [metric for metric in chosen if not metric.is_possible(statistics)]
        if lacking and "all" not in metrics:
            names = ", ".join(metric.name for metric in lacking)
            needed = " and ".join(sorted({metric.needs.replace("_", " ") for metric in lacking}))
            raise OptionError(
                f"{names}: these statistics were measured without {needed}; measure them again with these metrics"
                f"{', and with calibration=' if lacking[-1].runs_models else ''}"
            )
        chosen = [metric for metric in chosen if metric not in lacking]
        values = {metric.name: metric.compute(statistics, frozen) for metric in chosen}
        layers = None
        if per_layer:
            layers = {metric.name: metric.compute_layers(statistics, frozen) for metric in chosen}
        options = {"metrics": list(values), "frozen": frozen, "top_k": statistics.top_k}
        options |= {"spectrum_k": statistics.spectrum_k, "per_layer": per_layer}
        provenance = {**(statistics.provenance or {}), "options": options}
        return MetricTable(statistics.models, values, layers, notes_of(statistics, values, frozen), provenance)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics in the table, in catalogue order."""
        return tuple(self._values)

    @property
    def has_layers(self) -> bool:
        """Whether the table was made with per_layer=True."""
        return self._layers is not None

    def __repr__(self) -> str:
        pairs = len(self.models) * (len(self.models) - 1) // 2
        return f"MetricTable({len(self.models)} models, {pairs} pairs, {len(self._values)} metrics)"

    def matrix(self, metric: str) -> np.ndarray:
        """Return one metric as an (N, N) float64 matrix, symmetric; the diagonal compares each model with itself.

        Raises:
            OptionError: the table does not have this metric.
        """
        return self._values[self._known(metric)].copy()

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each pair (index model_a, model_b) and one float64 column for each metric."""
        return self._frame(self._values)

    def per_layer(self, metric: str) -> pd.DataFrame:
        """Return one metric for every tensor alone: a row for each pair, a column for each tensor.

        Tensors for which the metric is not defined have no column: vectors, for the subspace metrics; buffers, for the
        encoder gradients; all tensors, for activations and input gradients.

        Raises:
            OptionError: the table does not have this metric, or was made without per_layer=True.
        """
        name = self._known(metric)
        if self._layers is None:
            raise OptionError("this table has no per-layer values; compute it with per_layer=True")
        return self._frame(self._layers[name])

    def ranked(self, by: str) -> pd.DataFrame:
        """Return `to_pandas()` with the pairs that this metric finds most mergeable first."""
        descending = metric_of(self._known(by)).more_mergeable == "higher"
        return self.to_pandas().sort_values(by, ascending=not descending, kind="stable")

    def join(self, other: MetricTable) -> MetricTable:
        """Return a table with the metrics of both.

        Args:
            other: of the same models, in any order; from `merge_probes`, for instance.

        Raises:
            OptionError: it is of other models, or both have a metric.

        >>> one = MetricTable("ab", {"stable_rank": np.ones((2, 2))})
        >>> one.join(MetricTable("ba", {"spectral_gap": np.ones((2, 2))})).metrics
        ('stable_rank', 'spectral_gap')
        """
        if differing := sorted(set(self.models) ^ set(other.models)):
            raise OptionError(f"tables of different models cannot be joined: only one has {', '.join(differing)}")
        if twice := self._values.keys() & other._values.keys():
            raise OptionError(f"both tables have {', '.join(in_order(twice))}")
        order = [other.models.index(name) for name in self.models]

        def ordered(matrices: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: matrix[np.ix_(order, order)] for name, matrix in matrices.items()}

        values = self._values | ordered(other._values)
        layers = None
        if self.has_layers or other.has_layers:
            layers = {name: ordered(tensors) for name, tensors in (other._layers or {}).items()}
            layers |= self._layers or {}
        notes = dict.fromkeys([*self.notes, *other.notes])
        return MetricTable(self.models, values, layers, notes, {**other.provenance, **self.provenance})

    def save(self, path: str | Path) -> None:
        """Write the table as .parquet, .csv or .json.

        Parquet and JSON keep everything; CSV keeps the values of the pairs. The JSON can also be read as the
        study's result files.

        Raises:
            OptionError: another suffix.
        """
        path = Path(path)
        suffix = check_suffix(path)
        if suffix == ".json":
            content = json.dumps(self._to_json(), indent=1, allow_nan=False).encode()
        elif suffix == ".csv":
            content = self._long_frame().to_csv().encode()
        else:
            content = self._to_parquet()
        write_atomically(path, content)

    @staticmethod
    def load(path: str | Path) -> MetricTable:
        """Read a table written by `save`, or the study's own JSON or CSV.

        Columns that are not in the catalogue are left out and noted.

        Raises:
            OptionError: another suffix.
            StatisticsError: the file is missing, damaged or something else.
        """
        path = Path(path)
        suffix = check_suffix(path)
        try:
            if suffix == ".json":
                return _from_json(json.loads(path.read_text()))
            if suffix == ".csv":
                return _from_csv(path)
            return _from_parquet(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StatisticsError(f"{path}: not a readable table ({type(error).__name__}: {error})") from error

    def _known(self, metric: str) -> str:
        if metric not in self._values:
            raise OptionError(f"no metric {metric!r} in this table{did_you_mean(metric, self._values)}")
        return metric

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        return np.triu_indices(len(self.models), 1)

    def _frame(self, matrices: Mapping[str, np.ndarray]) -> pd.DataFrame:
        import pandas as pd

        i, j = self._pairs()
        names = np.array(self.models, dtype=object)
        index = pd.MultiIndex.from_arrays([names[i], names[j]], names=INDEX)
        return pd.DataFrame({name: matrix[i, j] for name, matrix in matrices.items()}, index=index)

    def _long_frame(self) -> pd.DataFrame:
        """Return the frame of pairs; with per-layer values, also a row for each pair and tensor."""
        import pandas as pd

        whole = self.to_pandas()
        if self._layers is None:
            return whole
        tensors = list(dict.fromkeys(tensor for layers in self._layers.values() for tensor in layers))
        frames = [whole.assign(tensor=None)]
        for tensor in tensors:
            present = {name: layers[tensor] for name, layers in self._layers.items() if tensor in layers}
            frames.append(self._frame(present).assign(tensor=tensor))
        return pd.concat(frames).reindex(columns=["tensor", *self._values])

    def _to_parquet(self) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(self._long_frame())
        extra = {
            "models": self.models,
            "diagonal": {name: _jsonable(np.diagonal(matrix)) for name, matrix in self._values.items()},
            "notes": self.notes,
            "provenance": self.provenance,
        }
        if self._layers is not None:
            extra["tensors"] = {name: list(layers) for name, layers in self._layers.items()}
        metadata = {**(table.schema.metadata or {}), b"mergekern": json.dumps(extra).encode()}
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer)
        return buffer.getvalue()

    def _to_json(self) -> dict[str, Any]:
        i, j = self._pairs()
        keys = _pair_keys(self.models)
        lower = np.tri(len(self.models), k=-1, dtype=bool)
        metrics: dict[str, Any] = {}
        for name, matrix in self._values.items():
            metrics[name] = {
                "matrix": _jsonable(np.where(lower, np.nan, matrix)),
                "pairs": dict(zip(keys, _jsonable(matrix[i, j]), strict=True)),
            }
            if self._layers is not None:
                metrics[name]["per_layer"] = {
                    key: {tensor: _jsonable(m[a, b]) for tensor, m in self._layers[name].items()}
                    for key, a, b in zip(keys, i, j, strict=True)
                }
        return {
            "datasets": list(self.models),
            "n_datasets": len(self.models),
            "layer_wise": self._layers is not None,
            "metrics": metrics,
            "notes": self.notes,
            "provenance": self.provenance,
        }


def check_suffix(path: Path) -> str:
    """Return the suffix of a table's path; raise OptionError if no table can be kept there."""
    if path.suffix not in SUFFIXES:
        raise OptionError(
            f"{path}: a table is kept as {', '.join(SUFFIXES)}, not {path.suffix or 'without a suffix'!r}"
        )
    return path.suffix


def _jsonable(values: np.ndarray) -> Any:
    """Return nested lists with None for NaN."""
    missing: Any = None
    return np.where(np.isnan(values), missing, values.astype(object)).tolist()


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


def _from_json(document: dict[str, Any]) -> MetricTable:
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
    notes = [*document.get("notes", []), *_unknown(values)]
    return MetricTable(models, values, _complete(values, layers), notes, document.get("provenance"))


def _from_csv(path: Path) -> MetricTable:
    import pandas as pd

    # As text: a model may be called NA, and Python's float() reads back what was written, to the last bit.
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    values = [name for name in frame.columns if name not in (*INDEX, "tensor")]
    frame[values] = frame[values].replace("", "nan").astype(object).map(float)
    if "tensor" in frame:
        frame["tensor"] = frame["tensor"].replace("", None)
    return _from_frame(frame, {})


def _from_parquet(path: Path) -> MetricTable:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    extra = json.loads((pq.read_metadata(path).metadata or {}).get(b"mergekern", b"{}"))
    frame = table.to_pandas()
    return _from_frame(frame.reset_index() if frame.index.names[0] else frame, extra)


def _from_frame(frame: pd.DataFrame, extra: dict[str, Any]) -> MetricTable:
    models = extra.get("models") or list(dict.fromkeys([*frame["model_a"], *frame["model_b"]]))
    at = {name: index for index, name in enumerate(models)}
    whole = frame if "tensor" not in frame else frame[frame["tensor"].isna()]
    names = [name for name in frame.columns if name not in (*INDEX, "tensor")]

    def matrices(rows: pd.DataFrame) -> dict[str, np.ndarray]:
        a, b = rows["model_a"].map(at).to_numpy(), rows["model_b"].map(at).to_numpy()
        out = {name: np.full((len(models), len(models)), np.nan) for name in names}
        for name, matrix in out.items():
            matrix[a, b] = matrix[b, a] = rows[name].to_numpy(dtype=np.float64)
        return out

    values = matrices(whole)
    for name, diagonal in extra.get("diagonal", {}).items():
        np.fill_diagonal(values[name], np.array(diagonal, dtype=np.float64))
    layers: dict[str, dict[str, np.ndarray]] = {}
    if "tensor" in frame:
        for tensor, rows in frame[frame["tensor"].notna()].groupby("tensor", sort=False):
            for name, matrix in matrices(rows).items():
                # Where a metric is not defined for a tensor, its whole column is missing; Parquet says which are.
                if "tensors" in extra:
                    is_defined = tensor in extra["tensors"].get(name, ())
                else:
                    is_defined = is_metric(name) and (metric_of(name).every_tensor or not np.isnan(matrix).all())
                if is_defined:
                    layers.setdefault(name, {})[str(tensor)] = matrix
    notes = [*extra.get("notes", []), *_unknown(values)]
    return MetricTable(models, values, _complete(values, layers), notes, extra.get("provenance"))


def _complete(values: dict[str, Any], layers: dict[str, dict[str, np.ndarray]]) -> dict | None:
    return {name: layers.get(name, {}) for name in values} if layers else None


def _unknown(values: Mapping[str, Any]) -> list[str]:
    unknown = [name for name in values if not is_metric(name)]
    return [f"columns not in the catalogue, left out: {', '.join(unknown)}"] if unknown else []
