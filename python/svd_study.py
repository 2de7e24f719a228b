"""What predictions lose by randomised factorisations, and by the two metrics that these leave out.

    mergekern study STUDY --architecture vit                        # first
    python python/svd_study.py STUDY

STUDY is a folder that mergekern study wrote. Its matrices are small, and svd="randomized" factorises small matrices
exactly. They are forced through the iteration here: blocks of 6 to 8 vectors in place of 30 to 32, at most 4 passes, of
which a subspace of 29 of 64 dimensions is left, and 20 singular values in place of 100. The metrics of singular values
and vectors are computed so, and exactly. Printed are how far they differ, and r of `linear` from 28 metrics, from those
26 that need no bottom-k directions, and from the 26 with randomised values: with one task held out, and within halves
of models without any measured merge. Means over the merge methods.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from threadpoolctl import threadpool_limits

import mergekern
from mergekern.kernels import randomized_spectrum
from mergekern.kernels.randomized_spectrum import on_cpu
from mergekern.metrics import BOTTOM, CATALOGUE
from mergekern.prediction import (
    IncompletePairsWarning,
    LeaveOneTaskOut,
    LeaveTasksOut,
    cross_validate_pairs,
    make_predictor,
)
from mergekern.study.stages import TARGET, scores_by_method

VALUES, BLOCK, PASSES = 20, 6, 4
OF_DIRECTIONS = [name for name, metric in CATALOGUE.items() if metric.needs == "spectra" and name not in BOTTOM]
SPLITTERS = {"partner known": LeaveOneTaskOut(), "both unseen": LeaveTasksOut(n_repeats=20)}


def randomised(zoo: Path) -> pd.DataFrame:
    """Return the metrics of leading directions by the iteration, however small the matrices are."""
    forced = {
        "DIRECT": 0,
        "PASSES_IN_FLOAT64": 1,
        "fewest_passes": lambda *_: PASSES - 1,
        "most_passes": lambda *_: PASSES,
    }
    patches = [
        (randomized_spectrum, "BLOCK", BLOCK),
        (on_cpu, "BLOCK", BLOCK),
        *((on_cpu, *item) for item in forced.items()),
    ]
    for module, name, value in patches:
        assert hasattr(module, name)
        setattr(module, name, value)
    return mergekern.compute_all(
        zoo, metrics=OF_DIRECTIONS, spectrum_k=VALUES, svd="randomized", device="cpu"
    ).to_pandas()


def mean_r(X: pd.DataFrame, scores: dict[str, pd.Series]) -> list[float]:
    """Return the mean r over folds and methods, of each of `SPLITTERS`."""
    found = []
    for splitter in SPLITTERS.values():
        r = [
            cross_validate_pairs(make_predictor("linear"), X, y, splitter=splitter, baselines=False, n_resamples=0)
            for y in scores.values()
        ]
        found.append(float(np.mean([each.folds["val_r"].mean() for each in r])))
    return found


@click.command(help=__doc__)
@click.argument("study", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(study: Path) -> None:
    """Print the figures; see the module's docstring."""
    warnings.simplefilter("ignore", IncompletePairsWarning)
    table = mergekern.MetricTable.load(study / "metrics.parquet").to_pandas()
    table = table[[name for name in table if name in CATALOGUE]]
    y = scores_by_method(pd.read_csv(study / "scores.csv"), TARGET)
    scores = {method: of_pairs.reindex(table.index) for method, of_pairs in y.items()}
    with threadpool_limits(1):  # these matrices are too small to share
        exact = mergekern.compute_all(study / "zoo", metrics=OF_DIRECTIONS, spectrum_k=VALUES, device="cpu").to_pandas()
        found = randomised(study / "zoo")
        leading = table.drop(columns=list(BOTTOM)).assign(**exact)
        sets = {
            "28 metrics, exact": table.assign(**exact),
            "26 metrics, exact": leading,
            "26 metrics, randomised": leading.assign(**found),
        }
        rows = {name: mean_r(X, scores) for name, X in sets.items()}
    differ = (found - exact).abs().max()
    Console().print(f"largest differences\n{differ.to_string()}", soft_wrap=True)
    Console().print(pd.DataFrame(rows, list(SPLITTERS)).T.round(3).to_string(), soft_wrap=True)


if __name__ == "__main__":
    main()
