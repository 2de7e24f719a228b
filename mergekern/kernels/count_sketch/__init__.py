"""count_sketch: maps a task vector of D numbers to S numbers, by a seeded random linear map.

    s_j = Σ_c ε_cj · τ[S·c + q_c(j)],      q_c(j) = (a_c·j + o_c) mod S,   j = 0 … S − 1

Each number is added to one of the S places of the sketch, with a random sign. The S numbers of one chunk go to S
different places. Signs ε, odd factors a and offsets o come from Philox, a counter-based generator (Salmon et al., SC
2011). Its key is the seed and the tensor's name, its counter the number of the chunk. The map is therefore the same for
every model, block and order of reading. This is a count sketch (Charikar, Chen, Farach-Colton, 2002). In expectation
over the seeds,

    E <s_i, s_j> = <τ_i, τ_j>,      Var ≤ (‖τ_i‖²‖τ_j‖² + <τ_i, τ_j>²) / S

S is a power of two, at least 64.

Backends: `on_cpu`, by NumPy, for all models at once.

Bytes: τ read once, in float64. Flops: 2·D a model.
"""
