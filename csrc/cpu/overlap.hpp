// Overlaps of the subspaces of models, for all pairs: ‖B_iᵀ C_j‖_F².
#pragma once

#include <cstddef>

namespace mergekern {

// Writes the overlaps of `models` bases with `other_models` others to out (models × other_models). A basis is
// length × k float32, row after row. Without others, all pairs of the bases are meant. The
// bits of a pair depend neither on its order nor on the other bases.
void overlap(const float* bases, std::size_t models, const float* others, std::size_t other_models, std::size_t length,
             std::size_t k, double* out);

}  // namespace mergekern
