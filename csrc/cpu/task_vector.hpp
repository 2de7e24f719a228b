// Checked launchers of the task-vector kernels. Formulas: mergekern/kernels/gram/__init__.py.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "dtypes.hpp"

namespace mergekern {

// Sums are made over segments of this many elements, which are added up in order.
constexpr std::size_t kSegment = 1 << 17;

// Adds the inner products <tuned_i − base, tuned_j − base> to the n×n matrix `sums` (row-major, float64): of all pairs,
// or, where split > 0, of those with i < split ≤ j and of each tensor with itself. A base of nullptr stands for zero.
// What is added for a pair depends on its two tensors and the base alone, not on the others, their order, or the number
// of threads; and in calls for ranges of tensors that are cut at multiples of kSegment it adds up to the same bits.
void add_gram(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, std::size_t split,
              int threads, double* sums);

// Adds ‖a_p − b_p‖² of each pair p of `tensors` to `sums`, with the same properties.
void add_squared_distances(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                           std::size_t count, int threads, double* sums);

// Writes the rows × columns matrix tuned − base to `out` (row-major, float64). Rows of each operand lie
// its stride apart, counted in elements. Runs on the calling thread alone.
void difference(const TensorView& base, std::size_t base_stride, const TensorView& tuned, std::size_t tuned_stride,
                std::size_t rows, std::size_t columns, double* out);

// Writes factor · (tuned − base) likewise, rounded to float32 once.
void scaled_difference(const TensorView& base, std::size_t base_stride, const TensorView& tuned,
                       std::size_t tuned_stride, std::size_t rows, std::size_t columns, double factor, float* out);

}  // namespace mergekern
