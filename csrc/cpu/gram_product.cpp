#include "gram_product.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "instruction_set.hpp"

#define KERNEL "gram_product_kernel.hpp"
#include "for_each_instruction_set.hpp"

namespace mergekern {
namespace {

struct Kernels {
  std::size_t rows, floats;
  decltype(&generic::narrow) narrow;
  decltype(&generic::narrow_by_float64) narrow_by_float64;
  decltype(&generic::largest_in_float32) largest_in_float32;
  decltype(&generic::multiply_tile) multiply_tile;
};

#define MERGEKERN_KERNELS(set)                                                                            \
  Kernels {                                                                                               \
    set::kRows, set::kFloats, set::narrow, set::narrow_by_float64, set::largest_in_float32, set::multiply_tile \
  }

const Kernels& kernels() {
  static const Kernels chosen = MERGEKERN_CHOOSE(MERGEKERN_KERNELS);
  return chosen;
}

// Vectors δ_i of a tile, a multiple of rows and of registers: their images stay in the innermost cache.
constexpr std::size_t kTile = 96;
// Tiles of a wide matrix that are read together: each of its rows lies on pages of its own.
constexpr std::size_t kTogether = 4;
constexpr std::size_t kAhead = 4;
// Elements that go through float64 at a time.
constexpr std::size_t kThrough = 1024;

std::size_t padded(std::size_t count, std::size_t multiple) { return (count + multiple - 1) / multiple * multiple; }

void check(const BlockViews& block) {
  for (const TensorView& view : {block.base, block.tuned}) {
    item_size(view.dtype);
    if (!view.data && block.rows && block.columns) throw std::invalid_argument("null pointer for a matrix");
  }
}

bool is_exact_in_float32(DType dtype) {
  return dtype == DType::float32 || dtype == DType::float16 || dtype == DType::bfloat16;
}

// Whether differences may be taken and scaled in float32: without overflow, and without underflow that matters.
bool is_in_float32(const BlockViews& block, double factor) {
  return is_exact_in_float32(block.base.dtype) && is_exact_in_float32(block.tuned.dtype) && factor > 0x1p-120 &&
         factor < 0x1p100;
}

// Writes factor · (tuned − base) of a row, from a column on, to out; as many as there are, in whole registers.
void narrow_row(const BlockViews& block, std::size_t row, std::size_t column, std::size_t count, double factor,
                float* out) {
  const std::size_t base_at = row * block.base_stride + column, tuned_at = row * block.tuned_stride + column;
  if (is_in_float32(block, factor))
    return kernels().narrow(block, base_at, tuned_at, count, static_cast<float>(factor), out);
  double delta[kThrough + 8];
  for (std::size_t e = 0; e < count; e += kThrough)
    kernels().narrow_by_float64(block, base_at + e, tuned_at + e, std::min(kThrough, count - e), factor, delta, out + e);
}

void prefetch_row(const BlockViews& block, std::size_t row, std::size_t from, std::size_t to) {
  const auto lines = [&](const TensorView& view, std::size_t stride) {
    const std::size_t size = item_size(view.dtype);
    const char* at = static_cast<const char*>(view.data) + (row * stride + from) * size;
    for (std::size_t byte = 0; byte < (to - from) * size; byte += 64) __builtin_prefetch(at + byte, 0, 2);
  };
  lines(block.base, block.base_stride);
  lines(block.tuned, block.tuned_stride);
}

// Numbers that begin on a cache line, zeros at first.
class Floats {
 public:
  explicit Floats(std::size_t count) : count_(count), held_(count + kLine) {
    const std::size_t beyond = reinterpret_cast<std::uintptr_t>(held_.data()) / sizeof(float) % kLine;
    first_ = held_.data() + (kLine - beyond) % kLine;
  }

  float* data() { return first_; }
  void clear() { std::fill(first_, first_ + count_, 0.0f); }

 private:
  static constexpr std::size_t kLine = 16;
  std::size_t count_;
  std::vector<float> held_;
  float* first_;
};

}  // namespace

double largest_difference(const BlockViews& block) {
  check(block);
  double largest = 0.0, delta[kThrough + 8];
  for (std::size_t r = 0; r < block.rows; ++r) {
    const std::size_t base_at = r * block.base_stride, tuned_at = r * block.tuned_stride;
    if (is_in_float32(block, 1.0)) {
      const double found = kernels().largest_in_float32(block, base_at, tuned_at, block.columns);
      if (std::isfinite(found)) {
        largest = std::max(largest, found);
        continue;
      }
    }
    for (std::size_t e = 0; e < block.columns; e += kThrough) {
      float unused[kThrough];
      const std::size_t count = std::min(kThrough, block.columns - e);
      kernels().narrow_by_float64(block, base_at + e, tuned_at + e, count, 0.0, delta, unused);
      for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(delta[i]));
    }
  }
  return largest;
}

void add_gram_product(const BlockViews& block, bool of_rows, double factor, double weight, const float* vectors,
                      std::size_t count, double* total, float* images) {
  check(block);
  if (count % kVectorGroup) throw std::invalid_argument("vectors come in groups of 16");
  const std::size_t length = of_rows ? block.rows : block.columns, number = of_rows ? block.columns : block.rows;
  const std::size_t rows = kernels().rows, floats = kernels().floats;
  // Rows lie a cache line further apart than they are long, or a power of two would put them all into one set of it.
  const std::size_t width = padded(padded(of_rows ? kTile : length, rows), floats) + floats;
  const std::size_t size = width * (of_rows ? padded(length, rows) : kTile), together = of_rows ? kTogether : 1;
  Floats tiles(size * together), local(kTile * count);
  const std::size_t row_step = of_rows ? 1 : width, element_step = of_rows ? width : 1;
  for (std::size_t from = 0; from < number; from += together * kTile) {
    const std::size_t to = std::min(from + together * kTile, number);
    if (to < from + together * kTile) tiles.clear();
    if (of_rows)
      for (std::size_t r = 0; r < length; ++r) {
        if (r + kAhead < length) prefetch_row(block, r + kAhead, from, to);
        for (std::size_t at = from; at < to; at += kTile)
          narrow_row(block, r, at, std::min(kTile, to - at), factor, tiles.data() + (at - from) / kTile * size + r * width);
      }
    else
      for (std::size_t r = from; r < to; ++r) narrow_row(block, r, 0, length, factor, tiles.data() + (r - from) * width);
    for (std::size_t at = from; at < to; at += kTile) {
      const std::size_t here = std::min(kTile, to - at);
      local.clear();
      kernels().multiply_tile(tiles.data() + (at - from) / kTile * size, row_step, element_step, padded(here, rows),
                              length, vectors, count, weight, total, local.data());
      if (images) std::memcpy(images + at * count, local.data(), here * count * sizeof(float));
    }
  }
}

}  // namespace mergekern
