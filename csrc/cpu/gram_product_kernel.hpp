// Products of a task matrix with thin ones. Included once for each instruction set (for_each_instruction_set.hpp).

#include "decode.hpp"

constexpr int kFloats = 2 * LANES;  // float32 that a register holds
// A block of sums in registers, 6 × 4 of 32 and 6 × 2 of 16: numbers of one matrix, each times vectors of the other.
constexpr int kRows = 6, kVectors = LANES == 8 ? 4 : 2;

typedef float FloatLanes __attribute__((vector_size(kFloats * sizeof(float)), aligned(4)));
typedef std::uint32_t WordLanes __attribute__((vector_size(kFloats * sizeof(float)), aligned(4)));
typedef std::uint16_t HalfLanes __attribute__((vector_size(kFloats * sizeof(std::uint16_t)), aligned(1)));
typedef float UnalignedFloats __attribute__((vector_size(kFloats * sizeof(float)), aligned(1)));

MERGEKERN_INLINE FloatLanes load_floats(const float* at) { return *reinterpret_cast<const FloatLanes*>(at); }

MERGEKERN_INLINE FloatLanes multiply_add(FloatLanes a, FloatLanes b, FloatLanes c) {
#if LANES == 8
  return _mm512_fmadd_ps(a, b, c);
#elif LANES == 4
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// Storage types whose values are exact in float32.
struct NarrowFloat32 {
  typedef float Stored;
  FloatLanes operator()(const float* at) const { return *reinterpret_cast<const UnalignedFloats*>(at); }
};

struct NarrowBFloat16 {
  typedef std::uint16_t Stored;
  FloatLanes operator()(const std::uint16_t* at) const {
    return bits_as<FloatLanes>(__builtin_convertvector(*reinterpret_cast<const HalfLanes*>(at), WordLanes) << 16);
  }
};

struct NarrowFloat16 {
  typedef std::uint16_t Stored;
  FloatLanes operator()(const std::uint16_t* at) const {
    const WordLanes half = __builtin_convertvector(*reinterpret_cast<const HalfLanes*>(at), WordLanes);
    // As in FromFloat16; infinities are not met here.
    const WordLanes bits = bits_as<WordLanes>(bits_as<FloatLanes>((half & 0x7fffu) << 13) * 0x1p112f);
    return bits_as<FloatLanes>(bits | ((half & 0x8000u) << 16));
  }
};

// Calls use(e, lanes) with the values factor · (tuned − base) of elements e on; those beyond `count` are zeros.
template <typename Base, typename Tuned, typename Use>
MERGEKERN_INLINE void each_difference(const void* base_data, const void* tuned_data, std::size_t count, float factor,
                                      Use use) {
  const typename Base::Stored* base = static_cast<const typename Base::Stored*>(base_data);
  const typename Tuned::Stored* tuned = static_cast<const typename Tuned::Stored*>(tuned_data);
  const std::size_t whole = count / kFloats * kFloats;
  for (std::size_t e = 0; e < whole; e += kFloats) use(e, (Tuned()(tuned + e) - Base()(base + e)) * factor);
  if (whole == count) return;
  typename Base::Stored last_base[kFloats] = {};
  typename Tuned::Stored last_tuned[kFloats] = {};
  std::memcpy(last_base, base + whole, (count - whole) * sizeof last_base[0]);
  std::memcpy(last_tuned, tuned + whole, (count - whole) * sizeof last_tuned[0]);
  use(whole, (Tuned()(last_tuned) - Base()(last_base)) * factor);
}

template <typename Base, typename Use>
MERGEKERN_INLINE void of_tuned(const void* base, const void* tuned, DType dtype, std::size_t count, float factor,
                               Use use) {
  if (dtype == DType::float32) return each_difference<Base, NarrowFloat32>(base, tuned, count, factor, use);
  if (dtype == DType::float16) return each_difference<Base, NarrowFloat16>(base, tuned, count, factor, use);
  return each_difference<Base, NarrowBFloat16>(base, tuned, count, factor, use);
}

inline const void* element(const TensorView& view, std::size_t at) {
  return static_cast<const char*>(view.data) + at * item_size(view.dtype);
}

// each_difference of elements that lie at `base_at` and `tuned_at`, of types that are exact in float32.
template <typename Use>
MERGEKERN_INLINE void in_float32(const BlockViews& block, std::size_t base_at, std::size_t tuned_at, std::size_t count,
                                 float factor, Use use) {
  const void *base = element(block.base, base_at), *tuned = element(block.tuned, tuned_at);
  const DType type = block.base.dtype, tuned_type = block.tuned.dtype;
  if (type == DType::float32) return of_tuned<NarrowFloat32>(base, tuned, tuned_type, count, factor, use);
  if (type == DType::float16) return of_tuned<NarrowFloat16>(base, tuned, tuned_type, count, factor, use);
  return of_tuned<NarrowBFloat16>(base, tuned, tuned_type, count, factor, use);
}

// out[e] = factor · (tuned − base), by way of float64. `delta` holds `count`, and a register more.
void narrow_by_float64(const BlockViews& block, std::size_t base_at, std::size_t tuned_at, std::size_t count,
                       double factor, double* delta, float* out) {
  subtract(block.base, base_at, count, nullptr, delta);
  subtract(block.tuned, tuned_at, count, delta, delta);
  for (std::size_t e = 0; e < count; ++e) out[e] = static_cast<float>(factor * delta[e]);
}

// out[e] = factor · (tuned − base); written in whole registers.
void narrow(const BlockViews& block, std::size_t base_at, std::size_t tuned_at, std::size_t count, float factor,
            float* out) {
  in_float32(block, base_at, tuned_at, count, factor,
             [out](std::size_t e, FloatLanes x) { *reinterpret_cast<FloatLanes*>(out + e) = x; });
}

// The largest |tuned − base|, in float32: infinite where that cannot hold it.
float largest_in_float32(const BlockViews& block, std::size_t base_at, std::size_t tuned_at, std::size_t count) {
  FloatLanes most = {};
  in_float32(block, base_at, tuned_at, count, 1.0f, [&most](std::size_t, FloatLanes x) {
    const FloatLanes size = bits_as<FloatLanes>(bits_as<WordLanes>(x) & 0x7fffffffu);
    most = size > most ? size : most;
  });
  float largest = 0.0f;
  for (int lane = 0; lane < kFloats; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  return largest;
}

// sums[r][v] += Σ_t numbers[r · step + t · stride] · vectors[t · count + v] of kRows × VECTORS registers of sums.
template <int VECTORS>
MERGEKERN_INLINE void block_of_sums(const float* numbers, std::size_t step, std::size_t stride, std::size_t length,
                                    const float* vectors, std::size_t count, FloatLanes (&sums)[kRows][VECTORS]) {
  for (std::size_t t = 0; t < length; ++t, numbers += stride, vectors += count) {
    FloatLanes vector[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) vector[v] = load_floats(vectors + v * kFloats);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const FloatLanes number = numbers[r * step] - FloatLanes{};
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = multiply_add(number, vector[v], sums[r][v]);
    }
  }
}

// images[i] += δ_i · vectors for `length` elements of δ_i, i < rows, a multiple of kRows.
template <int VECTORS>
void add_images(const float* tile, std::size_t row_step, std::size_t element_step, std::size_t rows,
                std::size_t length, const float* vectors, std::size_t count, float* images) {
  for (std::size_t i = 0; i < rows; i += kRows) {
    FloatLanes sums[kRows][VECTORS];
    float* out = images + i * count;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = load_floats(out + r * count + v * kFloats);
    block_of_sums<VECTORS>(tile + i * row_step, row_step, element_step, length, vectors, count, sums);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v)
        *reinterpret_cast<FloatLanes*>(out + r * count + v * kFloats) = sums[r][v];
  }
}

// total[e] += weight · Σ_i δ_ie · images[i] for e < length.
template <int VECTORS>
void add_back(const float* tile, std::size_t row_step, std::size_t element_step, std::size_t rows, std::size_t length,
              const float* images, std::size_t count, double weight, double* total) {
  for (std::size_t e = 0; e < length; e += kRows) {
    FloatLanes sums[kRows][VECTORS] = {};
    block_of_sums<VECTORS>(tile + e * element_step, element_step, row_step, rows, images, count, sums);
    float found[kRows][VECTORS * kFloats];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) *reinterpret_cast<FloatLanes*>(found[r] + v * kFloats) = sums[r][v];
    const std::size_t valid = length - e < kRows ? length - e : kRows;
    for (std::size_t r = 0; r < valid; ++r) {
      double* out = total + (e + r) * count;
      for (int v = 0; v < VECTORS * kFloats; v += LANES)
        store(out + v, load(out + v) + weight * widen(*reinterpret_cast<const Floats*>(found[r] + v)));
    }
  }
}

// Elements of the short side at a time, whose vectors stay in the innermost cache.
constexpr std::size_t kElements = 128;

template <int VECTORS>
void multiply_panel(const float* tile, std::size_t row_step, std::size_t element_step, std::size_t rows,
                    std::size_t length, const float* vectors, std::size_t count, double weight, double* total,
                    float* images) {
  for (std::size_t e = 0; e < length; e += kElements)
    add_images<VECTORS>(tile + e * element_step, row_step, element_step, rows,
                        length - e < kElements ? length - e : kElements, vectors + e * count, count, images);
  add_back<VECTORS>(tile, row_step, element_step, rows, length, images, count, weight, total);
}

// Both products of a tile: δ_ie lies at tile[i · row_step + e · element_step], for i < rows and e < length; beyond, up
// to multiples of kRows, there are zeros. images holds zeros.
void multiply_tile(const float* tile, std::size_t row_step, std::size_t element_step, std::size_t rows,
                   std::size_t length, const float* vectors, std::size_t count, double weight, double* total,
                   float* images) {
  for (std::size_t v = 0; v < count;) {
    const std::size_t left = (count - v) / kFloats;
#define MERGEKERN_PANEL(VECTORS)                                                                              \
  {                                                                                                           \
    multiply_panel<VECTORS>(tile, row_step, element_step, rows, length, vectors + v, count, weight, total + v, \
                            images + v);                                                                      \
    v += VECTORS * kFloats;                                                                                   \
  }
    if (left >= kVectors) MERGEKERN_PANEL(kVectors)
#if LANES == 8
    else if (left == 3) MERGEKERN_PANEL(3)
    else if (left == 2) MERGEKERN_PANEL(2)
#endif
    else MERGEKERN_PANEL(1)
#undef MERGEKERN_PANEL
  }
}
