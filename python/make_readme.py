"""Write the generated tables of README.md and docs/: metrics, merge methods, and speed from benchmarks/results.

A page has a table between two comments that name it. `--check` only tells whether the tables are up to date.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is no part of the package

from benchmarks import rows
from mergekern import METHODS
from mergekern.merging.registry import SAMPLED_METHODS
from mergekern.metrics import ADDITIONAL, CATALOGUE, MERGE_PROBES, MODEL_SCORES
from mergekern.metrics.catalogue import NOTATION, Metric

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAIRS = 190
COMPUTE_ALL, ONE_PAIR = "compute_all/vit_b16x20/files", "baseline_pair/vit_b16"
WITH_EXTENSION = "compute_all/vit_w384_d4x5/files"
PROBES, ONE_PAIR_OF_RUNS = "probes/vit_b16x20/10_samples", "baseline_pair/probes/vit_b16x20/10_samples"
GRAM = "kernel/gram/20x3072x768/float32"
SQUARE, TALL = "kernel/spectrum/768x768", "kernel/spectrum/3072x768"
# (what, case, what it is compared with, case of that)
KERNELS = [
    ("`gram`, 20 × 3072×768 float32", GRAM, "plain torch", f"{GRAM}/torch"),
    ("`spectrum`, 768×768", SQUARE, "torch SVD, float32", f"{SQUARE}/torch_svd_float32"),
    ("`spectrum`, 3072×768", TALL, "torch SVD, float32", f"{TALL}/torch_svd_float32"),
    ("`overlap`, 20 × 3072×10", "kernel/overlap/20x3072x10", "", ""),
]


def metric_tables() -> str:
    """Return the catalogue as Markdown: the notation, and a section with a table for each category."""
    categories: dict[str, list[Metric]] = {}
    for metric in (*CATALOGUE.values(), *ADDITIONAL.values(), *MODEL_SCORES.values(), *MERGE_PROBES.values()):
        categories.setdefault(metric.category, []).append(metric)
    lines = [NOTATION.replace("\n", " ")]
    for category, metrics in categories.items():
        lines += ["", f"## {category[0].upper()}{category[1:]}", ""]
        lines += dict.fromkeys(metric.explanation for metric in metrics)
        lines += ["", "| metric | formula | range | more mergeable |", "|---|---|---|---|", *map(_metric_row, metrics)]
        caveats: dict[str, list[str]] = {}
        for metric in metrics:
            caveats.setdefault(f"no value if {metric.undefined}", []).append(metric.name)
            if metric.remark:
                caveats.setdefault(metric.remark, []).append(metric.name)
        lines.append("")
        for caveat, names in caveats.items():
            whom = "All" if len(names) == len(metrics) else ", ".join(f"`{name}`" for name in names)
            lines.append(f"- {whom}: {_escaped(caveat)}.")
    return "\n".join(lines)


def _metric_row(metric: Metric) -> str:
    low, high = ("∞" if v == math.inf else "−∞" if v == -math.inf else f"{v:g}" for v in metric.range)
    return f"| `{metric.name}` | {_escaped(metric.formula)} | [{low}, {high}] | {metric.more_mergeable} |"


def _escaped(text: str) -> str:
    return re.sub(r"([|<*])", r"\\\1", text)


def method_table() -> str:
    """Return the merge methods as a Markdown table."""
    lines = ["| method | result | options | from |", "|---|---|---|---|"]
    for method in (*METHODS.values(), *SAMPLED_METHODS.values()):
        options = ", ".join(f"`{name}={value!r}`" for name, value in method.defaults.items())
        lines.append(f"| `{method.name}` | {method.summary} | {options} | {method.paper} |")
    return "\n".join(lines)


def speed_table(newest: Mapping[str, rows.Row]) -> str | None:
    """Return the measured speed as Markdown, or None where a whole run was not measured.

    Args:
        newest: the last row of each case, on one device.
    """
    if not {COMPUTE_ALL, ONE_PAIR} <= newest.keys():
        return None
    every, pair = newest[COMPUTE_ALL], newest[ONE_PAIR]
    factor = PAIRS * _median(pair) / _median(every)
    lines = [
        f"On {every['device']} (`make bench`; medians; the ceiling is what the memory or the float64 matrix product "
        "of this machine allows at best):",
        "",
        "| | time | of the ceiling |",
        "|---|---|---|",
        f"| `mergekern.compute_all`, {PAIRS} pairs | {_time(every)} | {every['fraction']:.0%} |",
        "| plain implementation, float32, a full SVD of every matrix for every pair: **one** pair "
        f"| {_time(pair)} | {pair['fraction']:.1%} |",
        "",
        f"that is {factor:.0f} times the speed, extrapolating the plain implementation to {PAIRS} pairs.",
    ]
    if {WITH_EXTENSION, f"{WITH_EXTENSION}/numpy"} <= newest.keys():
        slower = _median(newest[f"{WITH_EXTENSION}/numpy"]) / _median(newest[WITH_EXTENSION])
        lines[-1] += f" Without the C++ extension a run takes {slower:.1f} times as long (5 models of width 384)."
    if {PROBES, ONE_PAIR_OF_RUNS} <= newest.keys():
        lines += ["", *_runs(newest[PROBES], newest[ONE_PAIR_OF_RUNS])]
    if kernels := [_kernel(newest, *kernel) for kernel in KERNELS if kernel[1] in newest]:
        lines += ["", "| kernel | time | of the ceiling | compared with |", "|---|---|---|---|", *kernels]
    lines += ["", "![Time against the number of models](../benchmarks/plots/models.svg)"]
    lines += ["![Time against the width of the model](../benchmarks/plots/width.svg)"]
    return "\n".join(lines)


def speed_summary(newest: Mapping[str, rows.Row]) -> str | None:
    """Return the measured speed as one Markdown table, or None where a whole run was not measured."""
    lines = ["| 190 pairs of 20 models of ViT-B/16 size | mergekern | plain code for each pair, extrapolated |"]
    lines.append("|---|---|---|")
    for what, case, other in (
        ("18 metrics of the weights", COMPUTE_ALL, ONE_PAIR),
        ("10 metrics that run the models, 10 samples a task", PROBES, ONE_PAIR_OF_RUNS),
    ):
        if {case, other} <= newest.keys():
            plain = PAIRS * _median(newest[other])
            factor = plain / _median(newest[case])
            lines.append(f"| {what} | {_time(newest[case])} | {plain / 3600:.1f} h ({factor:.0f} times as long) |")
    if COMPUTE_ALL not in newest or len(lines) == 2:
        return None
    return "\n".join([*lines, "", f"On {newest[COMPUTE_ALL]['device']}."])


def _runs(every: rows.Row, pair: rows.Row) -> list[str]:
    factor = PAIRS * _median(pair) / _median(every)
    return [
        "The 10 metrics that run the models, on 10 samples of each of 20 tasks:",
        "",
        "| | time | of the ceiling |",
        "|---|---|---|",
        f"| every model once, {PAIRS} pairs ({every['peak_memory'] / 1e9:.1f} GB of memory beside mapped files) "
        f"| {_time(every)} | {every['fraction']:.0%} |",
        f"| both models anew for every metric: **one** pair | {_time(pair)} | {pair['fraction']:.0%} |",
        "",
        f"that is {factor:.0f} times the speed.",
    ]


def _kernel(newest: Mapping[str, rows.Row], what: str, case: str, other: str, other_case: str) -> str:
    row = newest[case]
    compared = f"{other}: {_time(newest[other_case])}" if other_case in newest else ""
    return f"| {what} | {_time(row)} | {row['fraction']:.0%} | {compared} |"


def _median(row: rows.Row) -> float:
    return float(row["seconds"]["median"])


def _time(row: rows.Row) -> str:
    seconds = _median(row)
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def with_section(text: str, name: str, body: str) -> str:
    """Return the text of a page with one marked section replaced.

    >>> print(with_section("<!-- a: begin (python/make_readme.py) -->old<!-- a: end -->", "a", "new"))
    <!-- a: begin (python/make_readme.py) -->
    new
    <!-- a: end -->
    """
    begin, end = f"<!-- {name}: begin (python/make_readme.py) -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end)[1]}"


def with_tables(text: str, measured: list[rows.Row]) -> str:
    """Return the text of a page with the tables that it has made anew; speed that was not measured stays as it is."""
    newest = rows.newest_of_one_device(measured, COMPUTE_ALL)
    tables = {
        "metric-details": metric_tables(),
        "methods": method_table(),
        "speed": speed_table(newest),
        "speed-summary": speed_summary(newest),
    }
    for name, body in tables.items():
        if body is not None and f"<!-- {name}: begin" in text:
            text = with_section(text, name, body)
    return text


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a table is out of date.")
def main(check: bool) -> None:
    """Write the generated tables of README.md and docs/."""
    measured = rows.cpu_rows(rows.read())
    for page in PAGES:
        text = page.read_text("utf-8")
        anew = with_tables(text, measured)
        if check and text != anew:
            sys.exit(f"{page.relative_to(ROOT)}: a table is out of date; run `make readme`")
        if text != anew:
            page.write_text(anew, "utf-8")


if __name__ == "__main__":
    main()
