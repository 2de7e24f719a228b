"""Findings: what was measured beside what the paper says, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

GRADIENT = "gradient"
METRICS_ALONE = ("dense", "sparse", "linear", "forest")


@dataclass(frozen=True)
class Finding:
    """One statement of the paper (arXiv 2601.22285), or one found on its data, beside ours.

    Attributes:
        question: what it is about.
        paper: what is said there.
        here: what was measured.
        agrees: whether that is the same; None where it is a measure, not a statement.
    """

    question: str
    paper: str
    here: str
    agrees: bool | None

    @property
    def verdict(self) -> str:
        """Agrees, differs, or nothing."""
        return "" if self.agrees is None else ("agrees" if self.agrees else "differs")


def find(scores: pd.DataFrame, frames: Mapping[str, pd.DataFrame], comparison: pd.DataFrame) -> list[Finding]:
    """Return the findings of a study.

    Args:
        scores: method, normalized_accuracy, …; a row for each merge.
        frames: what `analyse` returned.
        comparison: predictor -> seconds, r_partner_known, r_both_unseen, means over the methods.
    """
    return [
        _normalized(scores),
        *_components(frames["variance_components"]),
        *_validation(frames["validation"]),
        *(_fingerprints(frames["fingerprints"]) if "fingerprints" in frames else []),
        _categories(frames["ablation"]),
        *_hypothesis(frames["variance_components"], comparison),
    ]


def _normalized(scores: pd.DataFrame) -> Finding:
    means = scores.groupby("method")["normalized_accuracy"].mean().sort_values(ascending=False)
    here = ", ".join(f"{method} {value:.3f}" for method, value in means.items())
    return Finding("mean normalised accuracy of merged pairs", "depends on the method", here, None)


def _components(components: pd.DataFrame) -> list[Finding]:
    share = components["tasks"]
    here = f"{share.min():.0%} to {share.max():.0%} ({_listed(share)})"
    return [
        Finding(
            "variance of merged accuracy that is each model by itself",
            "less than what depends on the partner (but on its own data: 59% to 99%)",
            here,
            bool(share.mean() < 0.5),
        )
    ]


def _validation(validation: pd.DataFrame) -> list[Finding]:
    r: Any = validation["val_r"].unstack("predictor")
    known, unseen = r.xs("partner known", level="regime"), r.xs("both unseen", level="regime")
    metrics = [name for name in METRICS_ALONE if name in r]
    rest = known["additive+metrics"] - known["additive"]
    return [
        Finding(
            "leave-one-task-out r of metrics alone, mean of the methods",
            "0.45 dense, 0.53 L1: metrics predict (agrees: one of these above 0.3)",
            ", ".join(f"{name} {known[name].mean():.2f}" for name in metrics),
            bool(known[metrics].mean(axis=0).max() > 0.3),
        ),
        Finding(
            "leave-one-task-out r of model effects without any metric",
            "not tried (on its data: 0.97)",
            f"{known['additive'].mean():.2f} ({_listed(known['additive'], 2)})",
            None,
        ),
        Finding(
            "what metrics add to model effects, in r",
            "not tried",
            f"{rest.mean():+.3f} ({_listed(rest, 3, '+')})",
            None,
        ),
        Finding(
            "r where neither model was ever merged, mean of the methods",
            "not tried",
            ", ".join(f"{name} {unseen[name].mean():.2f}" for name in metrics),
            None,
        ),
    ]


def _fingerprints(pairs: pd.DataFrame) -> list[Finding]:
    overlap, agreement = pairs["topk_overlap"].mean(), pairs["sign_agreement"].mean()
    return [
        Finding(
            "five largest coefficients and signs that two methods have in common, mean",
            "64.0% and 79.3%, so that methods differ (agrees: both below 90%)",
            f"{overlap:.1%} and {agreement:.1%}",
            bool(max(overlap, agreement) < 0.9),
        )
    ]


def _categories(ablation: pd.DataFrame) -> Finding:
    change = ablation["change"].unstack("category").drop(columns="all metrics").mean().sort_values()
    first = change.index[0]
    here = ", ".join(f"{name} {value:+.3f}" for name, value in change.items())
    return Finding(
        "change of leave-one-task-out r without a category of metrics",
        "gradient metrics matter most (agrees: without them r falls most)",
        here,
        first == GRADIENT,
    )


def _hypothesis(components: pd.DataFrame, comparison: pd.DataFrame) -> list[Finding]:
    """Return what speaks for and against: fragile models explain merges, N solo probes find them, metrics the rest."""
    r, unseen = comparison["r_partner_known"], comparison["r_both_unseen"]
    fragility = components["fragility"].fillna(0.0)
    gain, gain_unseen = r["metrics+solo"] - r["solo"], unseen["metrics+solo"] - unseen["solo"]
    beyond = r["additive+metrics+solo"] - r["additive+solo"]

    def both(*names: str) -> str:
        return ", ".join(f"{name} {r[name]:.2f} and {unseen[name]:.2f}" for name in names)

    return [
        Finding(
            "is what decides a merge each model's own fragility under the method? r of the models' effects with their "
            "accuracy in N solo probes",
            "hypothesis: most of it (agrees: mean above 0.7)",
            f"{fragility.mean():.2f} ({_listed(fragility, 2)})",
            bool(fragility.mean() > 0.7),
        ),
        Finding(
            "do N solo probes find it? r with partners known and with both models unseen",
            "hypothesis: better than 28 metrics (agrees: in both)",
            both("solo", "linear", "direct"),
            bool(r["solo"] > r["linear"] and unseen["solo"] > unseen["linear"]),
        ),
        Finding(
            "do pairwise metrics explain what is left? what they add to solo probes in r, partners known and both "
            "unseen; and to model effects with solo probes",
            "hypothesis: yes (agrees: above 0.02, all three)",
            f"{gain:+.3f} and {gain_unseen:+.3f}; {beyond:+.3f}",
            bool(min(gain, gain_unseen, beyond) > 0.02),
        ),
    ]


def _listed(values: pd.Series, digits: int = 0, sign: str = "") -> str:
    form = f"{sign}.0%" if digits == 0 else f"{sign}.{digits}f"
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def as_markdown(findings: list[Finding], comparison: pd.DataFrame) -> str:
    """Return the findings, and the predictors beside what they cost, as tables of Markdown."""
    lines = ["| question | paper | measured here | |", "|---|---|---|---|"]
    lines += [f"| {f.question} | {f.paper} | {f.here} | {f.verdict} |" for f in findings]
    lines += [
        "",
        "| predictor, mean of the methods | seconds | r, partner known | r, both unseen |",
        "|---|---|---|---|",
    ]
    for name, row in comparison.iterrows():
        cells = f"{row['seconds']:.2f} | {row['r_partner_known']:.3f} | {row['r_both_unseen']:.3f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"
