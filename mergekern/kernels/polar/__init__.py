"""polar: the orthogonal factor of a matrix, U·Vᵀ of A = U·Σ·Vᵀ, and its singular values.

Singular values below `RANK_TOLERANCE`·σ₁ count as zero, and their directions stay at zero: the factor of a
rank-deficient matrix is a partial isometry, with nothing arbitrary in it. The nuclear norm Σσ is tr(factorᵀ·A).

No SVD of A: A·(AᵀA)^(−1/2) over the short side (`on_cpu`), or a Newton-Schulz iteration of products alone, for
accelerators (`on_torch`).

`inverse_root` gives R = (XᵀX)^(−1/2) itself, for those who multiply polar(X) = X·R by something smaller before they
multiply by X.

Bytes: A read twice and written once. Flops, with s = min(m, n), l = max(m, n): s²l for the Gram matrix, about 9 s³ for
its eigenvectors and the root, 2s²l for the product.
"""
