// Registers of LANES float64, and sums over lanes. It has no include guard, since for_each_instruction_set.hpp includes
// it once for each instruction set.
#define MERGEKERN_INLINE inline __attribute__((always_inline))

typedef double Lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(8)));
typedef long long Bits __attribute__((vector_size(LANES * sizeof(double)), aligned(8)));
typedef unsigned long long UnsignedBits __attribute__((vector_size(LANES * sizeof(double)), aligned(8)));

MERGEKERN_INLINE Lanes load(const double* at) { return *reinterpret_cast<const Lanes*>(at); }
MERGEKERN_INLINE void store(double* at, Lanes value) { *reinterpret_cast<Lanes*>(at) = value; }

// Adds neighbouring groups of `width` lanes. The even groups of the result hold the sums of a, the odd groups those of
// b.
template <int width>
MERGEKERN_INLINE Lanes fold(Lanes a, Lanes b) {
  Bits first, second;
#pragma GCC unroll 8
  for (int i = 0; i < LANES; ++i) {
    const bool odd = i / width % 2;
    first[i] = odd ? i - width + LANES : i;
    second[i] = odd ? i + LANES : i + width;
  }
  return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}

// Returns the sums over the lanes of each of LANES vectors.
MERGEKERN_INLINE Lanes sums_of_lanes(const Lanes (&v)[LANES]) {
#if LANES == 8
  return fold<4>(fold<2>(fold<1>(v[0], v[1]), fold<1>(v[2], v[3])), fold<2>(fold<1>(v[4], v[5]), fold<1>(v[6], v[7])));
#elif LANES == 4
  return fold<2>(fold<1>(v[0], v[1]), fold<1>(v[2], v[3]));
#else
  return fold<1>(v[0], v[1]);
#endif
}

MERGEKERN_INLINE double sum_of_lanes(Lanes v) {
#if LANES == 8
  v = fold<4>(v, v);
#endif
#if LANES >= 4
  v = fold<2>(v, v);
#endif
  return fold<1>(v, v)[0];
}
