"""Which commands read which files of the world."""

from __future__ import annotations

from collections.abc import Sequence

BEST = (
    "best", "zoo", "--evaluate", "evaluator.py:score", "--methods", "ties,tsv", "--metrics", "stable_rank", "--no-page",
    "--out", "found",
)  # fmt: skip
MEASURE = ("measure", "to_measure.csv", "--zoo", "zoo", "--evaluate", "evaluator.py:score", "--device", "cpu")
CALIBRATED = ("--calibration", "calibration", "--model-fn", "model.py:build", "--metrics", "activation,gradient")
CALIBRATE = ("calibrate", "encoders/zoo", "--samples", "encoders/samples.jsonl", "--out", "new")
WEIGHTS: Sequence[tuple[str, ...]] = (
    ("info", "zoo"),
    ("metrics", "zoo", "--rows", "3", "--out", "out.json"),
    ("metrics", "zoo", "--io", "pread", "--on-mismatch", "skip", "--metrics", "task-vector geometry"),
    ("merge", "zoo", "--method", "ties", "--out", "out.safetensors"),
    ("merge", "zoo", "--method", "weight_average", "--on-mismatch", "skip", "--out", "out.safetensors"),
    ("merge-all", "zoo", "--methods", "weight_average,tsv", "--out", "merged"),
    ("sketch", "zoo", "--out", "new.safetensors", "--size", "64"),
    ("screen", "zoo", "--rows", "3", "--out", "screened.parquet"),
    MEASURE,
    (*BEST, "--budget", "2"),
)
ADAPTERS: Sequence[tuple[str, ...]] = (
    ("info", "adapters", "--base", "zoo/base.safetensors"),
    ("metrics", "adapters", "--base", "zoo/base.safetensors", "--rows", "3"),
    ("metrics", "adapters", "--rows", "3"),
    ("merge", "adapters", "--base", "zoo/base.safetensors", "--method", "weight_average", "--out", "out.safetensors"),
    ("merge-adapters", "adapters", "--combination", "cat", "--saved-whole", "average", "--out", "out"),
    ("merge-adapters", "adapters", "--combination", "ties_svd", "--density", "0.5", "--out", "out"),
)


def _tables(name: str) -> Sequence[tuple[str, ...]]:
    return (
        ("report", name, "--scores", "scores.csv", "--out", "out.html"),
        ("fit", name, "--scores", "scores.csv", "--method", "ties", "--kind", "linear", "--out", "p.json"),
        ("predict", name, "--predictor", "predictor.json", "--out", "out.csv"),
        ("recommend", name, "--predictor", "predictor.json"),
        ("plan-measurements", name, "-k", "2", "--method", "ties", "--out", "plan.csv"),
    )


STATISTICS: Sequence[tuple[str, ...]] = (
    ("table", "statistics", "--out", "out.csv"),
    ("table", "statistics", "--models", "a,c"),
    ("verify", "statistics"),
    ("verify", "statistics", "--delete"),
    ("remove", "a", "--from", "statistics"),
    ("screen", "--statistics", "statistics", "--rows", "3"),
    ("metrics", "zoo", "--statistics", "statistics", "--rows", "3"),
)
# Pattern of files -> the commands that read them.
TARGETS: dict[str, Sequence[tuple[str, ...]]] = {
    "zoo/**/*": WEIGHTS,
    "adapters/**/*": ADAPTERS,
    "encoders/**/*": (
        CALIBRATE,
        ("merge", "encoders/zoo", "--method", "weight_average", "--heads", "each", "--out", "out"),
        (
            "measure",
            "new.csv",
            "--zoo",
            "encoders/zoo",
            "--evaluate",
            "accuracy",
            "--data",
            "encoders/data.csv",
            "--methods",
            "weight_average",
        ),
    ),
    "recipe.yaml": (("merge", "--config", "recipe.yaml", "--out", "out.safetensors"),),
    "calibration/**/*": (("metrics", "zoo", *CALIBRATED, "--rows", "3"),),
    "table.json": _tables("table.json"),
    "table.csv": _tables("table.csv"),
    "table.parquet": _tables("table.parquet"),
    "scores.csv": (
        ("fit", "table.json", "--scores", "scores.csv", "--method", "ties", "--kind", "linear", "--out", "p.json"),
        ("report", "table.csv", "--scores", "scores.csv", "--out", "out.html"),
        ("plan-measurements", "table.csv", "-k", "2", "--scores", "scores.csv", "--method", "ties"),
    ),
    "to_measure.csv": (
        MEASURE,
        ("merge-all", "zoo", "--methods", "ties", "--pairs", "to_measure.csv", "--out", "merged"),
    ),
    "models.csv": (MEASURE,),
    "predictor.json": (
        ("predict", "table.json", "--predictor", "predictor.json"),
        ("recommend", "table.csv", "--predictor", "predictor.json"),
        ("screen", "zoo", "--predictor", "predictor.json", "--rows", "3"),
        ("report", "table.csv", "--predictor", "predictor.json", "--out", "out.html"),
    ),
    "statistics/**/*": STATISTICS,
    "shards/**/*": (("combine", "shards"),),
    "sketches.safetensors": (
        ("compare", "sketches.safetensors", "--out", "out.csv"),
        ("sketch", "adapters/x", "--base", "zoo/base.safetensors", "--out", "sketches.safetensors"),
    ),
}
# Files are drawn by kind, so that kinds of many files do not take all inputs.
KINDS = tuple(TARGETS)
# Commands that take 1 to 2 s where others take 0.05; they get a tenth of the inputs.
SLOW = ("best", "fit", "report")
