"""overlap: how much the subspaces of N models overlap, for all pairs of one tensor.

    out[i, j] = ‖B_iᵀ B_j‖_F²,      B_i (d, k) with orthonormal columns

It lies in [0, k]: 0 for orthogonal subspaces, k for equal ones. It is the sum of squared cosines of the principal
angles. The inner products of the N·k columns of all models are squared and summed in k × k blocks.

Inputs: (N, d, k) float32; for the pairs of two sets also the (M, d, k) of the others. Output: (N, N) float64,
symmetric, or (N, M).

Backends: `on_cpu`, C++ or BLAS; `on_triton`, many tensors in one launch.

Bytes: N·d·k·4. Flops: (N·k)²·d.
"""
