// Raw-pointer kernels of task vectors. Included once for each instruction set (for_each_instruction_set.hpp).

#include "decode.hpp"

// Rows of the register block, chosen to fill the register file: 5×5 sums and 6 operands use 31 of 32 registers, 3×3
// sums and 4 operands 13 of 16.
constexpr int kTile = LANES == 8 ? 5 : 3;

// Prefetches the bytes of the next chunk, one cache line at a time, while the kernel works on the current chunk.
class ReadAhead {
 public:
  ReadAhead(const TensorView* base, const TensorView* views, std::size_t n, std::size_t start, std::size_t stop)
      : base_(base), views_(views), n_(n), start_(start), stop_(start < stop ? stop : start) {
    next_view();
  }

  MERGEKERN_INLINE void line() {
    if (at_ >= end_) {
      if (view_ > n_) return;
      next_view();
    }
    __builtin_prefetch(at_, 0, 2);
    at_ += 64;
  }

 private:
  void next_view() {
    const TensorView& view = view_ < n_ ? views_[view_] : *base_;
    const std::size_t size = view.data ? item_size(view.dtype) : 0;
    at_ = static_cast<const char*>(view.data) + start_ * size;
    end_ = static_cast<const char*>(view.data) + stop_ * size;
    ++view_;
  }

  const TensorView *base_, *views_;
  std::size_t n_, start_, stop_, view_ = 0;
  const char *at_ = nullptr, *end_ = nullptr;
};

// a·b + c, with one rounding where the instruction set has a fused operation. It is explicit, since the compiler might
// fuse in one kernel and not in another, and both must give the same bits.
MERGEKERN_INLINE Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
#if LANES == 8
  return _mm512_fmadd_pd(a, b, c);
#elif LANES == 4
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// Number of float64 that the sums of one register block take in memory.
constexpr int kTileSums = (kTile * kTile + LANES - 1) / LANES * LANES;

// out[r·COLUMNS + c] += <rows + r·stride, columns + c·stride>, for the sums that the shape selects, all in registers.
// length is a multiple of LANES. Each sum depends on its two rows only, and not on their order.
template <int ROWS, int COLUMNS, Shape SHAPE>
void tile_products(const double* rows, const double* columns, std::size_t stride, std::size_t length, double* out,
                   ReadAhead& read_ahead) {
  ReadAhead ahead = read_ahead;  // a local copy stays in registers
  Lanes sum[kTileSums] = {};
  for (std::size_t e = 0; e < length; e += LANES) {
    ahead.line();
    Lanes row[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) row[r] = load(rows + r * stride + e);
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      const Lanes column = SHAPE == Shape::whole ? load(columns + c * stride + e) : row[c];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r)
        if (is_in(SHAPE, r, c)) sum[r * COLUMNS + c] = multiply_add(row[r], column, sum[r * COLUMNS + c]);
    }
  }
  read_ahead = ahead;
#pragma GCC unroll 32
  for (int i = 0; i < ROWS * COLUMNS; i += LANES)
    store(out + i, load(out + i) + sums_of_lanes(*reinterpret_cast<const Lanes(*)[LANES]>(sum + i)));
}

// tile_products for ROWS rows.
template <int ROWS>
void tile_of(const Tile& tile, const double* left, const double* right, std::size_t stride, std::size_t length,
             double* out, ReadAhead& ahead) {
  if (tile.shape == Shape::triangle)
    return tile_products<ROWS, ROWS, Shape::triangle>(left, right, stride, length, out, ahead);
  if (tile.shape == Shape::diagonal)
    return tile_products<ROWS, ROWS, Shape::diagonal>(left, right, stride, length, out, ahead);
  switch (tile.columns) {
    case 1: return tile_products<ROWS, 1, Shape::whole>(left, right, stride, length, out, ahead);
    case 2: return tile_products<ROWS, 2, Shape::whole>(left, right, stride, length, out, ahead);
#if LANES == 8
    case 3: return tile_products<ROWS, 3, Shape::whole>(left, right, stride, length, out, ahead);
    case 4: return tile_products<ROWS, 4, Shape::whole>(left, right, stride, length, out, ahead);
#endif
    default: return tile_products<ROWS, kTile, Shape::whole>(left, right, stride, length, out, ahead);
  }
}

// The stride of a chunk's rows is one cache line more than their length. With a power of two as stride, all rows would
// fall into one set of the cache.
inline std::size_t row_stride(std::size_t chunk_length) { return chunk_length + 8; }

// Adds the inner products of elements [start, stop) of n tensors to `sums`, kTileSums for each tile (see gram_add).
// `chunk` holds n + 1 rows.
void gram_segment(const TensorView& base, const TensorView* tuned, std::size_t n, const std::vector<Tile>& tiles,
                  std::size_t start, std::size_t stop, std::size_t chunk_length, bool absolute, double* chunk,
                  double* sums) {
  const std::size_t stride = row_stride(chunk_length);
  double* base_row = chunk + n * stride;
  for (std::size_t at = start; at < stop; at += chunk_length) {
    const std::size_t count = stop - at < chunk_length ? stop - at : chunk_length;
    const std::size_t length = (count + LANES - 1) / LANES * LANES;
    if (base.data) subtract(base, at, count, nullptr, base_row);
    for (std::size_t i = 0; i < n; ++i) {
      double* row = chunk + i * stride;
      subtract(tuned[i], at, count, base.data ? base_row : nullptr, row);
      for (std::size_t e = count; e < length; ++e) row[e] = 0.0;
      for (std::size_t e = 0; absolute && e < count; ++e) row[e] = row[e] < 0.0 ? -row[e] : row[e];
    }
    const std::size_t next = at + chunk_length, after = next + chunk_length < stop ? next + chunk_length : stop;
    ReadAhead ahead(&base, tuned, n, next, after);
    double* out = sums;
    for (const Tile& tile : tiles) {
      const double *left = chunk + tile.row * stride, *right = chunk + tile.column * stride;
      switch (tile.rows) {
        case 1: tile_of<1>(tile, left, right, stride, length, out, ahead); break;
        case 2: tile_of<2>(tile, left, right, stride, length, out, ahead); break;
#if LANES == 8
        case 3: tile_of<3>(tile, left, right, stride, length, out, ahead); break;
        case 4: tile_of<4>(tile, left, right, stride, length, out, ahead); break;
#endif
        default: tile_of<kTile>(tile, left, right, stride, length, out, ahead);
      }
      out += kTileSums;
    }
  }
}

// Adds the sums of gram_segment to the (n × n) matrix, on both sides of the diagonal.
void gram_add(const double* sums, const std::vector<Tile>& tiles, std::size_t n, double* matrix) {
  for (const Tile& tile : tiles) {
    for (std::size_t r = 0; r < tile.rows; ++r)
      for (std::size_t c = 0; c < tile.columns; ++c)
        if (is_in(tile.shape, r, c)) {
          const std::size_t i = tile.row + r, j = tile.column + c;
          matrix[j * n + i] = matrix[i * n + j] += sums[r * tile.columns + c];
        }
    sums += kTileSums;
  }
}

// Adds ‖a − b‖² over elements [start, stop) to out[pair], for each pair. `chunk` holds one row for each tensor.
void squared_distance_segment(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                              std::size_t start, std::size_t stop, std::size_t chunk_length, double* chunk,
                              double* out) {
  const std::size_t stride = row_stride(chunk_length);
  for (std::size_t at = start; at < stop; at += chunk_length) {
    const std::size_t count = stop - at < chunk_length ? stop - at : chunk_length;
    const std::size_t length = (count + LANES - 1) / LANES * LANES;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      double* row = chunk + i * stride;
      subtract(tensors[i], at, count, nullptr, row);
      for (std::size_t e = count; e < length; ++e) row[e] = 0.0;
    }
    for (std::size_t p = 0; p < pairs.size(); ++p) {
      const double* a = chunk + pairs[p].first * stride;
      const double* b = chunk + pairs[p].second * stride;
      Lanes sum = {};
      for (std::size_t e = 0; e < length; e += LANES) {
        const Lanes difference = load(a + e) - load(b + e);
        sum = multiply_add(difference, difference, sum);
      }
      out[p] += sum_of_lanes(sum);
    }
  }
}

// out = tuned − base for a rows × columns block. base_stride and tuned_stride are the strides of rows, in elements.
// `base_row` holds chunk_length elements.
void difference_rows(const TensorView& base, std::size_t base_stride, const TensorView& tuned,
                     std::size_t tuned_stride, std::size_t rows, std::size_t columns, std::size_t chunk_length,
                     double* base_row, double* out) {
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t at = 0; at < columns; at += chunk_length) {
      const std::size_t count = columns - at < chunk_length ? columns - at : chunk_length;
      subtract(base, r * base_stride + at, count, nullptr, base_row);
      subtract(tuned, r * tuned_stride + at, count, base_row, out + r * columns + at);
    }
}

// out = factor · (tuned − base) likewise, rounded to float32. `row` holds 2·chunk_length.
void scaled_difference_rows(const TensorView& base, std::size_t base_stride, const TensorView& tuned,
                            std::size_t tuned_stride, std::size_t rows, std::size_t columns,
                            std::size_t chunk_length, double factor, double* row, float* out) {
  double* delta = row + chunk_length;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t at = 0; at < columns; at += chunk_length) {
      const std::size_t count = columns - at < chunk_length ? columns - at : chunk_length;
      subtract(base, r * base_stride + at, count, nullptr, row);
      subtract(tuned, r * tuned_stride + at, count, row, delta);
      float* to = out + r * columns + at;
      for (std::size_t e = 0; e < count; ++e) to[e] = static_cast<float>(factor * delta[e]);
    }
}
