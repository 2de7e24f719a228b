#include "task_vector.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

// One copy of the kernels for each instruction set; the processor chooses at run time. The tile
// fills the register file: 5×5 sums and 6 operands of 32, 3×3 and 4 of 16.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MERGEKERN_X86 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,f16c")
namespace mergekern {
namespace avx512 {
#define LANES 8
#define TILE 5
#include "task_vector_kernel.hpp"
#undef LANES
#undef TILE
}  // namespace avx512
}  // namespace mergekern
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace mergekern {
namespace avx2 {
#define LANES 4
#define TILE 3
#include "task_vector_kernel.hpp"
#undef LANES
#undef TILE
}  // namespace avx2
}  // namespace mergekern
#pragma GCC pop_options
#endif

namespace mergekern {
namespace generic {
#define LANES 2
#define TILE 3
#include "task_vector_kernel.hpp"
#undef LANES
#undef TILE
}  // namespace generic

namespace {

struct Kernels {
  const char* name;
  std::size_t tile;
  decltype(&generic::gram_segment) gram_segment;
  decltype(&generic::squared_distance_segment) squared_distance_segment;
  decltype(&generic::difference_rows) difference_rows;
};

const Kernels& kernels() {
  static const Kernels chosen = [] {
#ifdef MERGEKERN_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      return Kernels{"avx512", 5, avx512::gram_segment, avx512::squared_distance_segment, avx512::difference_rows};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return Kernels{"avx2", 3, avx2::gram_segment, avx2::squared_distance_segment, avx2::difference_rows};
#endif
    return Kernels{"generic", 3, generic::gram_segment, generic::squared_distance_segment, generic::difference_rows};
  }();
  return chosen;
}

// Work is cut into segments of fixed length whose sums are added in order, so that the result
// does not depend on the number of threads.
constexpr std::size_t kSegment = 1 << 17;
// The float64 rows of one chunk stay in a private cache of 1 MiB with room for the inputs.
constexpr std::size_t kChunkBytes = 512 << 10;

std::size_t chunk_length(std::size_t rows) {
  std::size_t length = kChunkBytes / (sizeof(double) * (rows + 1)) / 64 * 64;
  return std::clamp<std::size_t>(length, 64, 4096);
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

// Calls segment(index, start, stop, scratch, partial) for every segment, on `threads` threads, and
// returns the partial results, `partial_size` float64 for each segment, one after another.
template <typename Segment>
std::unique_ptr<double[]> over_segments(std::size_t count, int threads, std::size_t scratch_size,
                                        std::size_t partial_size, Segment segment) {
  const std::ptrdiff_t segments = static_cast<std::ptrdiff_t>((count + kSegment - 1) / kSegment);
  std::unique_ptr<double[]> partials(new double[segments * partial_size]());
  threads = std::max(1, std::min<int>(threads, static_cast<int>(segments)));
  std::unique_ptr<double[]> scratch(new double[threads * scratch_size]);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread)
    for (std::ptrdiff_t s = thread; s < segments; s += threads)
      segment(s * kSegment, std::min(count, (s + 1) * kSegment), scratch.get() + thread * scratch_size,
              partials.get() + s * partial_size);
  return partials;
}

void add_in_order(const double* partials, std::size_t count, std::size_t size, double* out) {
  std::fill(out, out + size, 0.0);
  for (std::size_t s = 0; s < (count + kSegment - 1) / kSegment; ++s)
    for (std::size_t e = 0; e < size; ++e) out[e] += partials[s * size + e];
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

std::string instruction_set() { return kernels().name; }

void gram(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, int threads, double* out) {
  const std::size_t n = tuned.size();
  if (base.data) check(base, count, "base");
  for (const TensorView& view : tuned) check(view, count, "tuned");
  const Kernels& run = kernels();
  const std::size_t padded = (n + run.tile - 1) / run.tile * run.tile;
  const std::size_t length = chunk_length(padded);
  const std::size_t size = padded * padded;
  auto partials = over_segments(count, threads, (padded + 2) * generic::row_stride(length), size,
                                [&](std::size_t start, std::size_t stop, double* scratch, double* partial) {
                                  run.gram_segment(base, tuned, start, stop, length, scratch, partial);
                                });
  std::vector<double> sum(size);
  add_in_order(partials.get(), count, size, sum.data());
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = i; j < n; ++j) out[i * n + j] = out[j * n + i] = sum[i * padded + j];
}

void squared_distances(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                       std::size_t count, int threads, double* out) {
  for (const TensorView& view : tensors) check(view, count, "tensor");
  for (const auto& pair : pairs)
    for (int index : {pair.first, pair.second})
      if (index < 0 || index >= static_cast<int>(tensors.size())) throw std::invalid_argument("pair out of range");
  const Kernels& run = kernels();
  const std::size_t length = chunk_length(tensors.size());
  auto partials = over_segments(count, threads, (tensors.size() + 1) * generic::row_stride(length), pairs.size(),
                                [&](std::size_t start, std::size_t stop, double* scratch, double* partial) {
                                  run.squared_distance_segment(tensors, pairs, start, stop, length, scratch, partial);
                                });
  add_in_order(partials.get(), count, pairs.size(), out);
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
  double chunk[2 * length];
  kernels().difference_rows(base, base_stride, tuned, tuned_stride, rows, columns, length, chunk, out);
}

}  // namespace mergekern
