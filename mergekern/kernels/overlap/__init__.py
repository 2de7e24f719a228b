"""overlap: the overlap of the subspaces of N models, for all pairs, for one tensor.

    out[i, j] = ‖B_iᵀ B_j‖_F²,      B_i (d, k) with orthonormal columns

It is the sum of the squared cosines of the principal angles, and lies in [0, k]: 0 for orthogonal subspaces, k for
equal ones. The kernel computes the inner products of the N·k columns of all models, and sums their squares in k × k
blocks.

Inputs: (N, d, k) float32, and (M, d, k) for pairs of two sets. Output: (N, N) float64, symmetric, or (N, M).

Backends: `on_cpu`, C++ or BLAS; `on_triton`, many tensors in one launch.

Bytes: N·d·k·4. Flops: (N·k)²·d.
"""
