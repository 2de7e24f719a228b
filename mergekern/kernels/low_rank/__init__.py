"""low_rank: spectra, inner products and distances of task matrices given by thin factors (LoRA adapters).

    τ = leftᵀ·right,      left (r, m), right (r, n), r ≪ min(m, n)

A thin QR of each factor and an SVD of the small core between them give the p = min(r, m, n) leading singular triplets
of τ to float64 precision. All other singular values are zero:

    leftᵀ = Q_l T_l,   rightᵀ = Q_r T_r,   T_l T_rᵀ = Ũ Σ Ṽᵀ,   U = Q_l Ũ,   V = Q_r Ṽ

The inner products of all pairs follow from those of singular vectors. All models together have P of them on each side:

    <τ_i, τ_j> = Σ_ab σ_ia σ_jb <u_ia, u_jb> <v_ia, v_jb>

With the C++ kernel, the result for a pair depends on its two models only, to the last bit, and not on their order.

If ‖τ_i‖² + ‖τ_j‖² − 2<τ_i, τ_j> cancels, squared distances come from the factors of the difference,

    τ_i − τ_j = ½ (left_i + left_j)ᵀ (right_i − right_j) + ½ (left_i − left_j)ᵀ (right_i + right_j)

Backends: `on_cpu`, LAPACK for the factorisations and C++ or BLAS for the inner products.

Bytes: the factors read once, 8·P·(m + n) written. Flops: 8 r²(m + n) a model, P²(m + n) for all pairs.
"""
