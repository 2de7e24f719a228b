"""Draw how times grow, from the newest rows: one SVG each in benchmarks/plots.

python -m benchmarks.plots
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks import rows

PLOTS = Path(__file__).parent / "plots"


class Plot(NamedTuple):
    """One figure: its title, its x axis, and each line as a pattern of cases whose group is x."""

    title: str
    axis: str
    lines: dict[str, str]


FIGURES = {
    "models": Plot(
        "compute_all, 18 metrics: ViT of width 384 and depth 4",
        "models",
        {"all pairs": r"compute_all/vit_w384_d4x(\d+)/files"},
    ),
    "width": Plot(
        "compute_all, 18 metrics: one transformer block of 2 models",
        "width of the model",
        {"all pairs": r"compute_all/block_w(\d+)x2/memory"},
    ),
    "threads": Plot(
        "compute_all, 18 metrics: 5 ViTs of width 384 and depth 4",
        "threads",
        {"all pairs": r"compute_all/vit_w384_d4x5/files/threads_(\d+)"},
    ),
    "gram": Plot(
        "gram of float32 task vectors, 198 MB in all",
        "models",
        {"mergekern": r"kernel/gram/(\d+)x\d+", "plain torch, float64": r"kernel/gram/(\d+)x\d+/torch"},
    ),
}


def draw(plot: Plot, newest: Sequence[rows.Row], path: Path) -> bool:
    """Draw one figure of the newest rows, with the ceiling dashed; return whether there was anything to draw."""
    lines = {label: _points(pattern, newest) for label, pattern in plot.lines.items()}
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return False
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, points in lines.items():
        axes.plot(list(points), [row["seconds"]["median"] for row in points.values()], marker="o", label=label)
    ceiling = next(iter(lines.values()))
    limits = [row["ceiling"] for row in ceiling.values()]
    axes.plot(list(ceiling), limits, "k--", linewidth=1, label="ceiling of the machine")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    ticks = sorted({x for points in lines.values() for x in points})
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(plot.axis)
    axes.set_ylabel("time (s)")
    axes.set_title(f"{plot.title}\n{next(iter(ceiling.values()))['device']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no random ids: the same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "mergekern"}):
        figure.savefig(path, metadata={"Date": None})
    return True


def _points(pattern: str, newest: Sequence[rows.Row]) -> dict[int, rows.Row]:
    found = [(int(match[1]), row) for row in newest if (match := re.fullmatch(pattern, row["case"]))]
    return dict(sorted(found, key=lambda point: point[0]))


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=rows.RESULTS, help="Folder of the rows.")
@click.option("--out", type=click.Path(path_type=Path), default=PLOTS, help="Folder to write to.")
def main(results: Path, out: Path) -> None:
    """Draw the newest rows of the device that was measured last."""
    measured = rows.cpu_rows(rows.read(results))
    if measured:
        newest = rows.newest_of_one_device(measured, measured[-1]["case"])
        for name, plot in FIGURES.items():
            if draw(plot, list(newest.values()), out / f"{name}.svg"):
                click.echo(f"wrote {out.name}/{name}.svg")


if __name__ == "__main__":
    main()
