// Agreement of the signs of task vectors, for all pairs. Formulas: mergekern/kernels/signs/__init__.py.
#pragma once

#include <cstddef>
#include <vector>

#include "dtypes.hpp"

namespace mergekern {

// Number of counts of a pair.
constexpr std::size_t kSignCounts = 4;

// Adds the counts of all pairs of n tensors to `counts` (kSignCounts × n × n), and the sums of the elements of each task
// vector to `sums` (n). A base of nullptr stands for zero. With split > 0 only the pairs i < split ≤ j and i = j are
// counted. A coordinate is kept where |τ| ≥ thresholds[i]. Counts are exact; sums are as reproducible as those of
// add_gram.
void add_sign_counts(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, std::size_t split,
                     const double* thresholds, int threads, long long* counts, double* sums);

}  // namespace mergekern
