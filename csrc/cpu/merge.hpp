// Checked launchers of the kernels of merging. Formulas: mergekern/kernels/combine and trim, __init__.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtypes.hpp"

namespace mergekern {

enum class Consensus : int { sum = 0, mean = 1, elect = 2, agree = 3, elect_sum = 4, elect_max = 5, held = 6 };
constexpr Consensus kLastConsensus = Consensus::held;

// How the task vectors of one tensor are merged; fields are as in mergekern/kernels/combine/__init__.py. Each array has
// one value per model, or is nullptr: thresholds and limits then trim nothing, keys drop nothing, the weights vote in
// place of ballots, and alone multiplies nothing. With a spread or floor of 0 there is no such bound.
struct Rule {
  Consensus consensus;
  const double *weights, *divisors;
  double total_weight, factor;
  const double *thresholds, *limits;
  const std::uint64_t *keys, *dropped_below;
  double majority, share;
  long long needed;
  bool by_count;
  const double *ballots, *alone;
  double floor, spread;
};

struct Tally {
  long long signs = 0, undecided = 0, non_finite = 0;
};

// Numbers of magnitudes above the upper end of a window, and equal to one of its ends.
struct Window {
  long long above = 0, at_high = 0, at_low = 0;
};

// Writes the merged elements to `out` (float32 or float64). A base of nullptr stands for zero. `start` is the index of
// the first element in its tensor. All numbers of threads and all instruction sets give the same bits.
Tally combine(const TensorView& base, const std::vector<TensorView>& tuned, const TensorView& out, std::size_t count,
              std::size_t start, int threads, const Rule& rule);

// Counts the values |tuned − base| by bits [shift, shift + width) of their float64, and adds to counts[2^width]. Only
// values whose bits from `above` on equal `prefix` are counted. A base of nullptr stands for zero.
void magnitude_counts(const TensorView& base, const TensorView& tuned, std::size_t count, std::uint64_t prefix,
                      int above, int shift, int width, int threads, long long* counts);

// Returns the values |tuned − base| whose bits from `above` on equal `prefix`, in the order of the elements.
std::vector<double> magnitudes(const TensorView& base, const TensorView& tuned, std::size_t count,
                               std::uint64_t prefix, int above, int threads);

// Returns the values |tuned − base| between `low` and `high`, without those equal to either, in the order of the
// elements, and adds the numbers of others to `window`.
std::vector<double> magnitudes_between(const TensorView& base, const TensorView& tuned, std::size_t count, double low,
                                       double high, int threads, Window* window);

// Writes the variance of each element over the differences of n models to out[count].
void variances(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, int threads,
               double* out);

// Returns for each model the sum of the squares of its differences, over the elements whose variance over the models is
// at least `least`.
std::vector<double> energies(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count,
                             double least, int threads);

// Returns 2n numbers: how many elements each model moves by more than `epsilon` together with others, then how many it
// alone does.
std::vector<long long> changes(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count,
                               double epsilon, int threads);

}  // namespace mergekern
