"""The groups of cases of a device run, by importance, in two parts that each take under six minutes."""

from __future__ import annotations

from typing import NamedTuple

# Seconds after which a part begins nothing more; what runs then may go on for a while.
PART_SECONDS = 290.0


class Group(NamedTuple):
    """A group of cases.

    Attributes:
        beginning: how its cases begin.
        part: 1 or 2.
        seconds: the most that it may take, so that one that hangs leaves time for the others.
        needs_cuda: whether it uses kernels of csrc/cuda.
    """

    beginning: str
    part: int
    seconds: float
    needs_cuda: bool = False


GROUPS = {
    "machine": Group("machine", 1, 25),
    "gram": Group("kernel/gram", 1, 40),
    "spectrum": Group("kernel/spectrum", 1, 60, needs_cuda=True),
    "randomized_spectrum": Group("kernel/randomized_spectrum", 1, 50, needs_cuda=True),
    "compute_all": Group("compute_all", 1, 110, needs_cuda=True),
    "large models": Group("compute_all/llama", 1, 70, needs_cuda=True),
    "task_product": Group("kernel/task_product", 2, 30),
    "overlap": Group("kernel/overlap", 2, 20),
    "merging": Group("merge", 2, 90, needs_cuda=True),
    "signs": Group("kernel/signs", 2, 30),
    "trim": Group("kernel/trim", 2, 30, needs_cuda=True),
    "combine": Group("kernel/combine", 2, 30),
    "polar": Group("kernel/polar", 2, 20),
    "truncation": Group("kernel/truncation", 2, 20),
    "probes": Group("probes", 2, 45),
    "other ways to the spectrum": Group("kernel/spectrum", 2, 40),
    "baseline": Group("baseline_pair", 2, 100),
}
# The tests of each part, as an expression of markers, and the most seconds that they may take. First those of what no
# interpreter of kernels sees: copies, streams, large offsets, and that nothing waits.
TESTS = {1: ("gpu_only", 80.0), 2: ("gpu and not gpu_only", 110.0), None: ("gpu", 160.0)}
