"""Benchmarks: `make bench` checks the kernels, times the suites here, appends rows to results/, and draws them.

A trial that leaves no rows: `python -m pytest benchmarks -k "overlap or baseline"`. MERGEKERN_BENCH_ZOO names a
folder to measure on in place of bench_zoo/vit_b16, which is made at the first run (7 GB).
"""
