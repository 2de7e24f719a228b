"""Screening: metrics and predictions of all pairs of a zoo, from its statistics on disk, a tile of pairs at a time.

Memory holds the statistics of the models of one tile only, however many models there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mergekern._internal.files import check_output, not_written, replacing
from mergekern._internal.validation import positive_integer
from mergekern.errors import OptionError, OutputError, PredictionError, StatisticsError
from mergekern.metrics import RANKED_BY, is_metric, metric_of, select
from mergekern.metrics.subspace import Frozen
from mergekern.prediction import MergePredictor, recommend
from mergekern.prediction.screening_notes import ScreeningNotes
from mergekern.statistics import ZooStatistics
from mergekern.statistics.manifest import Manifest
from mergekern.tables.frames import INDEX
from mergekern.tables.metric_table import MetricTable

if TYPE_CHECKING:
    import pandas as pd

# Number of models on one side of a tile. With 50 matrices a model, the statistics of two such blocks take 130 MB.
TILE = 128
# Number of pairs that are ranked in memory.
KEPT = 10_000


class Screening(NamedTuple):
    """The result of `screen`: the most promising pairs.

    Attributes:
        ranked: the most promising pairs: as `recommend` returns them, or, without predictors, their metrics.
        models, pairs: number of models and of pairs.
        notes: notes of the tables of all tiles, each once, in terms of the whole zoo.
    """

    ranked: pd.DataFrame
    models: int
    pairs: int
    notes: list[str]


def screen(
    statistics: str | os.PathLike[str],
    predictors: Iterable[MergePredictor] = (),
    out: str | os.PathLike[str] | None = None,
    *,
    metrics: str | Iterable[str] = "all",
    frozen: Frozen = "exclude",
    tile: int = TILE,
    kept: int = KEPT,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Screening:
    """Compute metrics of all pairs from a folder of statistics, predict their scores, and rank the most promising.

    Args:
        statistics: a folder that `measure(statistics=...)`, `combine` or `measure_on_cluster` finished.
        predictors: fitted, one for each merge method; their metrics must be among those computed. Without any, pairs
            are ranked by task_vector_cosine_similarity, or the first metric.
        out: a Parquet file to write, with a row for each pair: model_a, model_b, every metric, prediction_METHOD,
            low_METHOD, high_METHOD of each predictor, and error[METRIC] of metrics that svd="randomized" estimated.
            Rows are in the order of tiles; `MetricTable.load` reads it.
        metrics, frozen: as for `MetricTable.from_statistics`.
        tile: number of models on one side of a tile of pairs; changes no metric's value.
        kept: number of pairs that are ranked in memory.
        progress: called with (tiles done, number of tiles).

    Raises:
        StatisticsError: missing, damaged or foreign files.
        OptionError, PredictionError: an unknown metric, or one that a predictor needs is lacking.
        OutputError: the file cannot be written.

    >>> import tempfile, mergekern
    >>> generator = np.random.default_rng(0)
    >>> zoo = {name: {"w": generator.normal(size=(12, 12))} for name in "abcd"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = mergekern.compute_all(zoo, {"w": np.zeros((12, 12))}, statistics=folder)
    ...     scores = table.to_pandas()["stable_rank"].rename("accuracy")
    ...     found = screen(folder, [MergePredictor.fit(table, scores, "tsv", "additive")], tile=2)
    >>> found.pairs, found.ranked["method"].unique().tolist()
    (6, ['tsv'])
    """
    import pandas as pd

    folder, predictors = Path(statistics), list(predictors)
    manifest = Manifest.read(folder)
    every = list(_tiles(manifest.models, positive_integer("tile", tile)))
    kept = positive_integer("kept", kept)
    best: list[pd.DataFrame] = []
    notes = ScreeningNotes(manifest, frozen)
    computed: tuple[str, ...] = ()
    pairs = 0
    with _writing(None if out is None else Path(out), manifest) as writer:
        for done, (rows, columns) in enumerate(every):
            progress(done, len(every))
            part = ZooStatistics.load(folder, [*rows, *columns])
            table = MetricTable.from_statistics(part, metrics, frozen=frozen)
            notes.add(part, table)
            computed = computed or table.metrics
            if table.metrics != computed:
                raise StatisticsError(
                    f"{folder}: some models were measured for fewer metrics than others; measure all of them again "
                    "with the same metrics, which computes what is lacking"
                )
            frame = _between(table.to_pandas(), rows, columns)
            pairs += len(frame)
            best = [_ranked(pd.concat([*best, recommend(predictors, frame) if predictors else frame])).head(kept)]
            if writer is not None:
                with_errors = _between(table.to_pandas(with_errors=True), rows, columns)
                writer.write(_with_predictions(with_errors, predictors), table)
        progress(len(every), len(every))
        if writer is not None:
            writer.finish(notes.lines())
    return Screening(best[0], len(manifest.models), pairs, notes.lines())


def check_screening(
    predictors: Iterable[MergePredictor],
    out: str | os.PathLike[str] | None = None,
    metrics: str | Iterable[str] = "all",
) -> None:
    """Raise the errors of `screen` before the weights of a zoo are measured, which takes long.

    Raises:
        OptionError: an unknown metric, or another format than Parquet.
        OutputError: the folder of `out` is not there.
        PredictionError: a predictor needs a metric that weights do not give, or that is not asked for.
    """
    if out is not None:
        _check_out(Path(out))
    measured = {metric.name for metric in select(metrics) if not metric.runs_models}
    for predictor in predictors:
        if lacking := [name for name in predictor.metrics if name not in measured]:
            raise PredictionError(
                f"the predictor for {predictor.method} was fitted to metrics that are not measured here: "
                f"{', '.join(lacking)}; fit one to metrics of the weights alone, or screen --statistics that have them"
            )


def _tiles(models: Sequence[str], size: int) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the models on both sides of each tile; the second side is empty for pairs among the first.

    >>> list(_tiles(["a", "b", "c"], 2))
    [(['a', 'b'], []), (['a', 'b'], ['c'])]
    """
    blocks = [list(models[start : start + size]) for start in range(0, len(models), size)]
    for index, rows in enumerate(blocks):
        if len(rows) > 1:
            yield rows, []
        for columns in blocks[index + 1 :]:
            yield rows, columns


def _between(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    if not columns:
        return frame
    first, second = (frame.index.get_level_values(name) for name in INDEX)
    return frame[first.isin(rows) & second.isin(columns)]


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    by = "score" if "score" in frame else RANKED_BY if RANKED_BY in frame else frame.columns[0]
    ascending = is_metric(by) and metric_of(by).more_mergeable == "lower"
    return frame.sort_values(by, ascending=ascending, kind="stable", na_position="last")


def _with_predictions(frame: pd.DataFrame, predictors: Sequence[MergePredictor]) -> pd.DataFrame:
    predicted = {
        f"{what}_{predictor.method}": found[what]
        for predictor in predictors
        for found in [predictor.predict(frame)]
        for what in ("prediction", "low", "high")
    }
    return frame.assign(**predicted)


@contextmanager
def _writing(path: Path | None, manifest: Manifest) -> Iterator[_Writer | None]:
    """Give a writer of a Parquet file, tile by tile; the file appears once it is whole."""
    if path is None:
        yield None
        return
    _check_out(path)
    with replacing(path) as temporary:
        try:
            file = temporary.open("wb")
        except OSError as error:
            raise not_written(path, error, "give another place") from error
        writer = _Writer(path, manifest, file)
        try:
            yield writer
        finally:
            writer.close()


def _check_out(path: Path) -> None:
    if path.suffix != ".parquet":
        raise OptionError(f"{path}: the pairs of a zoo are written as .parquet")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: no folder {path.parent}; make it, or give another")
    check_output(path)


class _Writer:
    """Writer of pairs to a file; it keeps the values that belong to single models until the end.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, manifest: Manifest, file: IO[bytes]) -> None:
        self._path, self._manifest, self._file = path, manifest, file
        self._diagonal: dict[str, dict[str, float | None]] = {}
        self._provenance: dict[str, Any] = {}
        self._parquet: Any = None

    def write(self, frame: pd.DataFrame, table: MetricTable) -> None:
        """Write the pairs of a tile."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = pa.Table.from_pandas(frame.reset_index(), preserve_index=False)
        with self._room():
            if self._parquet is None:
                self._parquet = pq.ParquetWriter(self._file, rows.schema)
            self._parquet.write_table(rows)
        for name in table.metrics:
            values = np.diagonal(table.matrix(name)).tolist()
            self._diagonal.setdefault(name, {}).update(
                {model: None if value != value else value for model, value in zip(table.models, values, strict=True)}
            )
        self._provenance = table.provenance

    def finish(self, notes: Sequence[str]) -> None:
        """Write the end of the file, with the notes of the zoo, and flush it to disk."""
        models = self._manifest.models
        diagonal = {
            name: [of[model] for model in models] for name, of in self._diagonal.items() if len(of) == len(models)
        }
        said = {"models": models, "diagonal": diagonal, "notes": list(notes)}
        said["provenance"] = {**(self._manifest.provenance or {}), "options": self._provenance.get("options", {})}
        self._parquet.add_key_value_metadata({"mergekern": json.dumps(said)})
        with self._room():
            self._parquet.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def close(self) -> None:
        """Close the file; an error does not matter, since a file that is not whole is discarded."""
        for part in (self._parquet, self._file):
            if part is not None:
                with suppress(OSError):
                    part.close()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_written(self._path, error, "give one with more room; the statistics are kept") from error
