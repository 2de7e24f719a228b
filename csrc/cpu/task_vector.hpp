// Checked launchers of the task-vector kernels. Formulas: mergekern/kernels/gram/__init__.py.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "dtypes.hpp"

namespace mergekern {

// Number of elements of a segment. Each segment is summed by itself; the sums of segments are added in order.
constexpr std::size_t kSegment = 1 << 17;

// Adds the inner products <tuned_i − base, tuned_j − base> to the n×n matrix `sums` (row-major, float64). With split =
// 0 all pairs are computed, with split > 0 only those with i < split ≤ j and i = j. A base of nullptr stands for zero.
// The result for a pair depends on its two tensors and the base only, to the last bit: not on other tensors, their
// order, or the number of threads. Calls for consecutive ranges give the same bits if ranges end at multiples of
// kSegment. With `absolute`, each τ is replaced by the absolute values of its elements.
void add_gram(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, std::size_t split,
              int threads, double* sums, bool absolute = false);

// Adds ‖a_p − b_p‖² to sums[p] for each pair p of `tensors`. Its results are as reproducible as those of add_gram.
void add_squared_distances(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                           std::size_t count, int threads, double* sums);

// Writes the rows × columns matrix tuned − base to `out` (row-major, float64). Strides of rows are in elements. Runs on
// the calling thread only.
void difference(const TensorView& base, std::size_t base_stride, const TensorView& tuned, std::size_t tuned_stride,
                std::size_t rows, std::size_t columns, double* out);

// Writes factor · (tuned − base) likewise, rounded to float32 once.
void scaled_difference(const TensorView& base, std::size_t base_stride, const TensorView& tuned,
                       std::size_t tuned_stride, std::size_t rows, std::size_t columns, double factor, float* out);

}  // namespace mergekern
