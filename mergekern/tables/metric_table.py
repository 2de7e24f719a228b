"""MetricTable: the values of every metric for every pair of models, with notes and provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekern.errors import OptionError, did_you_mean
from mergekern.metrics import EXACT_ONLY, as_names, in_order, is_metric, metric_of, select, why_exact_only
from mergekern.metrics.subspace import Frozen, SmallTensors
from mergekern.statistics import ZooStatistics
from mergekern.tables.files import TableContent, read_table, write_table
from mergekern.tables.frames import error_column, pair_frame
from mergekern.tables.notes import notes_of

if TYPE_CHECKING:
    import pandas as pd


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
        errors: Mapping[str, np.ndarray] | None = None,
        layer_errors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        """Make a table from (N, N) matrices: values[metric], and layers[metric][tensor] if there are any.

        `errors` and `layer_errors` are of the same form, of the metrics whose values are estimates.
        """
        self.models = tuple(models)
        self._values = {name: values[name] for name in in_order(values)}
        self._layers = None if layers is None else {name: dict(layers.get(name, {})) for name in self._values}
        self._errors = dict(errors or {})
        self._layer_errors = {name: dict(layers) for name, layers in (layer_errors or {}).items()}
        self.notes = list(notes)
        self.provenance = dict(provenance or {})

    @staticmethod
    def from_statistics(
        statistics: ZooStatistics,
        metrics: str | Iterable[str] = "all",
        *,
        per_layer: bool = False,
        frozen: Frozen = "exclude",
        small_tensors: SmallTensors = "include",
    ) -> MetricTable:
        """Compute metrics from the statistics of a zoo; no weights are read.

        Args:
            statistics: from `mergekern.measure` or `ZooStatistics.load`.
            metrics: "all" (that the statistics allow), names of metrics or of categories.
            per_layer: also compute each metric for every tensor alone.
            frozen: whether tensors equal to the base take part in the layer averages ("include", as in the
                published code) or not ("exclude").
            small_tensors: whether matrices with a side of at most k take part in the averages of the metrics for which
                they are a constant, whatever the models are ("include", as in the published code) or not ("exclude").

        Raises:
            OptionError: an unknown metric, or one whose statistics were not measured.
        """
        if frozen not in ("exclude", "include"):
            raise OptionError(f"frozen must be 'exclude' or 'include', not {frozen!r}")
        if small_tensors not in ("include", "exclude"):
            raise OptionError(f"small_tensors must be 'include' or 'exclude', not {small_tensors!r}")
        metrics = as_names(metrics)
        chosen = select(metrics)
        lacking = [metric for metric in chosen if not metric.is_possible(statistics)]
        undefined = [m for m in lacking if m.name in EXACT_ONLY and statistics.is_randomized]
        if named := [metric.name for metric in undefined if metric.name in metrics]:
            raise OptionError(
                f"{', '.join(named)}: these statistics are of svd='randomized', which {why_exact_only(named[0])}; "
                "measure them with svd='exact', or leave the metric out"
            )
        chosen = [metric for metric in chosen if metric not in undefined]
        lacking = [metric for metric in lacking if metric not in undefined]
        if lacking and "all" not in metrics:
            names = ", ".join(metric.name for metric in lacking)
            needed = " and ".join(sorted({metric.needs.replace("_", " ") for metric in lacking}))
            raise OptionError(
                f"{names}: these statistics were measured without {needed}; measure them again with these metrics"
                f"{', and with calibration=' if lacking[-1].runs_models else ''}"
            )
        chosen = [metric for metric in chosen if metric not in lacking]
        how = frozen, small_tensors
        values = {metric.name: metric.compute(statistics, *how) for metric in chosen}
        estimated = [metric for metric in chosen if metric.is_estimated(statistics)]
        errors = {metric.name: metric.compute_error(statistics, *how) for metric in estimated}
        layers, layer_errors = None, None
        if per_layer:
            layers = {metric.name: metric.compute_layers(statistics, *how) for metric in chosen}
            layer_errors = {metric.name: metric.compute_layer_errors(statistics, *how) for metric in estimated}
        options = {"metrics": list(values), "frozen": frozen, "top_k": statistics.top_k}
        options |= {"spectrum_k": statistics.spectrum_k, "per_layer": per_layer}
        if small_tensors != "include":
            options["small_tensors"] = small_tensors
        provenance = {**(statistics.provenance or {}), "options": options}
        notes = notes_of(statistics, values, frozen, small_tensors)
        for why in dict.fromkeys(why_exact_only(metric.name) for metric in undefined):
            these = [metric.name for metric in undefined if why_exact_only(metric.name) == why]
            are, them = ("are", "them") if len(these) > 1 else ("is", "it")
            notes.append(f"{' and '.join(these)} {are} left out: svd='randomized' {why}; svd='exact' defines {them}")
        return MetricTable(statistics.models, values, layers, notes, provenance, errors, layer_errors)

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

    def error(self, metric: str, tensor: str | None = None) -> np.ndarray:
        """Return the estimated errors of a metric as an (N, N) float64 matrix, absolute.

        Those of svd="randomized" cover what an iteration that ends leaves out, and rounding; `docs/randomized-svd.md`
        says how. They are zeros where values are exact up to rounding: of metrics that need no singular values or
        vectors, and of all metrics where svd="exact".

        Args:
            metric: name of the metric.
            tensor: name of a tensor, for the errors of `per_layer`; by default those of the whole models.

        Raises:
            OptionError: the table does not have this metric, or no value of it for this tensor.

        >>> MetricTable("ab", {"subspace_overlap": np.eye(2)}).error("subspace_overlap")
        array([[0., 0.],
               [0., 0.]])
        """
        name = self._known(metric)
        zeros = np.zeros((len(self.models),) * 2)
        if tensor is None:
            return self._errors.get(name, zeros).copy()
        values = self._of_layers()[name]
        if tensor not in values:
            raise OptionError(f"no value of {name} for a tensor {tensor!r}{did_you_mean(tensor, values)}")
        return self._layer_errors.get(name, {}).get(tensor, zeros).copy()

    @property
    def estimated(self) -> tuple[str, ...]:
        """Names of the metrics whose values are estimates, with an error of their own; empty where svd="exact"."""
        return tuple(self._errors)

    @property
    def largest_errors(self) -> dict[str, float]:
        """Largest estimated error of all pairs, of each metric whose values are estimates; NaN where none has a value.

        >>> errors = {"subspace_overlap": np.array([[0.0, 0.01], [0.01, 0.0]])}
        >>> MetricTable("ab", {"subspace_overlap": np.eye(2)}, errors=errors).largest_errors
        {'subspace_overlap': 0.01}
        """
        pairs = np.triu_indices(len(self.models), 1)
        return {name: float(np.fmax.reduce(matrix[pairs])) for name, matrix in self._errors.items()}

    def to_pandas(self, *, with_errors: bool = False) -> pd.DataFrame:
        """Return one row for each pair (index model_a, model_b) and one float64 column for each metric.

        With `with_errors` also a column error[METRIC] for each metric whose values are estimates.
        """
        errors = {error_column(name): matrix for name, matrix in self._errors.items()} if with_errors else {}
        return pair_frame(self.models, {**self._values, **errors})

    def per_layer(self, metric: str) -> pd.DataFrame:
        """Return one metric for every tensor alone: a row for each pair, a column for each tensor.

        Tensors for which the metric is not defined have no column: vectors, for the subspace metrics; buffers, for the
        encoder gradients; all tensors, for activations and input gradients.

        Raises:
            OptionError: the table does not have this metric, or was made without per_layer=True.
        """
        return pair_frame(self.models, self._of_layers()[self._known(metric)])

    def ranked(self, by: str) -> pd.DataFrame:
        """Return `to_pandas()` with the pairs that this metric finds most mergeable first."""
        descending = metric_of(self._known(by)).more_mergeable == "higher"
        return self.to_pandas().sort_values(by, ascending=not descending, kind="stable")

    def join(self, other: MetricTable | pd.DataFrame) -> MetricTable:
        """Return a table with the metrics of both.

        Args:
            other: table with the same models, in any order, from `merge_probes` for instance; or a frame of pairs as
                `to_pandas` and `model_scores` return it.

        Raises:
            OptionError: it is of other models, both have a metric, or a frame has a column that is no metric.

        >>> one = MetricTable("ab", {"stable_rank": np.ones((2, 2))})
        >>> one.join(MetricTable("ba", {"spectral_gap": np.ones((2, 2))})).metrics
        ('stable_rank', 'spectral_gap')
        """
        if not isinstance(other, MetricTable):
            other = _from_frame(other)
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
        errors = self._errors | ordered(other._errors)
        layer_errors = {name: ordered(tensors) for name, tensors in other._layer_errors.items()} | self._layer_errors
        notes = dict.fromkeys([*self.notes, *other.notes])
        provenance = {**other.provenance, **self.provenance}
        return MetricTable(self.models, values, layers, notes, provenance, errors, layer_errors)

    def save(self, path: str | Path) -> None:
        """Write the table as .parquet, .csv or .json.

        Parquet keeps everything; JSON all but estimated errors; CSV the values of the pairs. The JSON can also be read
        as the study's result files.

        Raises:
            OptionError: another suffix.
        """
        content = TableContent(
            self.models, self._values, self._layers, self.notes, self.provenance, self._errors, self._layer_errors
        )
        write_table(Path(path), content)

    @staticmethod
    def load(path: str | Path) -> MetricTable:
        """Read a table written by `save`, or the study's own JSON or CSV.

        Columns that are not in the catalogue are left out and noted.

        Raises:
            OptionError: another suffix.
            StatisticsError: the file is missing, damaged or something else.
        """
        content = read_table(Path(path))
        return MetricTable(
            content.models, content.values, content.layers, content.notes, content.provenance,
            content.errors, content.layer_errors,
        )  # fmt: skip

    def _of_layers(self) -> dict[str, dict[str, np.ndarray]]:
        if self._layers is None:
            raise OptionError("this table has no per-layer values; compute it with per_layer=True")
        return self._layers

    def _known(self, metric: str) -> str:
        if metric not in self._values:
            raise OptionError(f"no metric {metric!r} in this table{did_you_mean(metric, self._values)}")
        return metric


def _from_frame(frame: pd.DataFrame) -> MetricTable:
    """Return the table of a frame of pairs; on the diagonals and where pairs are missing, it is NaN."""
    if unknown := [str(column) for column in frame if not is_metric(str(column))]:
        raise OptionError(f"a frame with columns that are no metrics cannot be joined: {', '.join(unknown)}")
    models = list(dict.fromkeys(str(name) for pair in frame.index for name in pair))
    first, second = (np.array([models.index(str(pair[side])) for pair in frame.index], dtype=int) for side in (0, 1))
    values = {}
    for column in frame:
        values[str(column)] = matrix = np.full((len(models), len(models)), np.nan)
        matrix[first, second] = matrix[second, first] = frame[column].to_numpy(dtype=np.float64)
    return MetricTable(models, values)
