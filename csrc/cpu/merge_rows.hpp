// What the kernels of merging do to rows of float64 that fit the L1 cache. It has no include guard, since
// for_each_instruction_set.hpp includes it once for each instruction set.
//
// The compiler vectorises the simple loops; the others are written in registers. A product is stored before it is
// added. The compiler could otherwise fuse the two, and instruction sets would differ in the last bit.
#include "decode.hpp"

// Number of elements of a row. The rows of 8 models and of the consensus then take 15 KB, which fit the L1 cache. With
// rows of 512, a merge of three models in bfloat16 took a fifth longer.
constexpr std::size_t kRow = 128;

// Number of float64 that combine_segment uses for n models: their rows, base, and six rows for the consensus.
inline std::size_t combine_scratch(std::size_t n) { return (n + 7) * kRow; }

inline long long sum_of_bits(Bits bits) {
  long long sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += bits[lane];
  return sum;
}

// Writes the chosen lanes one after the other. Up to LANES elements are overwritten. Returns how many are chosen.
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
// multiple of LANES. Products are not stored here: only comparisons use them, so that there is nothing to fuse.
template <Consensus consensus>
void elect_rows(const double* rows, std::size_t n, std::size_t count, const Rule& rule, const double* ballots,
                double* merged, Tally* tally) {
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
    if (ballots) votes = load(ballots + e);
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
      const Lanes floor = Lanes{} + rule.floor, divisor = divides ? weight : one;  // a sum of nothing is zero
      sum /= rule.floor > 0.0 ? (weight > floor ? weight : floor) : divisor;
    }
    store(merged + e, sum);
  }
  tally->signs += sum_of_bits(signs);
  tally->undecided += sum_of_bits(undecided);
}

// variances = the variance of each element over n rows. `other` is a row.
inline void variance_rows(const double* rows, std::size_t n, std::size_t count, double* __restrict mean,
                          double* __restrict other, double* __restrict variances) {
  const double models = static_cast<double>(n);
  for (std::size_t e = 0; e < count; ++e) mean[e] = variances[e] = 0.0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t e = 0; e < count; ++e) mean[e] += rows[i * kRow + e];
  for (std::size_t e = 0; e < count; ++e) mean[e] /= models;
  for (std::size_t i = 0; i < n; ++i) {
    const double* row = rows + i * kRow;
    for (std::size_t e = 0; e < count; ++e) other[e] = row[e] - mean[e];
    for (std::size_t e = 0; e < count; ++e) other[e] *= other[e];
    for (std::size_t e = 0; e < count; ++e) variances[e] += other[e];
  }
  for (std::size_t e = 0; e < count; ++e) variances[e] /= models;
}

// Sets the elements whose variance over n rows is below `least` to zero in all rows. `scratch` holds three rows.
inline void keep_varying(double* rows, std::size_t n, std::size_t count, double least, double* scratch) {
  const double* variances = scratch + 2 * kRow;
  variance_rows(rows, n, count, scratch, scratch + kRow, scratch + 2 * kRow);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t e = 0; e < count; ++e) rows[i * kRow + e] = variances[e] >= least ? rows[i * kRow + e] : 0.0;
}

// ballots = the votes by weights of their own. `other` is a row.
inline void ballot_rows(const double* rows, std::size_t n, std::size_t count, const double* weights, double* ballots,
                        double* __restrict other) {
  for (std::size_t e = 0; e < kRow; ++e) ballots[e] = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t e = 0; e < count; ++e) other[e] = weights[i] * rows[i * kRow + e];
    for (std::size_t e = 0; e < count; ++e) ballots[e] += other[e];
  }
}

// weight = the sum of the divisors of the models that hold an element, or 1 where no model does. factor = the model's
// `alone` where one model holds the element, else 1. `holders` is a row.
inline void holder_rows(const double* rows, std::size_t n, std::size_t count, const Rule& rule,
                        double* __restrict holders, double* __restrict weight, double* __restrict factor) {
  for (std::size_t e = 0; e < count; ++e) holders[e] = weight[e] = factor[e] = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    const double* row = rows + i * kRow;
    const double own = rule.divisors[i], alone = rule.alone ? rule.alone[i] : 1.0;
    for (std::size_t e = 0; e < count; ++e) {
      const bool holds = row[e] != 0.0;
      holders[e] += holds ? 1.0 : 0.0;
      weight[e] += holds ? own : 0.0;
      factor[e] += holds ? alone : 0.0;
    }
  }
  for (std::size_t e = 0; e < count; ++e) {
    weight[e] = weight[e] > 0.0 ? weight[e] : 1.0;
    factor[e] = holders[e] == 1.0 ? factor[e] : 1.0;
  }
}

// merged = the sum where at least `needed` models exceed `share` of the sum of the others, else 0. `claims` is a row.
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

// total = the sum of the rows. Adds the signs of the votes to the tally.
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

// rows = tuned − base of n models, with zeros up to a multiple of eight.
inline void difference_rows(const TensorView& base, const TensorView* tuned, std::size_t n, std::size_t at,
                            std::size_t count, double* base_row, double* rows) {
  if (base.data) subtract(base, at, count, nullptr, base_row);
  for (std::size_t i = 0; i < n; ++i) {
    double* row = rows + i * kRow;
    subtract(tuned[i], at, count, base.data ? base_row : nullptr, row);
    for (std::size_t e = count; e % 8; ++e) row[e] = 0.0;
  }
}
