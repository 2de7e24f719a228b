#include "task_vector.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "instruction_set.hpp"

namespace mergekern {
namespace {

// The inner products of a tile to compute: all, those with c ≥ r, or those with c = r.
enum class Shape { whole, triangle, diagonal };

constexpr bool is_in(Shape shape, std::size_t r, std::size_t c) {
  return shape == Shape::whole || (shape == Shape::triangle ? c >= r : c == r);
}

// A tile holds the inner products of `rows` tensors from `row` on with `columns` tensors from `column` on. Its sums fit
// in registers.
struct Tile {
  std::size_t row, rows, column, columns;
  Shape shape;
};

}  // namespace
}  // namespace mergekern

#define KERNEL "task_vector_kernel.hpp"
#include "for_each_instruction_set.hpp"

namespace mergekern {
namespace {

struct Kernels {
  int tile, tile_sums;
  decltype(&generic::gram_segment) gram_segment;
  decltype(&generic::gram_add) gram_add;
  decltype(&generic::squared_distance_segment) squared_distance_segment;
  decltype(&generic::difference_rows) difference_rows;
  decltype(&generic::scaled_difference_rows) scaled_difference_rows;
};

#define MERGEKERN_KERNELS(set) \
  Kernels {                                                                                              \
    set::kTile, set::kTileSums, set::gram_segment, set::gram_add, set::squared_distance_segment,          \
        set::difference_rows, set::scaled_difference_rows                                                 \
  }

const Kernels& kernels() {
  static const Kernels chosen = MERGEKERN_CHOOSE(MERGEKERN_KERNELS);
  return chosen;
}

// Number of elements of a chunk. Its rows of float64 fit a private cache, and those of two tiles fit the L1 cache. It
// does not depend on the number of tensors, since the bits of a result depend on the length of a chunk.
constexpr std::size_t kChunk = 256;
// Tiles on one side of a square of tiles. The rows of a square fit a private cache for any number of tensors.
constexpr std::size_t kTilesTogether = 16;
// Bytes of partial results of the segments that are processed at the same time.
constexpr std::size_t kPartials = 64 << 20;

// Returns the tiles that cover the pairs i ≤ j of n tensors, or, with split > 0, the pairs i < split ≤ j and i = j.
std::vector<Tile> tiles_of(std::size_t n, std::size_t split, std::size_t side) {
  std::vector<Tile> tiles;
  const std::size_t last_row = split ? split : n, together = kTilesTogether * side;
  for (std::size_t rows = 0; rows < last_row; rows += together)
    for (std::size_t columns = std::max(rows, split); columns < n; columns += together)
      for (std::size_t i = rows; i < std::min(rows + together, last_row); i += side)
        for (std::size_t j = std::max(i, columns); j < std::min(columns + together, n); j += side)
          tiles.push_back({i, std::min(side, last_row - i), j, std::min(side, n - j),
                           i == j ? Shape::triangle : Shape::whole});
  for (std::size_t i = 0; split && i < n; i += side)
    tiles.push_back({i, std::min(side, n - i), i, std::min(side, n - i), Shape::diagonal});
  return tiles;
}

double decode_float8(unsigned bits, int exponent_bits, int mantissa_bits, int bias, bool has_infinity) {
  const double sign = bits & 0x80 ? -1.0 : 1.0;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
  const bool top = exponent == (1 << exponent_bits) - 1;
  if (has_infinity && top) return mantissa ? std::nan("") : sign * HUGE_VAL;
  if (!has_infinity && (bits & 0x7f) == 0x7f) return std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

void check(const TensorView& view, std::size_t count, const char* role) {
  item_size(view.dtype);
  if (!view.data && count) throw std::invalid_argument(std::string("null pointer for ") + role);
}

// Calls segment(start, stop, scratch, partial) for every segment, on `threads` threads, and then add(partial) in order.
// Segments have a fixed length, so that the result does not depend on the number of threads.
template <typename Segment, typename Add>
void over_segments(std::size_t count, int threads, std::size_t scratch_size, std::size_t partial_size, Segment segment,
                   Add add) {
  const std::ptrdiff_t segments = static_cast<std::ptrdiff_t>((count + kSegment - 1) / kSegment);
  threads = std::max(1, std::min<int>(threads, static_cast<int>(segments)));
  const std::ptrdiff_t fitting = kPartials / (sizeof(double) * std::max<std::size_t>(partial_size, 1));
  const std::ptrdiff_t together = std::min(segments, std::max<std::ptrdiff_t>(1, fitting / threads) * threads);
  std::unique_ptr<double[]> partials(new double[together * partial_size]);
  // Aligned to a cache line: loads that cross two lines run at half the speed.
  scratch_size = (scratch_size + 7) / 8 * 8;
  std::unique_ptr<double[]> memory(new double[threads * scratch_size + 8]);
  double* scratch = memory.get() + (64 - reinterpret_cast<std::uintptr_t>(memory.get()) % 64) % 64 / 8;
  for (std::ptrdiff_t first = 0; first < segments; first += together) {
    const std::ptrdiff_t last = std::min(segments, first + together);
    std::fill(partials.get(), partials.get() + (last - first) * partial_size, 0.0);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int thread = 0; thread < threads; ++thread)
      for (std::ptrdiff_t s = first + thread; s < last; s += threads)
        segment(s * kSegment, std::min(count, (s + 1) * kSegment), scratch + thread * scratch_size,
                partials.get() + (s - first) * partial_size);
    for (std::ptrdiff_t s = first; s < last; ++s) add(partials.get() + (s - first) * partial_size);
  }
}

}  // namespace

Float8Tables::Float8Tables() {
  for (unsigned bits = 0; bits < 256; ++bits) {
    e4m3fn[bits] = static_cast<float>(decode_float8(bits, 4, 3, 7, false));
    e5m2[bits] = static_cast<float>(decode_float8(bits, 5, 2, 15, true));
  }
}

const Float8Tables& float8_tables() {
  static const Float8Tables tables;
  return tables;
}

void add_gram(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, std::size_t split,
              int threads, double* sums, bool absolute) {
  const std::size_t n = tuned.size();
  if (base.data) check(base, count, "base");
  for (const TensorView& view : tuned) check(view, count, "tuned");
  if (split > n) throw std::invalid_argument("a split is at most the number of tensors");
  const Kernels& run = kernels();
  const std::vector<Tile> tiles = tiles_of(n, split, run.tile);
  over_segments(
      count, threads, (n + 1) * generic::row_stride(kChunk), tiles.size() * run.tile_sums,
      [&](std::size_t start, std::size_t stop, double* scratch, double* partial) {
        run.gram_segment(base, tuned.data(), n, tiles, start, stop, kChunk, absolute, scratch, partial);
      },
      [&](const double* partial) { run.gram_add(partial, tiles, n, sums); });
}

void add_squared_distances(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                           std::size_t count, int threads, double* sums) {
  for (const TensorView& view : tensors) check(view, count, "tensor");
  for (const auto& pair : pairs)
    for (int index : {pair.first, pair.second})
      if (index < 0 || index >= static_cast<int>(tensors.size())) throw std::invalid_argument("pair out of range");
  const Kernels& run = kernels();
  over_segments(
      count, threads, tensors.size() * generic::row_stride(kChunk), pairs.size(),
      [&](std::size_t start, std::size_t stop, double* scratch, double* partial) {
        run.squared_distance_segment(tensors, pairs, start, stop, kChunk, scratch, partial);
      },
      [&](const double* partial) {
        for (std::size_t p = 0; p < pairs.size(); ++p) sums[p] += partial[p];
      });
}

void difference(const TensorView& base, std::size_t base_stride, const TensorView& tuned, std::size_t tuned_stride,
                std::size_t rows, std::size_t columns, double* out) {
  check(base, rows * columns, "base");
  check(tuned, rows * columns, "tuned");
  if (base_stride == columns && tuned_stride == columns) {
    columns *= rows;
    rows = 1;
  }
  constexpr std::size_t length = 1024;
  double base_row[length];
  kernels().difference_rows(base, base_stride, tuned, tuned_stride, rows, columns, length, base_row, out);
}

void scaled_difference(const TensorView& base, std::size_t base_stride, const TensorView& tuned,
                       std::size_t tuned_stride, std::size_t rows, std::size_t columns, double factor, float* out) {
  check(base, rows * columns, "base");
  check(tuned, rows * columns, "tuned");
  constexpr std::size_t length = 1024;
  double row[2 * length];
  kernels().scaled_difference_rows(base, base_stride, tuned, tuned_stride, rows, columns, length, factor, row, out);
}

}  // namespace mergekern
