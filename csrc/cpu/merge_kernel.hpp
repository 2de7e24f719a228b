// Raw-pointer kernels of merging. Included once for each instruction set (for_each_instruction_set.hpp).
//
// The loops are simple, over rows of float64 that fit the L1 cache, and the compiler vectorises them. Products are
// stored before they are added, so that the compiler cannot fuse the two: all instruction sets give the same bits.
#include "decode.hpp"

// Number of elements of a row: 8 models and the consensus take 12 KB (of three models in bfloat16 512 took a fifth longer).
constexpr std::size_t kRow = 128;

// Number of float64 that combine_segment uses for n models: their rows, base, sum, and two rows for the consensus.
inline std::size_t combine_scratch(std::size_t n) { return (n + 4) * kRow; }

inline long long sum_of_bits(Bits bits) {
  long long sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += bits[lane];
  return sum;
}

// Writes the chosen lanes one after the other, and others behind them. Returns the number of those that are chosen.
MERGEKERN_INLINE std::size_t pack(Lanes values, Bits chosen, double* to) {
#if LANES == 8
  const __mmask8 mask = _mm512_movepi64_mask(reinterpret_cast<__m512i>(chosen));
  _mm512_storeu_pd(to, _mm512_maskz_compress_pd(mask, values));
  return __builtin_popcount(mask);
#else
  std::size_t size = 0;
  for (int lane = 0; lane < LANES; ++lane) {
    to[size] = values[lane];
    size -= chosen[lane];
  }
  return size;
#endif
}

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

// merged = mean, sum or largest of the entries of the elected sign. `rows` are n rows kRow apart, with zeros up to a
// multiple of LANES. One pass, in which nothing but comparisons uses a product: there is nothing to fuse.
template <Consensus consensus>
void elect_rows(const double* rows, std::size_t n, std::size_t count, const Rule& rule, double* merged, Tally* tally) {
  const Lanes one = Lanes{} + 1.0, majority = Lanes{} + rule.majority, zero = {};
  Bits signs = {}, undecided = {};
  for (std::size_t e = 0; e < count; e += LANES) {
    Lanes votes = {};
    Bits counted = {}, kept = {};
    for (std::size_t i = 0; i < n; ++i) {
      const Lanes value = load(rows + i * kRow + e);
      votes += value;
      counted += (value < zero) - (value > zero);
      kept |= value != zero;
    }
    if (rule.by_count) votes = __builtin_convertvector(counted, Lanes);
    const Bits positive = votes > zero, negative = votes < zero;
    signs += negative - positive;
    undecided -= (votes == zero) & kept;  // entries cancel
    const Lanes sign = positive ? one : (negative ? -one : majority);
    Lanes sum = {}, weight = {};
    for (std::size_t i = 0; i < n; ++i) {
      const Lanes value = load(rows + i * kRow + e), along = value * sign;
      if (consensus == Consensus::elect_max) {
        sum = along > sum ? along : sum;
      } else {
        const Bits agrees = along > zero;
        sum += agrees ? value : zero;
        weight += agrees ? Lanes{} + rule.divisors[i] : zero;
      }
    }
    if (consensus == Consensus::elect_max) sum *= sign;
    if (consensus == Consensus::elect) {
      const Bits divides = (weight >= kLeastDivisor) | (weight <= -kLeastDivisor);
      sum /= divides ? weight : one;  // a sum of nothing is zero
    }
    store(merged + e, sum);
  }
  tally->signs += sum_of_bits(signs);
  tally->undecided += sum_of_bits(undecided);
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

// total = the sum of the rows, whose votes are counted.
inline void sum_rows(const double* rows, std::size_t n, std::size_t count, const Rule& rule, double* total,
                     Tally* tally) {
  const Lanes zero = {};
  Bits signs = {};
  for (std::size_t e = 0; e < count; e += LANES) {
    Lanes sum = {};
    Bits counted = {};
    for (std::size_t i = 0; i < n; ++i) {
      const Lanes value = load(rows + i * kRow + e);
      sum += value;
      counted += (value < zero) - (value > zero);
    }
    store(total + e, sum);
    const Lanes votes = rule.by_count ? __builtin_convertvector(counted, Lanes) : sum;
    signs += (votes < zero) - (votes > zero);
  }
  tally->signs += sum_of_bits(signs);
}

// Returns the number of elements that are NaN or infinite.
inline long long non_finite_row(const double* row, std::size_t count) {
  const Lanes largest = Lanes{} + 1.7976931348623157e308;
  Bits found = {};
  for (std::size_t e = 0; e < count; e += LANES) {
    const Lanes value = load(row + e);
    found -= ~((value <= largest) & (value >= -largest));
  }
  return sum_of_bits(found);
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
  double *base_row = scratch, *total = scratch + kRow, *merged = total + kRow, *other = merged + kRow;
  double* rows = other + kRow;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow;
    if (base.data) subtract(base, at, count, nullptr, base_row);
    else for (std::size_t e = 0; e < count; ++e) base_row[e] = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      double* row = rows + i * kRow;
      subtract(tuned[i], at, count, base.data ? base_row : nullptr, row);
      for (std::size_t e = count; e % LANES; ++e) row[e] = 0.0;
      tally->non_finite += non_finite_row(row, count);
      if (rule.thresholds) trim_row(row, count, rule.thresholds[i]);
      if (rule.limits) limit_row(row, count, rule.limits[i]);
      if (rule.keys) drop_row(row, count, rule.keys[i], rule.dropped_below[i], first + at);
      if (rule.weights[i] != 1.0) scale_row(row, count, rule.weights[i]);
    }
    const double* result = merged;
    switch (rule.consensus) {
      case Consensus::elect: elect_rows<Consensus::elect>(rows, n, count, rule, merged, tally); break;
      case Consensus::elect_sum: elect_rows<Consensus::elect_sum>(rows, n, count, rule, merged, tally); break;
      case Consensus::elect_max: elect_rows<Consensus::elect_max>(rows, n, count, rule, merged, tally); break;
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

// Writes those magnitudes of elements [start, stop) that lie between `low` and `high` to `found`, and counts those above
// and those that are equal to either. `found` holds LANES elements more than there are. Returns the number of values.
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
