// Checked launchers of the task-vector kernels. Formulas: mergekern/kernels/gram/__init__.py.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "dtypes.hpp"

namespace mergekern {

// Writes the n×n matrix <tuned_i − base, tuned_j − base> to `out` (row-major, float64).
// A base of nullptr stands for zero. Bit-identical for every thread count.
void gram(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, int threads, double* out);

// Writes ‖a_p − b_p‖² of each pair p of `tensors` to `out`.
void squared_distances(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                       std::size_t count, int threads, double* out);

// Writes the rows × columns matrix tuned − base to `out` (row-major, float64). Rows of each operand lie
// its stride apart, counted in elements. Runs on the calling thread alone.
void difference(const TensorView& base, std::size_t base_stride, const TensorView& tuned, std::size_t tuned_stride,
                std::size_t rows, std::size_t columns, double* out);

}  // namespace mergekern
