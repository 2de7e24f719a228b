// Raw-pointer kernels of merging. Included once for each instruction set (for_each_instruction_set.hpp).
//
// The loops are simple, over rows of float64 that fit the L1 cache, and the compiler vectorises them. Products are
// stored before they are added, so that the compiler cannot fuse the two: all instruction sets give the same bits.
#include "decode.hpp"

// Number of elements of a row.
constexpr std::size_t kRow = 512;

// Number of float64 that combine_segment uses for n models: their rows, base, sum, votes, and four rows for the consensus.
inline std::size_t combine_scratch(std::size_t n) { return (n + 7) * kRow; }

// Sets elements whose magnitude is below the threshold to zero.
inline void trim_row(double* row, std::size_t count, double threshold) {
  for (std::size_t e = 0; e < count; ++e) row[e] = __builtin_fabs(row[e]) >= threshold ? row[e] : 0.0;
}

// Sets elements whose magnitude is above the limit to zero.
inline void limit_row(double* row, std::size_t count, double limit) {
  for (std::size_t e = 0; e < count; ++e) row[e] = __builtin_fabs(row[e]) <= limit ? row[e] : 0.0;
}

// Sets the elements that a key's mask drops to zero. `start` is the index of the first element.
inline void drop_row(double* row, std::size_t count, std::uint64_t key, std::uint64_t dropped_below, std::uint64_t start) {
  for (std::size_t e = 0; e < count; ++e) {
    std::uint64_t z = key + (start + e + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z = (z ^ (z >> 31)) >> 11;
    row[e] = z < dropped_below ? 0.0 : row[e];
  }
}

inline void scale_row(double* row, std::size_t count, double factor) {
  for (std::size_t e = 0; e < count; ++e) row[e] *= factor;
}

// Divisors nearer to zero divide nothing: rounding is all that is left of weights that cancel.
constexpr double kLeastDivisor = 1e-8;

// merged = mean, sum or largest of the entries of the elected sign. `rows` are n rows kRow apart; `scratch` holds three
// rows. The compiler vectorises every loop (measured: 6 times the speed of one loop with everything in it).
inline void elect_rows(const double* __restrict rows, std::size_t n, std::size_t count, const Rule& rule,
                       const double* __restrict votes, double* __restrict merged, double* __restrict scratch,
                       Tally* tally) {
  const double majority = rule.majority;
  double *__restrict weight = scratch, *__restrict sign = scratch + kRow, *__restrict kept = scratch + 2 * kRow;
  for (std::size_t e = 0; e < count; ++e) {
    merged[e] = weight[e] = kept[e] = 0.0;
    const double other = votes[e] < 0.0 ? -1.0 : majority;
    sign[e] = votes[e] > 0.0 ? 1.0 : other;
  }
  for (std::size_t i = 0; i < n; ++i) {
    const double* __restrict row = rows + i * kRow;
    const double own = rule.divisors[i];
    if (rule.consensus == Consensus::elect_max) {
      for (std::size_t e = 0; e < count; ++e) {
        const double value = row[e], along = value * sign[e];
        merged[e] = along > merged[e] ? along : merged[e];
        kept[e] = value != 0.0 ? 1.0 : kept[e];
      }
      continue;
    }
    for (std::size_t e = 0; e < count; ++e) {
      const double value = row[e], along = value * sign[e];
      merged[e] += along > 0.0 ? value : 0.0;
      weight[e] += along > 0.0 ? own : 0.0;
      kept[e] = value != 0.0 ? 1.0 : kept[e];
    }
  }
  // Entries cancel if their votes sum to zero and at least one of them was kept.
  double undecided = 0.0;
  for (std::size_t e = 0; e < count; ++e) {
    const double cancels = votes[e] == 0.0 ? kept[e] : 0.0;
    kept[e] = cancels;
  }
  for (std::size_t e = 0; e < count; ++e) undecided += kept[e];
  tally->undecided += static_cast<long long>(undecided);
  if (rule.consensus == Consensus::elect_max)
    for (std::size_t e = 0; e < count; ++e) merged[e] *= sign[e];
  if (rule.consensus != Consensus::elect) return;
  for (std::size_t e = 0; e < count; ++e) {
    const double divisor = __builtin_fabs(weight[e]) >= kLeastDivisor ? weight[e] : 1.0;
    merged[e] = merged[e] / divisor;  // a sum of nothing is zero
  }
}

// merged = the sum, for elements in which enough models stand out against the sum of the others; else 0.
inline void agree_rows(const double* rows, std::size_t n, std::size_t count, double share, long long needed,
                       const double* total, double* merged, double* claims) {
  for (std::size_t e = 0; e < count; ++e) claims[e] = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    const double* row = rows + i * kRow;
    for (std::size_t e = 0; e < count; ++e)
      claims[e] += __builtin_fabs(row[e]) > share * __builtin_fabs(total[e] - row[e]) ? 1.0 : 0.0;
  }
  const double least = static_cast<double>(needed);
  for (std::size_t e = 0; e < count; ++e) merged[e] = claims[e] >= least ? total[e] : 0.0;
}

// Writes base + merged as float64 or float32.
inline void put_row(const double* base, const double* merged, std::size_t count, const TensorView& out,
                    std::size_t at) {
  if (out.dtype == DType::float64) {
    double* to = static_cast<double*>(const_cast<void*>(out.data)) + at;
    for (std::size_t e = 0; e < count; ++e) to[e] = base[e] + merged[e];
  } else {
    float* to = static_cast<float*>(const_cast<void*>(out.data)) + at;
    for (std::size_t e = 0; e < count; ++e) to[e] = static_cast<float>(base[e] + merged[e]);
  }
}

// Merges elements [start, stop) of the views. `first` is the index in the tensor of the views' first element.
void combine_segment(const TensorView& base, const TensorView* tuned, std::size_t n, const TensorView& out,
                     std::size_t start, std::size_t stop, std::size_t first, const Rule& rule, double* scratch,
                     Tally* tally) {
  double *base_row = scratch, *total = scratch + kRow, *counted = total + kRow, *merged = counted + kRow;
  double *other = merged + kRow, *rows = other + 3 * kRow;
  const double* votes = rule.by_count ? counted : total;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    if (base.data) subtract(base, at, count, nullptr, base_row);
    else for (std::size_t e = 0; e < count; ++e) base_row[e] = 0.0;
    for (std::size_t e = 0; e < count; ++e) total[e] = counted[e] = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      double* row = rows + i * kRow;
      subtract(tuned[i], at, count, base.data ? base_row : nullptr, row);
      long long finite = 0;
      for (std::size_t e = 0; e < count; ++e) finite += __builtin_fabs(row[e]) <= 1.7976931348623157e308;
      tally->non_finite += static_cast<long long>(count) - finite;
      if (rule.thresholds) trim_row(row, count, rule.thresholds[i]);
      if (rule.limits) limit_row(row, count, rule.limits[i]);
      if (rule.keys) drop_row(row, count, rule.keys[i], rule.dropped_below[i], first + at);
      if (rule.weights[i] != 1.0) scale_row(row, count, rule.weights[i]);
      for (std::size_t e = 0; e < count; ++e) total[e] += row[e];
      if (rule.by_count)
        for (std::size_t e = 0; e < count; ++e) counted[e] += (row[e] > 0.0 ? 1.0 : 0.0) - (row[e] < 0.0 ? 1.0 : 0.0);
    }
    long long signs = 0;
    for (std::size_t e = 0; e < count; ++e) signs += (votes[e] > 0.0) - (votes[e] < 0.0);
    tally->signs += signs;
    const double* result = merged;
    switch (rule.consensus) {
      case Consensus::sum: result = total; break;
      case Consensus::mean:
        for (std::size_t e = 0; e < count; ++e) merged[e] = total[e] / rule.total_weight;
        break;
      case Consensus::elect:
      case Consensus::elect_sum:
      case Consensus::elect_max: elect_rows(rows, n, count, rule, votes, merged, other, tally); break;
      case Consensus::agree: agree_rows(rows, n, count, rule.share, rule.needed, total, merged, other); break;
    }
    // The product goes to another row, so that it is not fused with the sum that follows.
    for (std::size_t e = 0; e < count; ++e) other[e] = rule.factor * result[e];
    put_row(base_row, other, count, out, at);
  }
}

// Writes the bits of |tuned − base|, for `count` elements from `at` on, to the row.
inline void magnitude_row(const TensorView& base, const TensorView& tuned, std::size_t at, std::size_t count,
                          double* base_row, double* row) {
  if (base.data) subtract(base, at, count, nullptr, base_row);
  subtract(tuned, at, count, base.data ? base_row : nullptr, row);
  for (std::size_t e = 0; e < count; ++e) row[e] = __builtin_fabs(row[e]);
}

// Counts the elements [start, stop) by digit; see magnitude_counts. `scratch` holds two rows.
void count_segment(const TensorView& base, const TensorView& tuned, std::size_t start, std::size_t stop,
                   std::uint64_t prefix, int above, int shift, int width, double* scratch, long long* counts) {
  const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
  double* row = scratch + kRow;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    magnitude_row(base, tuned, at, count, scratch, row);
    for (std::size_t e = 0; e < count; ++e) {
      const std::uint64_t bits = bits_as<std::uint64_t>(row[e]);
      if (bits >> above == prefix) ++counts[bits >> shift & mask];
    }
  }
}

// Writes those magnitudes of elements [start, stop) that begin with `prefix` to `found`. Returns their number.
std::size_t collect_segment(const TensorView& base, const TensorView& tuned, std::size_t start, std::size_t stop,
                            std::uint64_t prefix, int above, double* scratch, double* found) {
  double* row = scratch + kRow;
  std::size_t size = 0;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    magnitude_row(base, tuned, at, count, scratch, row);
    for (std::size_t e = 0; e < count; ++e) {
      found[size] = row[e];
      size += bits_as<std::uint64_t>(row[e]) >> above == prefix;
    }
  }
  return size;
}
