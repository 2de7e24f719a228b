"""polar: the orthogonal factor of a matrix, U·Vᵀ of A = U·Σ·Vᵀ.

    polar(A)                          (m, n) → (m, n)
    polar_product(L, w, R)            polar([L_1 … L_N])·diag(w_1 … w_N)·polar([R_1 … R_N])ᵀ

Singular values of at most `RANK_TOLERANCE`·σ₁ count as zero, and their directions map to zero. The factor of a
rank-deficient matrix is then a partial isometry, which is unique. The nuclear norm Σσ is tr(factorᵀ·A).

Backends: `on_cpu` computes A·(AᵀA)^(−1/2) over the short side, from eigenvectors. `on_torch` uses matrix products only,
on any device and for batches of matrices. Neither computes an SVD; `reference` does.

Bytes: A read twice and written once. Flops, with s = min(m, n), l = max(m, n): s²l for the Gram matrix, about 7 s³ for
its eigenvectors, s³ for the root, 2s²l for the product; for products alone 17·(4s²l + 2s³).
"""
