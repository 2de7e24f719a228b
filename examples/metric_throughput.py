"""Find out how fast metrics are on this machine, and what limits them."""

# %% A zoo in memory: matrices of one size, as many models as you like.
import time
from collections.abc import Callable
from functools import partial

import torch

import mergekern
from mergekern.checkpoints import open_zoo

WIDTH, LAYERS, COUNTS = 128, 3, (2, 4, 8)


def make_zoo(count: int) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return models and their base."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{n}.weight": torch.randn(WIDTH, WIDTH, generator=generator) for n in range(LAYERS)}
    tuned = [
        {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(count)
    ]
    return {f"model_{number}": model for number, model in enumerate(tuned)}, base


def best_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest time of several, after one that is not counted: memory and kernels are warm."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


# %% Which parts of the catalogue cost what. Geometry needs inner products alone; subspaces need factorisations.
KINDS = {
    "geometry and effective rank": mergekern.MeasureOptions(metrics=["task-vector geometry", "effective rank"]),
    "all metrics of the weights": mergekern.MeasureOptions(),
    "all, by randomized SVD": mergekern.MeasureOptions(svd="randomized"),
}


def compute(options: mergekern.MeasureOptions) -> mergekern.MetricTable:
    """Return the metrics of all pairs: the weights are measured once, and pairs come from what was measured."""
    return mergekern.MetricTable.from_statistics(mergekern.measure(models, base, options), options.metrics)


for count in COUNTS:
    models, base = make_zoo(count)
    pairs = count * (count - 1) // 2
    for kind, options in KINDS.items():
        cost = mergekern.estimate_cost(open_zoo(models, base), options)
        seconds = best_seconds(partial(compute, options))
        print(f"{count} models, {kind}: {pairs / seconds:.0f} pairs/s, {cost.bytes_read / seconds / 1e9:.2f} GB/s read")

# %% Pairs cost little: time grows with the number of models, the number of pairs with its square.
# What ran is in every table. The benchmarks of the repository (`make bench`) compare it with the limits of the machine.
table = compute(mergekern.MeasureOptions())
print({name: table.provenance[name] for name in ("device", "backend")})
