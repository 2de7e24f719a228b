"""variation: how the N task vectors of one tensor differ from each other, element by element; for merges.

    variances[e]      = Σ_i (τ_i[e] − mean τ[e])² / N,      τ_i = tuned_i − base
    energies[i]       = Σ_e τ_i[e]² over the elements with variances[e] ≥ least
    changes[0, i]     = number of elements with |τ_i[e]| > epsilon that other models change so too
    changes[1, i]     = number of elements that model i alone changes so

Inputs: base (D,), tuned N × (D,), each in its own storage dtype. Outputs: (D,) float64, (N,) float64, (2, N) int64.
Variances have the same bits in every implementation, and are those by which `combine` keeps elements ("spread").

Backends: `on_cpu`, C++ or NumPy; `on_torch`, for devices.

Bytes: (N + 1)·D·itemsize read once. Flops: about 5·N·D.
"""
