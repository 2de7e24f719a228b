// Raw-pointer kernels of task vectors. No include guard: task_vector.cpp includes this file once for
// each instruction set, inside a namespace, with LANES (float64 per register) and TILE (rows of the
// register block) set.

typedef double Lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(8)));

// One decoder for each storage type: its exact value as float64.
struct FromFloat64 {
  typedef double Stored;
  double operator()(double x) const { return x; }
};

struct FromFloat32 {
  typedef float Stored;
  double operator()(float x) const { return x; }
};

struct FromFloat16 {
  typedef std::uint16_t Stored;
  double operator()(std::uint16_t half) const {
    // The exponent is moved by a multiplication, which also normalises subnormal halves.
    const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits |= (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    bits |= static_cast<std::uint32_t>(half & 0x8000u) << 16;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

struct FromBFloat16 {
  typedef std::uint16_t Stored;
  double operator()(std::uint16_t brain) const {
    const std::uint32_t bits = static_cast<std::uint32_t>(brain) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

struct FromFloat8 {
  typedef std::uint8_t Stored;
  const float* table;
  double operator()(std::uint8_t x) const { return table[x]; }
};

template <typename Decoder>
void subtract_as(Decoder decoder, const void* data, std::size_t start, std::size_t count,
                 const double* __restrict minus, double* __restrict out) {
  const typename Decoder::Stored* __restrict source = static_cast<const typename Decoder::Stored*>(data) + start;
  for (std::size_t e = 0; e < count; ++e) out[e] = decoder(source[e]) - minus[e];
}

// out[e] = view[start + e] − minus[e], the view's values exact.
void subtract(const TensorView& view, std::size_t start, std::size_t count, const double* minus, double* out) {
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

inline double horizontal_sum(Lanes v) {
  double sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += v[lane];
  return sum;
}

// out[r][c] += <rows + r·stride, cols + c·stride> for a TILE×TILE block; length a multiple of LANES.
inline void tile_products(const double* rows, const double* cols, std::size_t stride, std::size_t length,
                          double* out, std::size_t out_stride) {
  // Unrolled by the compiler, so that every sum lives in a register.
  Lanes sum[TILE][TILE] = {};
  for (std::size_t e = 0; e < length; e += LANES) {
    Lanes row[TILE];
#pragma GCC unroll 8
    for (int r = 0; r < TILE; ++r) row[r] = *reinterpret_cast<const Lanes*>(rows + r * stride + e);
#pragma GCC unroll 8
    for (int c = 0; c < TILE; ++c) {
      const Lanes col = *reinterpret_cast<const Lanes*>(cols + c * stride + e);
#pragma GCC unroll 8
      for (int r = 0; r < TILE; ++r) sum[r][c] += row[r] * col;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < TILE; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < TILE; ++c) out[r * out_stride + c] += horizontal_sum(sum[r][c]);
}

// Rows of a chunk lie one cache line further apart than they are long: at a power of two they would
// all fall into one set of the cache.
inline std::size_t row_stride(std::size_t chunk_length) { return chunk_length + 8; }

// Adds the Gram matrix of elements [start, stop) to `out`, whose rows are `padded` long (n rounded
// up to a multiple of TILE). `chunk` holds padded + 2 rows.
void gram_segment(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t start, std::size_t stop,
                  std::size_t chunk_length, double* chunk, double* out) {
  const std::size_t n = tuned.size();
  const std::size_t padded = (n + TILE - 1) / TILE * TILE;
  const std::size_t stride = row_stride(chunk_length);
  double* base_row = chunk + padded * stride;
  double* zero_row = base_row + stride;
  std::memset(chunk + n * stride, 0, (padded + 2 - n) * stride * sizeof(double));
  for (std::size_t at = start; at < stop; at += chunk_length) {
    const std::size_t count = stop - at < chunk_length ? stop - at : chunk_length;
    const std::size_t length = (count + LANES - 1) / LANES * LANES;
    if (base.data) subtract(base, at, count, zero_row, base_row);
    for (std::size_t i = 0; i < n; ++i) {
      double* row = chunk + i * stride;
      subtract(tuned[i], at, count, base_row, row);
      for (std::size_t e = count; e < length; ++e) row[e] = 0.0;
    }
    for (std::size_t i = 0; i < padded; i += TILE)
      for (std::size_t j = i; j < padded; j += TILE)
        tile_products(chunk + i * stride, chunk + j * stride, stride, length, out + i * padded + j, padded);
  }
}

// Adds ‖a − b‖² of elements [start, stop) of each pair to out[pair]. `chunk` holds one row for each
// tensor and one more.
void squared_distance_segment(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                              std::size_t start, std::size_t stop, std::size_t chunk_length, double* chunk,
                              double* out) {
  const std::size_t stride = row_stride(chunk_length);
  double* zero_row = chunk + tensors.size() * stride;
  std::memset(zero_row, 0, stride * sizeof(double));
  for (std::size_t at = start; at < stop; at += chunk_length) {
    const std::size_t count = stop - at < chunk_length ? stop - at : chunk_length;
    const std::size_t length = (count + LANES - 1) / LANES * LANES;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      double* row = chunk + i * stride;
      subtract(tensors[i], at, count, zero_row, row);
      for (std::size_t e = count; e < length; ++e) row[e] = 0.0;
    }
    for (std::size_t p = 0; p < pairs.size(); ++p) {
      const double* a = chunk + pairs[p].first * stride;
      const double* b = chunk + pairs[p].second * stride;
      Lanes sum = {};
      for (std::size_t e = 0; e < length; e += LANES) {
        Lanes difference = *reinterpret_cast<const Lanes*>(a + e) - *reinterpret_cast<const Lanes*>(b + e);
        sum += difference * difference;
      }
      out[p] += horizontal_sum(sum);
    }
  }
}

// out = tuned − base of a rows × columns block, whose rows lie base_stride and tuned_stride elements
// apart. `chunk` holds two rows of chunk_length.
void difference_rows(const TensorView& base, std::size_t base_stride, const TensorView& tuned,
                     std::size_t tuned_stride, std::size_t rows, std::size_t columns, std::size_t chunk_length,
                     double* chunk, double* out) {
  double* base_row = chunk;
  double* zero_row = chunk + chunk_length;
  std::memset(zero_row, 0, chunk_length * sizeof(double));
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t at = 0; at < columns; at += chunk_length) {
      const std::size_t count = columns - at < chunk_length ? columns - at : chunk_length;
      subtract(base, r * base_stride + at, count, zero_row, base_row);
      subtract(tuned, r * tuned_stride + at, count, base_row, out + r * columns + at);
    }
}
