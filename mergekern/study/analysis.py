"""Analysis of a study: predictors of the scores of merged pairs, validated in both regimes, and their coefficients."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from mergekern._internal.files import write_atomically
from mergekern._internal.versions import versions
from mergekern.errors import PredictionError
from mergekern.metrics import CATALOGUE
from mergekern.prediction import (
    IncompletePairsWarning,
    LeaveOneTaskOut,
    LeaveTasksOut,
    PairSplitter,
    ablate_categories,
    complete_pairs,
    cross_validate_pairs,
    fingerprints,
    fit_published,
    make_predictor,
    plan_measurements,
    variance_components,
)

REGIMES = {"partner known": LeaveOneTaskOut(), "both unseen": LeaveTasksOut(n_repeats=20)}
# As in the study: ten starts of its L1 fit.
ALPHA, RANDOM_STATES, TOP = 1.0, range(10), 5


@dataclass(frozen=True)
class Candidate:
    """Something that may predict scores, validated beside the others.

    Attributes:
        kind: name of the predictor, see `make_predictor`.
        features: columns of the table of metrics and probes that it sees, of `FEATURES`.
        merges: number of measured merges it is fitted to, chosen by `plan_measurements`; None for all.
        options: parameters of the predictor.
    """

    kind: str
    features: tuple[str, ...]
    merges: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def effects(self) -> bool:
        """Whether it knows which models a pair is of."""
        return self.kind.startswith("additive")

    def select(self, table: pd.DataFrame, method: str) -> pd.DataFrame:
        """Return what it sees of a table, for one merge method."""
        columns = [name for name in table if any(FEATURES[what](str(name), method) for what in self.features)]
        return table[columns] if columns else table.iloc[:, :1]


METRICS, SOLO, DIRECT = "metrics", "solo probes", "direct probes"
# (column, method) -> whether it is one.
FEATURES: dict[str, Callable[[str, str], bool]] = {
    METRICS: lambda column, method: column in CATALOGUE,
    SOLO: lambda column, method: column.startswith("solo") and column.endswith(f"[{method}]"),
    DIRECT: lambda column, method: column.startswith("direct") and column.endswith(f"[{method}]"),
}
EXACT = {"solver": "exact"}
CANDIDATES = {
    "dense": Candidate("dense", (METRICS,), options=EXACT),
    "sparse": Candidate("sparse", (METRICS,), options=EXACT),
    "linear": Candidate("linear", (METRICS,)),
    "forest": Candidate("forest", (METRICS,), options={"n_estimators": 50}),
    "solo": Candidate("linear", (SOLO,)),
    "direct": Candidate("linear", (DIRECT,)),
    "solo+direct": Candidate("linear", (SOLO, DIRECT)),
    "metrics+solo": Candidate("linear", (METRICS, SOLO)),
    "metrics+direct": Candidate("linear", (METRICS, DIRECT)),
    "additive, 20 merges": Candidate("additive", (), 20),
    "additive, 40 merges": Candidate("additive", (), 40),
    "additive": Candidate("additive", ()),
    "additive+metrics": Candidate("additive+metrics", (METRICS,)),
    "additive+solo": Candidate("additive+metrics", (SOLO,)),
    "additive+direct": Candidate("additive+metrics", (DIRECT,)),
    "additive+metrics+solo": Candidate("additive+metrics", (METRICS, SOLO)),
}


class Measured(PairSplitter):
    """The folds of another splitter, of whose training pairs only those are taken that a plan measures.

    Args:
        splitter: the other one.
        merges: how many merges `plan_measurements` plans, of all pairs.
    """

    def __init__(self, splitter: PairSplitter, merges: int) -> None:
        self.splitter = splitter
        self.merges = merges

    def _masks(self, tasks: int, codes: np.ndarray) -> Iterator[Any]:
        plan = plan_measurements([str(task) for task in range(tasks)], self.merges)
        measured = np.array([[int(task) for task in pair] for pair in plan.index.tolist()])
        planned = (codes[:, None] == measured).all(axis=2).any(axis=1)
        for held_out, train, test in self.splitter._masks(tasks, codes):
            yield held_out, train & planned, test


def analyse(table: pd.DataFrame, scores: Mapping[str, pd.Series], out: Path, bar: Progress) -> dict[str, pd.DataFrame]:
    """Validate every candidate for every merge method, and write what is found as CSV files.

    Args:
        table: (pairs, metrics and merge probes), as `MetricTable.to_pandas`.
        scores: for each method, a value for each pair, with the same index.
        out: a folder. Each method's part is kept there until the metrics or its scores are others, so that a run which
            was stopped continues.
        bar: shows how far it is.

    Returns:
        The frames by the names of their files: variance_components (with `fragility`), validation, ablation,
        coefficients, fingerprints.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = {}
    # These matrices are too small to share.
    with threadpool_limits(1):
        for method, y in bar.track(scores.items(), len(scores), description="validating predictors"):
            parts[method] = _kept(out / "methods" / f"{method}.json", table, y, method)
    frames = {
        "variance_components": pd.DataFrame({m: part["variance"] for m, part in parts.items()}).T,
        "validation": pd.DataFrame([{"method": m, **row} for m, part in parts.items() for row in part["validation"]]),
        "ablation": pd.DataFrame([{"method": m, **row} for m, part in parts.items() for row in part["ablation"]]),
    }
    frames["variance_components"].index.name = "method"
    frames["validation"] = frames["validation"].set_index(["method", "regime", "predictor"])
    frames["ablation"] = frames["ablation"].set_index(["method", "category"])
    frames["coefficients"] = published_coefficients(_metrics(table), scores)
    if len(scores) > 1:
        frames["fingerprints"] = compare_fingerprints(frames["coefficients"])
    for name, frame in frames.items():
        write_atomically(out / f"{name}.csv", frame.to_csv().encode())
    return frames


def _kept(path: Path, table: pd.DataFrame, y: pd.Series, method: str) -> dict[str, Any]:
    """Return the analysis of one method: from its file, if that is of the same values, or made now."""
    values = [table.to_numpy().tobytes(), y.to_numpy().tobytes()]
    what = [list(table.columns), [list(pair) for pair in table.index], repr(CANDIDATES), versions()]
    key = xxhash.xxh3_128_hexdigest(b"".join(values) + json.dumps(what).encode())
    if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
        return kept
    found = {"key": key, **analyse_method(table, y, method)}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, f"{json.dumps(found, indent=1)}\n".encode())
    return found


def analyse_method(table: pd.DataFrame, y: pd.Series, method: str) -> dict[str, Any]:
    """Return, ready for JSON, the variance components, validations and ablation of one method."""
    components = variance_components(y, y.index)
    validation = []
    with warnings.catch_warnings():
        # Named once, where the metrics are computed.
        warnings.simplefilter("ignore", IncompletePairsWarning)
        for regime, splitter in REGIMES.items():
            for name, candidate in CANDIDATES.items():
                if candidate.merges is None or candidate.merges < len(y):
                    row = {"regime": regime, "predictor": name, **validate(candidate, table, y, method, splitter)}
                    validation.append(row)
        ablation = ablate_categories(make_predictor("linear"), _metrics(table), y, None, REGIMES["partner known"])
    variance = {"tasks": components.tasks, "pair": components.interaction, "tasks_adjusted": components.adjusted_tasks}
    variance["fragility"] = fragility(table, y, method)
    rows = [{"category": category, **row.to_dict()} for category, row in ablation.iterrows()]
    return {"variance": variance, "validation": validation, "ablation": rows}


def validate(
    candidate: Candidate, table: pd.DataFrame, y: pd.Series, method: str, splitter: PairSplitter
) -> dict[str, float]:
    """Return how well a candidate predicts held-out pairs."""
    if candidate.merges is not None:
        splitter = Measured(splitter, candidate.merges)
    estimator = make_predictor(candidate.kind, candidate.options)
    X = candidate.select(table, method)
    result = cross_validate_pairs(estimator, X, y, None, splitter, baselines=False, n_resamples=0)
    row = {"val_r": result.folds["val_r"].mean(), "val_r_sd": result.folds["val_r"].std(ddof=0)}
    row |= {"train_r": result.folds["train_r"].mean(), "pooled_r_centred": result.pooled_r_centred}
    return row | {"folds": len(result.folds)}


def fragility(table: pd.DataFrame, y: pd.Series, method: str) -> float:
    """Return the correlation of the models' effects on y with the accuracy that solo probes find; NaN if there is none.

    The probes' mean over a pair has the two models' own values as its effects, exactly.
    """
    try:
        probed = variance_components(table[f"solo_accuracy_mean[{method}]"], table.index).effects
    except (KeyError, PredictionError):  # no probes, or all models are alike
        return float("nan")
    return float(probed.corr(variance_components(y, y.index).effects))


def _metrics(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table if name in CATALOGUE]]


def published_coefficients(metrics: pd.DataFrame, scores: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return the study's L1 coefficients, means over leave-one-task-out folds and ten starts: metric × method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompletePairsWarning)
        data = complete_pairs(metrics, sum(scores.values()))
    targets = np.stack([y.reindex(data.X.index).to_numpy() for y in scores.values()])
    masks = []
    for fold in LeaveOneTaskOut().folds(data.pairs):
        masks.append(np.isin(np.arange(len(data.y)), fold.train))
    found = fit_published(data.X.to_numpy(), targets, np.array(masks), RANDOM_STATES, ALPHA)
    frame = pd.DataFrame(found.mean(axis=(0, 2)).T, index=data.X.columns, columns=list(scores))
    return frame.rename_axis("metric")


def compare_fingerprints(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Return overlap of the five largest coefficients, and agreement of signs, for each two methods."""
    found = fingerprints(coefficients, k=min(TOP, len(coefficients)))
    first, second = np.triu_indices(len(coefficients.columns), 1)
    frame = pd.DataFrame({"method": coefficients.columns[first], "other": coefficients.columns[second]})
    frame["topk_overlap"] = found.overlaps.to_numpy()[first, second]
    frame["sign_agreement"] = found.agreements.to_numpy()[first, second]
    return frame.set_index(["method", "other"])
