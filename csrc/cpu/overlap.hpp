// Overlaps of subspaces, ‖B_iᵀ C_j‖_F², for all pairs of models.
#pragma once

#include <cstddef>

namespace mergekern {

// Writes the overlaps of `models` bases with `other_models` others to out (models × other_models). A basis is a
// row-major length × k matrix of float32. Without others, the overlaps of all pairs of the bases are computed. The
// result for a pair depends, to the last bit, neither on the order of the two nor on other bases.
void overlap(const float* bases, std::size_t models, const float* others, std::size_t other_models, std::size_t length,
             std::size_t k, double* out);

// Writes the products B_iᵀ C_j of all bases with all others to out (models × other_models × k × k). An element depends,
// to the last bit, on its two vectors only, and not on their order.
void basis_products(const float* bases, std::size_t models, const float* others, std::size_t other_models,
                    std::size_t length, std::size_t k, double* out);

}  // namespace mergekern
