"""overlap: how much the subspaces of N models overlap, for all pairs of one tensor.

    out[i, j] = ‖B_iᵀ B_j‖_F²,      B_i (d, k) with orthonormal columns

in [0, k]: 0 for orthogonal subspaces, k for equal ones. It is the sum of squared cosines of the principal angles.

Input: (N, d, k) float32, and where the pairs of two sets are wanted the (M, d, k) of the others. Output: (N, N)
float64, symmetric, or (N, M). The inner products of the N·k columns of all models, squared and summed in k × k blocks.

Bytes: N·d·k·4. Flops: (N·k)²·d.
"""
