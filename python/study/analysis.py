"""What predicts the scores of merged pairs: predictors validated in both regimes, and what their coefficients say."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from rich.progress import Progress

from mergekern.files import write_atomically
from mergekern.prediction import (
    IncompletePairsWarning,
    LeaveOneTaskOut,
    LeaveTasksOut,
    ablate_categories,
    complete_pairs,
    cross_validate_pairs,
    fingerprints,
    fit_published,
    make_predictor,
    variance_components,
)
from mergekern.versions import versions

REGIMES = {"partner known": LeaveOneTaskOut(), "both unseen": LeaveTasksOut(repeats=20)}
# As in the study: ten starts of its L1 fit.
ALPHA, SEEDS, TOP = 1.0, range(10), 5


@dataclass(frozen=True)
class Candidate:
    """Something that may predict scores, validated beside the others.

    Attributes:
        make: an unfitted scikit-learn regressor; its `fit` may take `pairs`.
        features: from (metrics, method) to the (pairs, features) frame that it sees: `use_metrics`, or other predictors
            with the same index.
    """

    make: Callable[[], Any]
    features: Callable[[pd.DataFrame, str], pd.DataFrame]


def use_metrics(metrics: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the metrics themselves."""
    return metrics


# Further predictors, probes for instance, are further entries.
CANDIDATES = {
    "dense": Candidate(lambda: make_predictor("dense", solver="exact"), use_metrics),
    "sparse": Candidate(lambda: make_predictor("sparse", solver="exact"), use_metrics),
    "linear": Candidate(lambda: make_predictor("linear"), use_metrics),
    "forest": Candidate(lambda: make_predictor("forest", n_estimators=50), use_metrics),
    "additive": Candidate(lambda: make_predictor("additive"), use_metrics),
    "additive+metrics": Candidate(lambda: make_predictor("additive+metrics"), use_metrics),
}


def analyse(
    metrics: pd.DataFrame, scores: Mapping[str, pd.Series], out: Path, bar: Progress
) -> dict[str, pd.DataFrame]:
    """Validate every candidate for every merge method, and write what is found as CSV files.

    Args:
        metrics: (pairs, metrics), as `MetricTable.to_pandas`.
        scores: of each method, a value for each pair, with the same index.
        out: a folder. Each method's part is kept there until the metrics or its scores are others, so that a run which
            was stopped continues.
        bar: shows how far it is.

    Returns:
        The frames by the names of their files: variance_components, validation, ablation, coefficients, fingerprints.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = {}
    for method, y in bar.track(scores.items(), len(scores), description="validating predictors"):
        parts[method] = _kept(out / "methods" / f"{method}.json", metrics, y, method)
    frames = {
        "variance_components": pd.DataFrame({m: part["variance"] for m, part in parts.items()}).T,
        "validation": pd.DataFrame([{"method": m, **row} for m, part in parts.items() for row in part["validation"]]),
        "ablation": pd.DataFrame([{"method": m, **row} for m, part in parts.items() for row in part["ablation"]]),
    }
    frames["variance_components"].index.name = "method"
    frames["validation"] = frames["validation"].set_index(["method", "regime", "predictor"])
    frames["ablation"] = frames["ablation"].set_index(["method", "category"])
    frames["coefficients"] = published_coefficients(metrics, scores)
    if len(scores) > 1:
        frames["fingerprints"] = compare_fingerprints(frames["coefficients"])
    for name, frame in frames.items():
        write_atomically(out / f"{name}.csv", frame.to_csv().encode())
    return frames


def _kept(path: Path, metrics: pd.DataFrame, y: pd.Series, method: str) -> dict[str, Any]:
    """Return the analysis of one method: from its file, if that is of the same values, or made now."""
    values = [metrics.to_numpy().tobytes(), y.to_numpy().tobytes()]
    what = [list(metrics.columns), [list(pair) for pair in metrics.index], list(CANDIDATES), versions()]
    key = xxhash.xxh3_128_hexdigest(b"".join(values) + json.dumps(what).encode())
    if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
        return kept
    found = {"key": key, **analyse_method(metrics, y, method)}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, f"{json.dumps(found, indent=1)}\n".encode())
    return found


def analyse_method(metrics: pd.DataFrame, y: pd.Series, method: str) -> dict[str, Any]:
    """Return, ready for JSON, the variance components, validations and ablation of one method."""
    components = variance_components(y, y.index)
    validation = []
    with warnings.catch_warnings():
        # Named once, where the metrics are computed.
        warnings.simplefilter("ignore", IncompletePairsWarning)
        for regime, splitter in REGIMES.items():
            for name, candidate in CANDIDATES.items():
                X = candidate.features(metrics, method)
                result = cross_validate_pairs(candidate.make(), X, y, None, splitter, baselines=False, resamples=0)
                row = {"regime": regime, "predictor": name, "val_r": result.folds["val_r"].mean()}
                row |= {"val_r_sd": result.folds["val_r"].std(ddof=0), "train_r": result.folds["train_r"].mean()}
                row |= {"pooled_r_centred": result.pooled_r_centred, "folds": len(result.folds)}
                validation.append(row)
        linear = make_predictor("linear")
        ablation = ablate_categories(linear, metrics, y, None, REGIMES["partner known"])
    variance = {"tasks": components.tasks, "pair": components.interaction, "tasks_adjusted": components.adjusted_tasks}
    rows = [{"category": category, **row.to_dict()} for category, row in ablation.iterrows()]
    return {"variance": variance, "validation": validation, "ablation": rows}


def published_coefficients(metrics: pd.DataFrame, scores: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return the study's L1 coefficients, means over leave-one-task-out folds and ten starts: metric × method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompletePairsWarning)
        data = complete_pairs(metrics, sum(scores.values()))
    targets = np.stack([y.reindex(data.X.index).to_numpy() for y in scores.values()])
    masks = []
    for fold in LeaveOneTaskOut().folds(data.pairs):
        masks.append(np.isin(np.arange(len(data.y)), fold.train))
    found = fit_published(data.X.to_numpy(), targets, np.array(masks), SEEDS, ALPHA)
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
