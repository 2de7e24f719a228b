#include "signs.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "instruction_set.hpp"
#include "task_vector.hpp"

namespace mergekern {
namespace {

// The bits of a coordinate: it differs from the base, it is below it, it stays after trimming.
enum Plane { kChanged, kNegative, kKept };
constexpr int kPlanes = 3;
// Words of a plane of one model, and the elements in them. The planes of 20 models take 60 KiB, which fit a private
// cache, and those of a pair the L1 cache.
constexpr std::size_t kWords = 128, kPacked = 64 * kWords;
static_assert(kSegment % kPacked == 0, "a segment is packed in whole parts");

}  // namespace
}  // namespace mergekern

#define KERNEL "signs_kernel.hpp"
#include "for_each_instruction_set.hpp"

namespace mergekern {
namespace {

struct Kernels {
  decltype(&generic::pack_signs) pack_signs;
  decltype(&generic::count_signs) count_signs;
};

#define MERGEKERN_KERNELS(set) \
  Kernels { set::pack_signs, set::count_signs }

const Kernels& kernels() {
  static const Kernels chosen = MERGEKERN_CHOOSE(MERGEKERN_KERNELS);
  return chosen;
}

void check(const TensorView& view, std::size_t count, const char* role) {
  item_size(view.dtype);
  if (!view.data && count) throw std::invalid_argument(std::string("null pointer for ") + role);
}

// Adds the counts of one packed part to those of a thread.
void count_pairs(const std::uint64_t* planes, std::size_t n, std::size_t split, long long* counts) {
  constexpr std::size_t size = kPlanes * kWords;
  for (std::size_t i = 0; i < n; ++i) {
    kernels().count_signs(planes + i * size, planes + i * size, counts + (i * n + i) * kSignCounts);
    if (split && i >= split) continue;
    for (std::size_t j = std::max(i + 1, split); j < n; ++j)
      kernels().count_signs(planes + i * size, planes + j * size, counts + (i * n + j) * kSignCounts);
  }
}

}  // namespace

void add_sign_counts(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, std::size_t split,
                     const double* thresholds, int threads, long long* counts, double* sums) {
  const std::size_t n = tuned.size();
  if (base.data) check(base, count, "base");
  for (const TensorView& view : tuned) check(view, count, "tuned");
  if (split > n) throw std::invalid_argument("a split is at most the number of tensors");
  const std::ptrdiff_t segments = static_cast<std::ptrdiff_t>((count + kSegment - 1) / kSegment);
  threads = std::max(1, std::min<int>(threads, static_cast<int>(segments)));
  std::vector<double> of_segments(segments * n, 0.0);
  std::vector<std::vector<long long>> found(threads, std::vector<long long>(kSignCounts * n * n, 0));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    std::vector<std::uint64_t> planes(n * kPlanes * kWords);
    std::vector<double> rows(2 * generic::kRow);
    for (std::ptrdiff_t s = thread; s < segments; s += threads)
      for (std::size_t at = s * kSegment; at < std::min(count, (s + 1) * kSegment); at += kPacked) {
        const std::size_t stop = std::min({count, (s + 1) * kSegment, at + kPacked});
        kernels().pack_signs(base, tuned.data(), n, at, stop, thresholds, planes.data(), of_segments.data() + s * n,
                             rows.data());
        count_pairs(planes.data(), n, split, found[thread].data());
      }
  }
  for (std::ptrdiff_t s = 0; s < segments; ++s)
    for (std::size_t i = 0; i < n; ++i) sums[i] += of_segments[s * n + i];
  for (const std::vector<long long>& part : found)
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = i; j < n; ++j)
        for (std::size_t kind = 0; kind < kSignCounts; ++kind) {
          long long& here = counts[(kind * n + i) * n + j];
          here += part[(i * n + j) * kSignCounts + kind];
          counts[(kind * n + j) * n + i] = here;
        }
}

}  // namespace mergekern
