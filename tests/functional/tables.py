"""Shared by the tests of metrics that run models: the table of a case, and the comparison of two tables."""

import pandas as pd

import mergekern

KINDS = ["transformer", "convolutions", "text"]


def run(case, models=None, base=None, *, statistics=None, metrics=("activation", "gradient"), **options):
    table = ("per_layer", "max_memory", "progress", "on_mismatch")
    chosen = {name: options.pop(name) for name in table if name in options}
    return mergekern.compute_all(
        models or case.models, base or case.base, metrics=metrics, calibration=case.calibration(**options),
        statistics=statistics, **chosen,
    )  # fmt: skip


def assert_close(one, other, rel=1e-9, abs=1e-12):
    pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas(), rtol=rel, atol=abs)
