"""low_rank: spectra, inner products and distances of task matrices that are given by thin factors.

    τ = leftᵀ·right,      left (r, m), right (r, n), r ≪ min(m, n)

A thin QR of each factor and the SVD of the small core between them give the singular triplets of τ to the last bit that
float64 holds, p = min(r, m, n) of them; the other singular values are zeros:

    leftᵀ = Q_l T_l,   rightᵀ = Q_r T_r,   T_l T_rᵀ = Ũ Σ Ṽᵀ,   U = Q_l Ũ,   V = Q_r Ṽ

From them come the inner products of every pair, by those of all models' vectors on either side, P of them:

    <τ_i, τ_j> = Σ_ab σ_ia σ_jb <u_ia, u_jb> <v_ia, v_jb>

What is given for a pair depends on its two models alone, and not on which of them is first, to the last bit, where the
C++ kernel is there.

Squared distances where ‖τ_i‖² + ‖τ_j‖² − 2<τ_i, τ_j> cancels come from the factors of the difference,

    τ_i − τ_j = ½ (left_i + left_j)ᵀ (right_i − right_j) + ½ (left_i − left_j)ᵀ (right_i + right_j)

Bytes: the factors once, 8·P·(m + n) written. Flops: 8 r²(m + n) a model, P²(m + n) for all pairs.
"""
