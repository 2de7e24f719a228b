// Raw-pointer kernels of merging. Included once for each instruction set (for_each_instruction_set.hpp).
#include "merge_rows.hpp"

// Merges elements [start, stop) of the views. `first` is the index in the tensor of the views' first element, which the
// masks depend on. `scratch` holds combine_scratch(n) elements.
void combine_segment(const TensorView& base, const TensorView* tuned, std::size_t n, const TensorView& out,
                     std::size_t start, std::size_t stop, std::size_t first, const Rule& rule, double* scratch,
                     Tally* tally) {
  double *base_row = scratch, *total = scratch + kRow, *merged = total + kRow, *other = merged + kRow;
  double *ballots = other + kRow, *weight = ballots + kRow, *factor = weight + kRow, *rows = factor + kRow;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    if (base.data) subtract(base, at, count, nullptr, base_row);
    else for (std::size_t e = 0; e < count; ++e) base_row[e] = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      double* row = rows + i * kRow;
      subtract(tuned[i], at, count, base.data ? base_row : nullptr, row);
      for (std::size_t e = count; e % LANES; ++e) row[e] = 0.0;
      tally->non_finite += non_finite_row(row, count);
    }
    if (rule.spread != 0.0) keep_varying(rows, n, count, rule.spread, total);
    for (std::size_t i = 0; i < n; ++i) {
      double* row = rows + i * kRow;
      if (rule.thresholds) trim_row(row, count, rule.thresholds[i]);
      if (rule.limits) limit_row(row, count, rule.limits[i]);
      if (rule.keys) drop_row(row, count, rule.keys[i], rule.dropped_below[i], first + at);
    }
    if (rule.ballots) ballot_rows(rows, n, count, rule.ballots, ballots, other);
    if (rule.consensus == Consensus::held) holder_rows(rows, n, count, rule, other, weight, factor);
    for (std::size_t i = 0; i < n; ++i)
      if (rule.weights[i] != 1.0) scale_row(rows + i * kRow, count, rule.weights[i]);
    const double* given = rule.ballots ? ballots : nullptr;
    const double* result = merged;
    switch (rule.consensus) {
      case Consensus::elect: elect_rows<Consensus::elect>(rows, n, count, rule, given, merged, tally); break;
      case Consensus::elect_sum: elect_rows<Consensus::elect_sum>(rows, n, count, rule, given, merged, tally); break;
      case Consensus::elect_max: elect_rows<Consensus::elect_max>(rows, n, count, rule, given, merged, tally); break;
      case Consensus::held:
        sum_rows(rows, n, count, rule, total, tally);
        for (std::size_t e = 0; e < count; ++e) merged[e] = total[e] * factor[e] / weight[e];
        break;
      case Consensus::sum:
      case Consensus::mean:
      case Consensus::agree:
        sum_rows(rows, n, count, rule, total, tally);
        result = total;
        if (rule.consensus == Consensus::mean) {
          for (std::size_t e = 0; e < count; ++e) merged[e] = total[e] / rule.total_weight;
          result = merged;
        }
        if (rule.consensus == Consensus::agree) {
          agree_rows(rows, n, count, rule.share, rule.needed, total, merged, other);
          result = merged;
        }
        break;
    }
    // The product goes to another row, so that it is not fused with the sum that follows.
    for (std::size_t e = 0; e < count; ++e) other[e] = rule.factor * result[e];
    put_row(base_row, other, count, out, at);
  }
}

// Writes |tuned − base| of `count` elements from `at` on to the row.
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

// Writes those magnitudes of elements [start, stop) that begin with `prefix` to `found`, which holds one element more
// than there are: each is written first, and overwritten if it is not kept. Returns their number.
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

// Writes those magnitudes of elements [start, stop) that lie between `low` and `high` to `found`. Adds the numbers of
// those above, and of those equal to either, to `window`. `found` holds LANES elements more than there are, since whole
// registers are written. Returns the number of magnitudes between.
std::size_t window_segment(const TensorView& base, const TensorView& tuned, std::size_t start, std::size_t stop,
                           double low, double high, double* scratch, double* found, Window* window) {
  double* row = scratch + kRow;
  std::size_t size = 0;
  long long above = 0, at_high = 0, at_low = 0;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    magnitude_row(base, tuned, at, count, scratch, row);
    for (std::size_t e = count; e % LANES; ++e) row[e] = -1.0;  // below every magnitude
    Bits rows_above = {}, rows_at_high = {}, rows_at_low = {};
    for (std::size_t e = 0; e < count; e += LANES) {
      const Lanes values = load(row + e);
      rows_above -= values > high;
      rows_at_high -= values == high;
      rows_at_low -= values == low;
      size += pack(values, (values > low) & (values < high), found + size);
    }
    above += sum_of_bits(rows_above);
    at_high += sum_of_bits(rows_at_high);
    at_low += sum_of_bits(rows_at_low);
  }
  window->above += above;
  window->at_high += at_high;
  window->at_low += at_low;
  return size;
}

// Writes the variances over n models of elements [start, stop) of their differences to `out`. `scratch` holds n + 3 rows.
void variance_segment(const TensorView& base, const TensorView* tuned, std::size_t n, std::size_t start,
                      std::size_t stop, double* scratch, double* out) {
  double *base_row = scratch, *mean = scratch + kRow, *other = mean + kRow, *rows = other + kRow;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    difference_rows(base, tuned, n, at, count, base_row, rows);
    variance_rows(rows, n, count, mean, other, out + at);
  }
}

// Adds the squares of elements [start, stop) whose variance is at least `least` to energies[n]. They are summed in
// eight parts on every instruction set, so that all give the same bits. `scratch` holds n + 4 rows.
void energy_segment(const TensorView& base, const TensorView* tuned, std::size_t n, std::size_t start, std::size_t stop,
                    double least, double* scratch, double* energies) {
  constexpr std::size_t kParts = 8;
  double *base_row = scratch, *of_variance = scratch + kRow, *rows = of_variance + 3 * kRow;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    difference_rows(base, tuned, n, at, count, base_row, rows);
    if (least != 0.0) keep_varying(rows, n, count, least, of_variance);
    for (std::size_t i = 0; i < n; ++i) {
      double *row = rows + i * kRow, parts[kParts] = {};
      for (std::size_t e = 0; e < count; ++e) row[e] *= row[e];
      for (std::size_t e = 0; e < count; e += kParts)
        for (std::size_t part = 0; part < kParts; ++part) parts[part] += row[e + part];
      for (std::size_t part = 0; part < kParts; ++part) energies[i] += parts[part];
    }
  }
}

// Counts the elements [start, stop) that each model moves by more than `epsilon`. counts[i] are those that others move
// too, counts[n + i] those that model i moves alone. `scratch` holds n + 2 rows.
void change_segment(const TensorView& base, const TensorView* tuned, std::size_t n, std::size_t start, std::size_t stop,
                    double epsilon, double* scratch, long long* counts) {
  double *base_row = scratch, *movers = scratch + kRow, *rows = movers + kRow;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    difference_rows(base, tuned, n, at, count, base_row, rows);
    for (std::size_t e = 0; e < kRow; ++e) movers[e] = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      double* row = rows + i * kRow;
      for (std::size_t e = 0; e < count; ++e) row[e] = __builtin_fabs(row[e]) > epsilon ? 1.0 : 0.0;
      for (std::size_t e = 0; e < count; ++e) movers[e] += row[e];
    }
    for (std::size_t i = 0; i < n; ++i) {
      Bits shared = {}, alone = {};
      for (std::size_t e = 0; e < count; e += LANES) {
        const Bits own = load(rows + i * kRow + e) != 0.0;
        const Lanes number = load(movers + e);
        shared -= own & (number > 1.0);
        alone -= own & (number == 1.0);
      }
      counts[i] += sum_of_bits(shared);
      counts[n + i] += sum_of_bits(alone);
    }
  }
}
