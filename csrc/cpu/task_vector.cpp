#include "task_vector.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "instruction_set.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define KERNEL "task_vector_kernel.hpp"
#include "for_each_instruction_set.hpp"

namespace mergekern {
namespace {

struct Kernels {
  decltype(&generic::gram_sums) gram_sums;
  decltype(&generic::gram_unpack) gram_unpack;
  decltype(&generic::gram_segment) gram_segment;
  decltype(&generic::squared_distance_segment) squared_distance_segment;
  decltype(&generic::difference_rows) difference_rows;
};

#define MERGEKERN_KERNELS(set) \
  Kernels { set::gram_sums, set::gram_unpack, set::gram_segment, set::squared_distance_segment, set::difference_rows }

const Kernels& kernels() {
  static const Kernels chosen = MERGEKERN_CHOOSE(MERGEKERN_KERNELS);
  return chosen;
}

// Work is cut into segments of fixed length whose sums are added in order, so that the result
// does not depend on the number of threads.
constexpr std::size_t kSegment = 1 << 17;
// The rows of one chunk, float64, stay in a private cache of 1 MiB. Of many models they are shorter, so that those of
// two register blocks stay in the innermost cache.
std::size_t chunk_length(std::size_t rows) {
  const std::size_t most = (896 << 10) / (sizeof(double) * (rows + 1)) / 64 * 64;
  return std::clamp<std::size_t>(most, 64, rows <= 32 ? 512 : 256);
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
  // On a cache line: registers that straddle two are read at half the speed.
  scratch_size = (scratch_size + 7) / 8 * 8;
  std::unique_ptr<double[]> memory(new double[threads * scratch_size + 8]);
  double* scratch = memory.get() + (64 - reinterpret_cast<std::uintptr_t>(memory.get()) % 64) % 64 / 8;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread)
    for (std::ptrdiff_t s = thread; s < segments; s += threads)
      segment(s * kSegment, std::min(count, (s + 1) * kSegment), scratch + thread * scratch_size,
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

void gram(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, int threads, double* out) {
  const std::size_t n = tuned.size();
  if (base.data) check(base, count, "base");
  for (const TensorView& view : tuned) check(view, count, "tuned");
  const Kernels& run = kernels();
  const std::size_t length = chunk_length(n);
  const std::size_t size = run.gram_sums(n);
  auto partials = over_segments(count, threads, (n + 1) * generic::row_stride(length), size,
                                [&](std::size_t start, std::size_t stop, double* scratch, double* partial) {
                                  run.gram_segment(base, tuned.data(), n, start, stop, length, scratch, partial);
                                });
  std::vector<double> sums(size);
  add_in_order(partials.get(), count, size, sums.data());
  run.gram_unpack(sums.data(), n, out);
}

void squared_distances(const std::vector<TensorView>& tensors, const std::vector<std::pair<int, int>>& pairs,
                       std::size_t count, int threads, double* out) {
  for (const TensorView& view : tensors) check(view, count, "tensor");
  for (const auto& pair : pairs)
    for (int index : {pair.first, pair.second})
      if (index < 0 || index >= static_cast<int>(tensors.size())) throw std::invalid_argument("pair out of range");
  const Kernels& run = kernels();
  const std::size_t length = chunk_length(tensors.size());
  auto partials = over_segments(count, threads, tensors.size() * generic::row_stride(length), pairs.size(),
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
  double base_row[length];
  kernels().difference_rows(base, base_stride, tuned, tuned_stride, rows, columns, length, base_row, out);
}

}  // namespace mergekern
