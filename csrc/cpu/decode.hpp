// Conversion of all storage types to float64, and differences. It has no include guard, since
// for_each_instruction_set.hpp includes it once for each instruction set.
#include "lanes.hpp"

// A decoder for each storage type converts LANES values to float64, exactly.
template <typename Element>
struct Vector {
  // Tensors of users may be unaligned.
  typedef Element Type __attribute__((vector_size(LANES * sizeof(Element)), aligned(1)));
};
typedef Vector<float>::Type Floats;
typedef Vector<std::uint32_t>::Type Words;

template <typename To, typename From>
MERGEKERN_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// For eight values GCC's generic conversion takes twice as many instructions as the intrinsic.
MERGEKERN_INLINE Lanes widen(Floats x) {
#if LANES == 8
  return _mm512_cvtps_pd(x);
#else
  return __builtin_convertvector(x, Lanes);
#endif
}

struct FromFloat64 {
  typedef double Stored;
  Lanes operator()(const double* at) const { return *reinterpret_cast<const Vector<double>::Type*>(at); }
};

struct FromFloat32 {
  typedef float Stored;
  Lanes operator()(const float* at) const { return widen(*reinterpret_cast<const Floats*>(at)); }
};

struct FromFloat16 {
  typedef std::uint16_t Stored;
  Lanes operator()(const std::uint16_t* at) const {
    const Words half = __builtin_convertvector(*reinterpret_cast<const Vector<std::uint16_t>::Type*>(at), Words);
    // A multiplication adjusts the exponent, and also normalises subnormal halves.
    const Words bits = bits_as<Words>(bits_as<Floats>((half & 0x7fffu) << 13) * 0x1p112f);
    const Words infinite = (half & 0x7c00u) == 0x7c00u ? Words{} + 0x7f800000u : Words{};
    return widen(bits_as<Floats>(bits | infinite | ((half & 0x8000u) << 16)));
  }
};

struct FromBFloat16 {
  typedef std::uint16_t Stored;
  Lanes operator()(const std::uint16_t* at) const {
    const Words brain = __builtin_convertvector(*reinterpret_cast<const Vector<std::uint16_t>::Type*>(at), Words);
    return widen(bits_as<Floats>(brain << 16));
  }
};

struct FromFloat8 {
  typedef std::uint8_t Stored;
  const float* table;
  Lanes operator()(const std::uint8_t* at) const {
    Lanes out;
    for (int lane = 0; lane < LANES; ++lane) out[lane] = table[at[lane]];
    return out;
  }
};

template <typename Decoder>
void subtract_as(Decoder decoder, const void* data, std::size_t start, std::size_t count, const double* minus,
                 double* out) {
  const typename Decoder::Stored* source = static_cast<const typename Decoder::Stored*>(data) + start;
  const std::size_t whole = count / LANES * LANES;
  for (std::size_t e = 0; e < whole; e += LANES)
    store(out + e, minus ? decoder(source + e) - load(minus + e) : decoder(source + e));
  if (whole == count) return;
  typename Decoder::Stored rest[LANES] = {};
  std::memcpy(rest, source + whole, (count - whole) * sizeof rest[0]);
  const Lanes last = decoder(rest);
  for (std::size_t e = whole; e < count; ++e) out[e] = last[e - whole] - (minus ? minus[e] : 0.0);
}

// out[e] = view[start + e] − minus[e], with exact values of the view. A minus of nullptr stands for zero.
inline void subtract(const TensorView& view, std::size_t start, std::size_t count, const double* minus, double* out) {
  switch (view.dtype) {
    case DType::float64: return subtract_as(FromFloat64(), view.data, start, count, minus, out);
    case DType::float32: return subtract_as(FromFloat32(), view.data, start, count, minus, out);
    case DType::float16: return subtract_as(FromFloat16(), view.data, start, count, minus, out);
    case DType::bfloat16: return subtract_as(FromBFloat16(), view.data, start, count, minus, out);
    case DType::float8_e4m3fn:
      return subtract_as(FromFloat8{float8_tables().e4m3fn}, view.data, start, count, minus, out);
    case DType::float8_e5m2:
      return subtract_as(FromFloat8{float8_tables().e5m2}, view.data, start, count, minus, out);
  }
}
