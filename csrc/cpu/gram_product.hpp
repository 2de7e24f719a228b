// Checked launchers of the products of randomized_spectrum. Formulas: mergekern/kernels/randomized_spectrum/__init__.py.
#pragma once

#include <cstddef>

#include "dtypes.hpp"

namespace mergekern {

// Vectors come in groups of this many.
constexpr std::size_t kVectorGroup = 16;

// A rows × columns block of a base and a tuned matrix, whose rows lie their strides apart, counted in elements.
struct BlockViews {
  TensorView base;
  std::size_t base_stride;
  TensorView tuned;
  std::size_t tuned_stride;
  std::size_t rows, columns;
};

// The largest |tuned − base| of a block.
double largest_difference(const BlockViews& block);

// Adds weight · δᵀδ·vectors to `total` for δ = factor · (tuned − base), rounded to float32 once; of_rows: δδᵀ·vectors.
// vectors (s, count) float32, total (s, count) float64, with s columns of the block, or rows, and a count in groups.
// Writes δ·vectors, or δᵀ·vectors, to `images` (l, count) float32, with l rows of the block, or columns, unless it is
// nullptr. Sums are float32 within tiles of fixed size, float64 among them. A vector's results depend on no other vector.
// Runs on the calling thread alone.
void add_gram_product(const BlockViews& block, bool of_rows, double factor, double weight, const float* vectors,
                      std::size_t count, double* total, float* images);

}  // namespace mergekern
