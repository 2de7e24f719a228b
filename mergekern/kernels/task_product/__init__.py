"""task_product: multiplies task matrices by thin matrices, for power iterations and random projections of many at once.

    Y_b = τ_b V_b,  or  Y_b = τ_bᵀ V_b,      τ_b = tuned_b − base_b

Inputs: B pairs of (m, n) matrices, base None for zero, in storage dtypes (`checkpoints.dtypes.READ_DTYPES`); V (B, n,
q) float64, or (B, m, q) for the transpose. V may also be Ω: (n or m, q) standard normal numbers from a counter-based
generator (seed, row, column), the same for every pair. Ω is then generated in registers, and not stored in memory.
Output: (B, m, q) float64, or (B, n, q). The difference is exact and not stored in memory either. Products and sums are
float64.

Backends: `on_triton`. The CPU does not need it, since its kernels hold one difference at a time.

Bytes: 2·B·m·n·itemsize for every 64 columns of V, and 8·B·(m + n)·q. Flops: 2·B·m·n·q.
"""
