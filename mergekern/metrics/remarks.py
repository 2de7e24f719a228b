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
}
