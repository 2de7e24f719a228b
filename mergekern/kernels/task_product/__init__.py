"""task_product: task matrices times thin matrices, for power iterations and randomised projections of many at once.

    Y_b = τ_b V_b,  or  Y_b = τ_bᵀ V_b,      τ_b = tuned_b − base_b

Inputs: B pairs of (m, n) matrices, base None for zero, in storage dtypes (`checkpoints.dtypes.READ_DTYPES`); V
(B, n, q) float64, or (B, m, q) for the transpose. V may also be Ω, (n or m, q) standard normal numbers from a
counter-based generator (seed, row, column), the same for every pair: it is then made in registers and never exists in
memory. Output: (B, m, q) float64, or (B, n, q). The difference is exact and never exists in memory either; products and
sums are float64.

Backends: `on_triton`. The CPU has no need of it: its kernels hold one difference at a time.

Bytes: 2·B·m·n·itemsize for every 64 columns of V, and 8·B·(m + n)·q. Flops: 2·B·m·n·q.
"""
