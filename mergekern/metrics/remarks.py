"""What a reader of some metrics' values must know, beside their formula and range."""

_WHOLE_RIGHT = "a matrix of at most k columns counts as a constant, as its right vectors span the whole space"
REMARKS = {
    "singular_value_overlap": "a matrix of one row or column has one singular value, and counts as 1",
    "subspace_overlap": (
        "divided by k, as published: identical models reach 1/√k, 0.316 at k = 10; a matrix of at most k rows counts "
        "as a constant, as its left vectors span the whole space"
    ),
    "right_subspace_overlap_top_k": _WHOLE_RIGHT,
    "right_subspace_overlap_bottom_k": _WHOLE_RIGHT,
    "interaction_matrix_overlap_top_k": _WHOLE_RIGHT,
    "interaction_matrix_overlap_bottom_k": _WHOLE_RIGHT,
    "task_vector_sign_disagreement": (
        "every coordinate counts alike, however small its change; independent changes give 0.5, and what training in a "
        "narrow dtype rounds away is no change"
    ),
    "task_vector_weighted_sign_disagreement": (
        "a coordinate has the weight |τ_i|·|τ_j|, so that a few large changes can decide it; it is (1 − c) / 2 of the "
        "cosine c where all |τ| are equal"
    ),
    "ties_interference": (
        "trimming as in ties with density 0.2, each tensor by itself (arXiv 2306.01708); independent changes give "
        "0.056, and models that keep disjoint coordinates 0"
    ),
    "task_vector_pearson_correlation": "hardly differs from the cosine where task vectors have a mean near zero",
    "singular_task_interference": (
        "of arXiv 2412.00081 with k leading triplets; it grows with the lengths of the task vectors and with k, and "
        "depends on single singular vectors, which are not determined where singular values are nearly equal"
    ),
    "activation_linear_cka": (
        "of arXiv 1905.00414, over the samples of all tasks; with few samples and many features it is near 1 for any "
        "two models (the estimate of HSIC is the biased one), and it takes a matrix of samples × samples for each model"
    ),
}
