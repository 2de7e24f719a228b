"""Hashes of the results of small zoos, which show whether a change of the code changes a result.

    python -m tests.support.hashes --json before.json

prints a line for each product, and writes all of them as JSON. Two runs of one code on one machine print the same.
Only versions, timings and the folder of the zoo are masked. Another processor or another BLAS may round differently.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
import xxhash
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits

import mergekern
from mergekern.cli import main as commands
from mergekern.prediction import PREDICTORS, MergePredictor, make_predictor, recommend
from tests.golden.zoo import SPECS, make_zoo
from tests.support.adapters import adapt, seeded
from tests.support.encoders import make_case

# A manifest names its folder, so its checksum depends on the folder.
MASKED = {"versions", "seconds", "time", "checksum"}
# Faster choices where the defaults take seconds.
PREDICTOR_OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"solver": "exact"},
    "sparse": {"solver": "exact"},
    "forest": {"n_estimators": 5},
}
# Method, its options, and other arguments of a merge.
VARIANTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((name, {}, {}) for name in mergekern.METHODS), ("ties", {"scope": "model"}, {}),
    ("isotropic", {"truncate": None}, {}), ("dare", {"mask": "magnitude", "rate": 0.5}, {}),
    ("dare_ties", {"scope": "model", "rate": 0.5}, {}), ("tsv", {}, {"dtype": "bfloat16"}),
    ("weight_average", {}, {"weights": [0.5, 1.0, 2.0]}),
]  # fmt: skip
Product = tuple[str, Any]


def digest(value: Any) -> str:
    """Return the hash of bytes, text, an array, a tensor, a data frame, or JSON, dtypes and shapes included."""
    if isinstance(value, pd.DataFrame):
        arrays = [value[name].to_numpy() for name in value]
        columns: list[Any] = [column if column.dtype.kind in "fiub" else list(map(repr, column)) for column in arrays]
        value = [*map(str, value.columns), *map(str, value.index), *map(digest, columns)]
    if isinstance(value, torch.Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).tobytes()
    else:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
    what = f"{getattr(value, 'dtype', '')} {tuple(getattr(value, 'shape', ()))} "
    return xxhash.xxh3_128_hexdigest(what.encode() + content)


def of_tensors(tensors: Any) -> dict[str, str]:
    """Return the hash of each tensor of a state dict."""
    return {name: digest(tensor) for name, tensor in sorted(tensors.items())}


def masked(document: Any) -> Any:
    """Return a JSON document without the values that differ between two runs."""
    if isinstance(document, dict):
        return {key: masked(value) for key, value in document.items() if key not in MASKED}
    return [masked(value) for value in document] if isinstance(document, list) else document


def document_of(path: Path) -> Any:
    """Return the content of a JSON file, with varying values and the names of its folders masked."""
    return masked(json.loads(path.read_text("utf-8").replace(str(path.parents[1]), "FOLDER")))


def write_zoo(folder: Path, spec: str, models: int | None = None) -> Path:
    """Write a golden zoo as safetensors files, and return the folder."""
    folder.mkdir()
    base, tuned = make_zoo(SPECS[spec])
    for name, model in {"base": base, **{f"task_{i}": each for i, each in enumerate(tuned[:models])}}.items():
        save_file({key: torch.from_numpy(value) for key, value in model.items()}, folder / f"{name}.safetensors")
    return folder


def statistics(folder: Path) -> Iterator[Product]:
    """Yield every file of folders of statistics, and the tables made from them."""
    for spec in SPECS:
        kept = folder / f"{spec}_statistics"
        table = mergekern.compute_all(write_zoo(folder / spec, spec), statistics=kept, per_layer=True)
        for path in sorted([*kept.glob("*.json"), *kept.glob("*/*")]):
            yield f"{spec} {path.relative_to(kept)}", path.read_bytes() if path.parent != kept else document_of(path)
        for suffix in ("parquet", "csv", "json"):
            table.save(kept / f"table.{suffix}")
        yield f"{spec} parquet", pd.read_parquet(kept / "table.parquet")
        extra = pq.read_schema(kept / "table.parquet").metadata[b"mergekern"].decode()
        yield f"{spec} parquet metadata", masked(json.loads(extra.replace(str(folder), "FOLDER")))
        yield f"{spec} csv", (kept / "table.csv").read_bytes()
        yield f"{spec} json", document_of(kept / "table.json")
        loaded = mergekern.ZooStatistics.load(kept)
        yield f"{spec} groups", mergekern.group_metrics(loaded, [loaded.models[:2], loaded.models[:3], loaded.models])
        yield f"{spec} of files", mergekern.MetricTable.from_statistics(loaded, frozen="include").to_pandas()


def merges(folder: Path) -> Iterator[Product]:
    """Yield the tensors of merges by every method, and the file of one."""
    zoo = write_zoo(folder / "merged", "mixed", models=3)
    for method, options, how in VARIANTS:
        label = " ".join([method, *(f"{name}={value}" for name, value in {**options, **how}.items())])
        models = sorted(zoo.glob("task_*"))[: mergekern.METHODS[method].most]
        yield label, of_tensors(mergekern.merge(models, zoo / "base.safetensors", method, options=options, **how))
    mergekern.merge(zoo, method="ties", output=folder / "ties.safetensors")
    yield "ties file", of_tensors(load_file(folder / "ties.safetensors"))


def adapters(folder: Path) -> Iterator[Product]:
    """Yield the metrics and merges of LoRA adapters."""
    model = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(20, 24), torch.nn.Linear(24, 16)))
    paths, base = [folder / name for name in "abc"], model.state_dict()
    for seed, path in enumerate(paths):
        adapt(model, path, seed=seed, merge=False, r=3 + seed, lora_alpha=8, target_modules=["0", "1"])
    yield "table", mergekern.compute_all(paths, base).to_pandas()
    for method, how in mergekern.METHODS.items():
        yield method, of_tensors(mergekern.merge(paths[: how.most], base, method))


def functional(folder: Path) -> Iterator[Product]:
    """Yield the metrics that run models, and merge probes."""
    for kind in ("transformer", "convolutions", "text"):
        case = make_case(kind)
        table = mergekern.compute_all(case.models, case.base, calibration=case.calibration(), per_layer=True)
        yield f"{kind} table", table.to_pandas()
        yield f"{kind} layers", {metric: digest(table.per_layer(metric)) for metric in table.metrics}
        how = {"calibration": case.calibration(), "methods": ["ties", "tsv"], "direct": True}
        yield f"{kind} probes", mergekern.merge_probes(case.models, case.base, **how).to_pandas()


def sketches(folder: Path) -> Iterator[Product]:
    """Yield sketches of task vectors, their estimates, and the output of their commands."""
    zoo = write_zoo(folder / "sketched", "mixed")
    found = mergekern.sketch(zoo, size=256, random_state=3)
    yield "sketches", [digest(found.values), digest(found.squares)]
    yield "estimates", found.table().to_pandas()
    yield "standard errors", found.standard_errors()
    lines: dict[str, list[Any]] = {
        "sketch": [zoo, "--out", folder / "sketches", "--size", 256], "compare": [folder / "sketches"],
        "metrics": [zoo, "--summary"], "info": [zoo], "merge": [zoo, "--method", "tsv", "--out", folder / "tsv"],
    }  # fmt: skip
    for name, arguments in lines.items():
        result = CliRunner().invoke(commands, [name, *map(str, arguments)], catch_exceptions=False)
        yield f"command {name}", result.stdout.replace(str(folder), "FOLDER")


def predictors(folder: Path) -> Iterator[Product]:
    """Yield the predictions of predictors that are fitted to made-up scores, and two saved ones."""
    random = np.random.default_rng(5)
    tuned = {f"m{i}": {"w": random.standard_normal((9, 7))} for i in range(6)}
    table = mergekern.compute_all(tuned, {"w": np.zeros((9, 7))}, metrics=["task-vector geometry", "stable_rank"])
    frame = table.to_pandas()
    scores = (frame["stable_rank"] + 0.05 * random.standard_normal(len(frame))).rename("accuracy").iloc[:-3]
    for kind in PREDICTORS:
        estimator = make_predictor(kind, PREDICTOR_OPTIONS.get(kind, {}))
        yield f"{kind} estimator", estimator.fit(frame.loc[scores.index], scores.to_numpy()).predict(frame)
    paths = [folder / f"{kind}.json" for kind in ("dense", "additive+metrics")]
    for path in paths:
        MergePredictor.fit(table, scores, path.stem, path.stem, options=PREDICTOR_OPTIONS.get(path.stem)).save(path)
        yield f"{path.stem} file", document_of(path)
        yield f"{path.stem} predictions", MergePredictor.load(path).predict(table)
    yield "recommendations", recommend(map(MergePredictor.load, paths), table)


SECTIONS = {each.__name__: each for each in (statistics, merges, adapters, functional, sketches, predictors)}


def hashes(section: str) -> dict[str, str]:
    """Return the hashes of a section's products, computed on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
            return {f"{section}: {name}": digest(value) for name, value in SECTIONS[section](Path(folder))}
    finally:
        torch.set_num_threads(threads)


@click.command(help="Print a hash for everything that small zoos give.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Also write the hashes here.")
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
def main(out: Path | None, sections: tuple[str, ...]) -> None:
    found: dict[str, str] = {}
    for section in sections or SECTIONS:
        found |= hashes(section)
    click.echo("\n".join(f"{value}  {name}" for name, value in found.items()))
    if out is not None:
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
