"""conclude: the answer of a page, drawn from what the table, the scores and the predictors hold."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import pandas as pd

from mergekern.merging.registry import METHODS
from mergekern.metrics import RANKED_BY, metric_of
from mergekern.prediction import MergePredictor, next_measurements
from mergekern.prediction.prior import OWN
from mergekern.report.answer import Answer, Methods, Step, bars_between
from mergekern.report.contents import Contents, metric_title
from mergekern.report.outcomes import Outcome, Outcomes, score_limits
from mergekern.report.words import count, number

# Rows of the table.
BEST = 5
# On the study's accuracies, pairs of models that were never merged before: docs/what-to-expect.md. Of the default
# metric, the smallest and the largest r over the four methods, and over zoos made here (docs/metrics.md).
METRICS_R, MODEL_SCORES_R, MERGES_R = 0.15, 0.81, 0.97
RANKED_BY_R, RANKED_BY_ZOOS_R = (-0.06, -0.02), (-0.63, -0.33)
DRAWN_TO_MEAN = (
    "Predicted scores are drawn towards their mean here, as far as held-out pairs say that promising ones promise too "
    "much. Further down they are as each predictor gives them."
)


def conclude(contents: Contents) -> Answer:
    """Return the best merges as far as they are known, what that rests on, and what to do next."""
    if contents.outcomes is not None:
        best = best_merges(contents.outcomes)
        if len(best):
            return _from_outcomes(contents, contents.outcomes, best)
    if OWN in contents.table.metrics:
        return _from_model_scores(contents)
    return _from_metric(contents)


def best_merges(outcomes: Outcomes) -> pd.DataFrame:
    """Return a row for each pair with a score: method, score, low, high, measured; the best first.

    It is the best measured merge of the pair, or the recommended one where a better score is predicted for it.
    """
    scores = pd.DataFrame({outcome.method: outcome.measured for outcome in outcomes.methods}).dropna(how="all")
    best = scores.max(axis=1)
    method = scores.idxmax(axis=1) if len(scores) else pd.Series([], scores.index, dtype=object)
    known = pd.DataFrame({"method": method, "score": best, "low": best, "high": best, "measured": True})
    if (recommended := outcomes.recommended) is not None:
        predicted = recommended.loc[recommended["score"].notna(), list(known)]
        ends = ["score", "low", "high"]
        if (limits := outcomes.limits) is not None:
            predicted = predicted.assign(**{name: predicted[name].clip(*limits) for name in ends})
        known = pd.concat([known, predicted]) if len(known) else predicted
    # Stable: of equal scores, the measured one comes first.
    known = known.sort_values("score", ascending=False, kind="stable")
    return known[~known.index.duplicated()]


def _from_outcomes(contents: Contents, outcomes: Outcomes, best: pd.DataFrame) -> Answer:
    target = outcomes.target.replace("_", " ")
    (a, b), first = _names(best.index[0]), best.iloc[0]
    sentences = [f"Merge {a} and {b} by {first['method']}: {target} {_score(first, outcomes)}."]
    others = best[best["measured"] != first["measured"]]
    if len(others):
        (c, d), other = _names(others.index[0]), others.iloc[0]
        which = "The best measured merge" if other["measured"] else "The best of the pairs that were not measured"
        sentences.append(f"{which} is that of {c} and {d} by {other['method']}: {_score(other, outcomes)}.")
    sentences += [*_about_methods(outcomes), _rests_on(contents, outcomes)]
    shown = best.head(BEST)
    ends = [
        tuple(row[["low", "score", "high"]]) if _has_interval(row) else (row["score"],) * 3
        for _, row in shown.iterrows()
    ]
    return Answer(
        sentences,
        headers=["Model", "and model", "Method", target.capitalize(), f"{_level(outcomes):.0%} interval"],
        rows=[
            [*_names(pair), str(row["method"]), number(row["score"]), _interval(row)] for pair, row in shown.iterrows()
        ],
        caption=f"The best {count(len(shown), 'pair')}, of {len(best):,} with a score",
        bars=bars_between(ends),
        methods=_methods(outcomes),
        steps=_steps(outcomes, a, b, str(first["method"])),
        pair=(a, b),
        method=str(first["method"]),
        hint="" if shown["measured"].all() else DRAWN_TO_MEAN,
    )


def _score(row: pd.Series, outcomes: Outcomes) -> str:
    score = number(row["score"])
    if row["measured"]:
        return f"{score}, measured"
    if not _has_interval(row):
        return f"{score}, predicted"
    return f"{score}, predicted ({_level(outcomes):.0%} interval {_interval(row)})"


def _interval(row: pd.Series) -> str:
    if row["measured"]:
        return "measured"
    return f"{number(row['low'])} to {number(row['high'])}" if _has_interval(row) else "not known"


def _has_interval(row: pd.Series) -> bool:
    return bool(np.isfinite(row["low"]) and np.isfinite(row["high"]))


def _level(outcomes: Outcomes) -> float:
    return next((outcome.level for outcome in outcomes.methods if outcome.level is not None), 0.8)


def _common(outcomes: Outcomes) -> pd.DataFrame:
    """Return the scores of the pairs that were measured by all methods."""
    return pd.DataFrame({outcome.method: outcome.measured for outcome in outcomes.methods}).dropna()


def _about_methods(outcomes: Outcomes) -> list[str]:
    common = _common(outcomes)
    if common.shape[1] < 2 or common.empty:
        return []
    means = common.mean().sort_values(ascending=False, kind="stable")
    beside = f"against {number(means.iloc[1])} of {means.index[1]}"
    return [
        f"On {count(len(common), 'pair')} measured by all {common.shape[1]} methods, {means.index[0]} is the best on "
        f"average: {number(means.iloc[0])} {beside}."
    ]


def _rests_on(contents: Contents, outcomes: Outcomes) -> str:
    pairs = len(contents.table.to_pandas())
    merges = sum(int(outcome.measured.count()) for outcome in outcomes.methods)
    text = f"This rests on {count(merges, 'measured merge')} of {count(pairs, 'pair')}"
    predicted = [outcome for outcome in outcomes.methods if outcome.predicted is not None]
    if not predicted:
        return f"{text}; other pairs are not predicted, for no predictor was given."
    known = [f"{number(o.validation.score)} for {o.method}" for o in predicted if o.validation is not None]
    if not known:
        return f"{text}; too few to say how good the predictions of the others are."
    return f"{text}. Predictions of held-out pairs correlate with what was measured: r = {', '.join(known)}."


def _methods(outcomes: Outcomes) -> Methods | None:
    if len(outcomes.methods) < 2:
        return None
    common = _common(outcomes)
    wins = common.idxmax(axis=1).value_counts() if len(common) else pd.Series(dtype=int)
    means = common.mean() if len(common) else pd.Series(dtype=float)

    def row(outcome: Outcome) -> list[str]:
        method, measured = outcome.method, outcome.measured
        predicted = "—" if outcome.predicted is None else number(outcome.predicted["prediction"].mean())
        on_common = [number(means[method]), str(wins.get(method, 0))] if len(common) else ["—", "—"]
        return [method, str(measured.count()), *on_common, number(measured.max()), predicted]

    by_mean = sorted(outcomes.methods, key=lambda outcome: -means.get(outcome.method, -np.inf))
    headers = ["Method", "Measured pairs", "Mean", "Best on", "Highest", "Predicted mean"]
    caption = f"Methods; mean, and how many it is the best on, of the {count(len(common), 'pair')} measured by all"
    return Methods(caption, headers, [row(outcome) for outcome in by_mean])


def _steps(outcomes: Outcomes, a: str, b: str, method: str) -> list[Step]:
    steps = [merge_step("Make this merge", a, b, method)]
    if outcomes.recommended is None:
        most = max(outcomes.methods, key=lambda outcome: outcome.measured.count()).method
        command = (
            f"mergekern fit TABLE --scores SCORES --method {shlex.quote(most)} --out {shlex.quote(f'{most}.json')}"
        )
        return [*steps, Step("Predict the pairs that were not measured, and give the result to --predictor.", command)]
    level = _level(outcomes)
    left = next_measurements(outcomes.recommended, level)
    if left.empty:
        return [*steps, Step("Nothing is left to measure: every pair has a measured score.")]
    worth = left[left["worth_measuring"]]
    if worth.empty:
        return [*steps, Step("Stop measuring: no other pair is expected to be better by a tenth of a point.")]
    (c, d), gain = worth.index[0], worth["expected_improvement"].iloc[0]
    promise = "" if not np.isfinite(gain) else f"; the best score is expected to rise by {number(gain)}"
    text = f"Measure next: {c} and {d} by {worth['method'].iloc[0]}{promise}."
    predictors = " ".join(
        f"--predictor {shlex.quote(f'{o.method}.json')}" for o in outcomes.methods if o.predicted is not None
    )
    return [*steps, Step(f"{text} This lists more.", f"mergekern recommend TABLE {predictors} --next 5")]


def _from_model_scores(contents: Contents) -> Answer:
    """Rank by the prior, which needs no measured merge."""
    predicted = MergePredictor.fit(contents.table, None, "any").predict(contents.table).dropna(subset=["prediction"])
    if predicted.empty:
        return _from_metric(contents)
    limits = score_limits("accuracy", predicted["prediction"])
    scores = predicted["prediction"] if limits is None else predicted["prediction"].clip(*limits)
    a, b = _names(scores.index[0])
    sentences = [
        f"Of {count(len(scores), 'pair')}, {a} and {b} promise most: accuracy {number(scores.iloc[0])}, predicted from "
        "the accuracies of models and base.",
        f"No merge was measured. In the published study, such predictions and the accuracy of merges correlate by r = "
        f"{MODEL_SCORES_R}; after 40 measured merges, by {MERGES_R}.",
    ]
    return _ranked(scores, "predicted accuracy", sentences, a, b)


def _from_metric(contents: Contents) -> Answer:
    """Rank by the first metric, and say what that is worth."""
    name = contents.first
    ranked = contents.table.ranked(name)[name].dropna()
    title = metric_title(name)
    title = title[0].lower() + title[1:]
    if ranked.empty:
        return Answer([f"No pair has a value of {title}: choose another metric by --metric."])
    a, b = _names(ranked.index[0])
    worth = f"predict the merges of models that were never merged before with r = {METRICS_R}"
    if name == RANKED_BY:
        (low, high), (least, most) = RANKED_BY_R, RANKED_BY_ZOOS_R
        worth = f"and the accuracy of merges correlate by r = {low} to {high}, depending on the method, and on zoos of "
        worth += f"small models by {least} to {most}"
    which = "this metric" if name == RANKED_BY else "all metrics together"
    sentences = [
        f"Of {count(len(ranked), 'pair')}, {a} and {b} look the most mergeable: their {title} is the "
        f"{'highest' if metric_of(name).more_mergeable == 'higher' else 'lowest'}, {number(ranked.iloc[0])}.",
        f"This is an order in which to try pairs, not a forecast. In the published study, {which} {worth}; 1 or -1 "
        "is perfect, 0 is chance.",
        f"Accuracies of models and base, without any merge, reach r = {MODEL_SCORES_R} there, and 40 measured merges "
        f"{MERGES_R}.",
    ]
    return _ranked(ranked, title, sentences, a, b)


def _ranked(values: pd.Series, title: str, sentences: list[str], a: str, b: str) -> Answer:
    rows = [[*_names(pair), number(value)] for pair, value in values.head(BEST).items()]
    caption = f"The first {count(len(rows), 'pair')} of {len(values):,}"
    steps = [
        Step(
            "Measure some merges by an evaluation of yours; this finds the best merge within the budget.",
            "mergekern best ZOO --evaluate my_eval.py:accuracy --budget 20 --out found",
        ),
        merge_step("Or merge the first pair now, by a method without settings", a, b, "weight_average"),
    ]
    headers = ["Model", "and model", title[0].upper() + title[1:]]
    return Answer(sentences, headers, rows, caption, steps=steps, pair=(a, b))


def merge_step(text: str, a: str, b: str, method: str) -> Step:
    """Return the step that merges a pair, with its command unless names keep it from being written.

    >>> merge_step("Make this merge", "cars", "my birds", "tsv").command
    "mergekern merge-all ZOO --methods tsv --group 'cars+my birds' --out merged"
    """
    if method not in METHODS:
        return Step(f"{text} by the program that has the method {method}; mergekern has none of this name.")
    if "+" in a + b:
        return Step(f"{text} by `mergekern merge` with both files: a + in a name separates the models of a group.")
    group = shlex.quote(f"{a}+{b}")
    return Step(f"{text}.", f"mergekern merge-all ZOO --methods {shlex.quote(method)} --group {group} --out merged")


def _names(pair: Any) -> tuple[str, str]:
    """Return the names of the two models of a row of a frame of pairs."""
    return str(pair[0]), str(pair[1])
