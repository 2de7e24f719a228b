// Signs of task vectors as packed bits, and counts over the bits of pairs. Included once for each instruction set
// (for_each_instruction_set.hpp).

#include "decode.hpp"

// Elements that are decoded at a time: two rows of float64 fit the L1 cache.
constexpr std::size_t kRow = 1024;

// The lanes that are −1 as the lowest bits of a number; the others are 0.
MERGEKERN_INLINE unsigned mask_of(Bits lanes) {
#if LANES == 8
  return _mm512_movepi64_mask(reinterpret_cast<__m512i>(lanes));
#elif LANES == 4
  return _mm256_movemask_pd(reinterpret_cast<__m256d>(lanes));
#else
  return (lanes[0] & 1) | (lanes[1] & 2);
#endif
}

// Number of ones of each lane. With registers of bytes, the table of the ones of four bits is looked up twice.
MERGEKERN_INLINE UnsignedBits ones(UnsignedBits bits) {
#if LANES == 8
  const __m512i v = reinterpret_cast<__m512i>(bits), low = _mm512_set1_epi8(15);
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i bytes = _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(v, low)),
                                        _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), low)));
  return reinterpret_cast<UnsignedBits>(_mm512_sad_epu8(bytes, _mm512_setzero_si512()));
#elif LANES == 4
  const __m256i v = reinterpret_cast<__m256i>(bits), low = _mm256_set1_epi8(15);
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                                        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
  return reinterpret_cast<UnsignedBits>(_mm256_sad_epu8(bytes, _mm256_setzero_si256()));
#else
  return UnsignedBits{static_cast<unsigned long long>(__builtin_popcountll(bits[0])),
                      static_cast<unsigned long long>(__builtin_popcountll(bits[1]))};
#endif
}

MERGEKERN_INLINE long long total(UnsignedBits lanes) {
  long long sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
  return sum;
}

// Packs whole registers of a row: bit e of a plane is that of element e. Returns the sum of the row.
MERGEKERN_INLINE double pack_row(const double* row, std::size_t count, double threshold, unsigned char* const* planes) {
  Lanes sum = {};
  for (std::size_t e = 0; e < count; e += 8) {
    unsigned changed = 0, negative = 0, kept = 0;
#pragma GCC unroll 4
    for (int part = 0; part < 8; part += LANES) {
      const Lanes value = load(row + e + part), size = value < 0.0 ? -value : value;
      sum += value;
      changed |= mask_of(size > 0.0) << part;
      negative |= mask_of(value < 0.0) << part;
      kept |= mask_of((size > 0.0) & (size >= Lanes{} + threshold)) << part;
    }
    planes[kChanged][e / 8] = changed;
    planes[kNegative][e / 8] = negative;
    planes[kKept][e / 8] = kept;
  }
  return sum_of_lanes(sum);
}

// Packs elements [start, stop) of n task vectors, at most kPacked, and adds the sums of their elements to `sums`. A
// plane has kWords words for each model; the bits beyond the last element are zeros. `rows` holds 2·kRow elements.
void pack_signs(const TensorView& base, const TensorView* tuned, std::size_t n, std::size_t start, std::size_t stop,
                const double* thresholds, std::uint64_t* planes, double* sums, double* rows) {
  std::memset(planes, 0, n * kPlanes * kWords * sizeof *planes);
  double *base_row = rows, *row = rows + kRow;
  for (std::size_t at = start; at < stop; at += kRow) {
    const std::size_t count = stop - at < kRow ? stop - at : kRow, padded = (count + 7) / 8 * 8;
    if (base.data) subtract(base, at, count, nullptr, base_row);
    for (std::size_t i = 0; i < n; ++i) {
      subtract(tuned[i], at, count, base.data ? base_row : nullptr, row);
      for (std::size_t e = count; e < padded; ++e) row[e] = 0.0;
      unsigned char* to[kPlanes];
      for (int plane = 0; plane < kPlanes; ++plane)
        to[plane] = reinterpret_cast<unsigned char*>(planes + (i * kPlanes + plane) * kWords) + (at - start) / 8;
      sums[i] += pack_row(row, padded, thresholds[i], to);
    }
  }
}

MERGEKERN_INLINE UnsignedBits word(const std::uint64_t* planes, int plane, std::size_t w) {
  return *reinterpret_cast<const UnsignedBits*>(planes + plane * kWords + w);
}

// Adds the counts of one pair: of coordinates that both models change, of those with opposite signs, and likewise among
// the coordinates that both keep.
void count_signs(const std::uint64_t* one, const std::uint64_t* other, long long* counts) {
  UnsignedBits shared = {}, opposite = {}, kept = {}, kept_opposite = {};
  for (std::size_t w = 0; w < kWords; w += LANES) {
    const UnsignedBits differ = word(one, kNegative, w) ^ word(other, kNegative, w);
    const UnsignedBits changed = word(one, kChanged, w) & word(other, kChanged, w);
    const UnsignedBits both = word(one, kKept, w) & word(other, kKept, w);
    shared += ones(changed);
    opposite += ones(changed & differ);
    kept += ones(both);
    kept_opposite += ones(both & differ);
  }
  counts[0] += total(shared);
  counts[1] += total(opposite);
  counts[2] += total(kept);
  counts[3] += total(kept_opposite);
}
