#include "merge.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "instruction_set.hpp"

#define KERNEL "merge_kernel.hpp"
#include "for_each_instruction_set.hpp"

namespace mergekern {
namespace {

struct Kernels {
  decltype(&generic::combine_segment) combine_segment;
  decltype(&generic::count_segment) count_segment;
  decltype(&generic::collect_segment) collect_segment;
  decltype(&generic::window_segment) window_segment;
  decltype(&generic::variance_segment) variance_segment;
  decltype(&generic::energy_segment) energy_segment;
  decltype(&generic::change_segment) change_segment;
};

#define MERGEKERN_KERNELS(set)                                                                                    \
  Kernels {                                                                                                       \
    set::combine_segment, set::count_segment, set::collect_segment, set::window_segment, set::variance_segment,   \
        set::energy_segment, set::change_segment                                                                  \
  }

const Kernels& kernels() {
  static const Kernels chosen = MERGEKERN_CHOOSE(MERGEKERN_KERNELS);
  return chosen;
}

constexpr std::size_t kSegment = 1 << 17;

void check(const TensorView& view, std::size_t count, const char* role) {
  item_size(view.dtype);
  if (!view.data && count) throw std::invalid_argument(std::string("null pointer for ") + role);
}

// Calls segment(thread, start, stop) for every segment. Thread t handles the segments t, t + threads, t + 2·threads, …
template <typename Segment>
void over_segments(std::size_t count, int threads, Segment segment) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread)
    for (std::size_t start = thread * kSegment; start < count; start += threads * kSegment)
      segment(thread, start, std::min(count, start + kSegment));
}

int threads_for(std::size_t count, int threads) {
  return std::max(1, std::min<int>(threads, static_cast<int>((count + kSegment - 1) / kSegment)));
}

constexpr std::size_t kMostLanes = 8;  // of all instruction sets

// Calls segment(thread, start, stop, rows, values) for every segment, which writes to `values` and returns how many it
// keeps. Returns all that are kept, in the order of the segments. `rows` holds two rows, and `values` holds `more`
// elements beyond those of a segment, which may be overwritten.
template <typename Segment>
std::vector<double> collected(std::size_t count, int threads, std::size_t more, Segment segment) {
  threads = threads_for(count, threads);
  const std::size_t size = 2 * generic::kRow + kSegment + more;
  std::unique_ptr<double[]> scratch(new double[threads * size]);
  std::vector<std::vector<double>> found((count + kSegment - 1) / kSegment);
  over_segments(count, threads, [&](int thread, std::size_t first, std::size_t last) {
    double *rows = scratch.get() + thread * size, *values = rows + 2 * generic::kRow;
    const std::size_t kept = segment(thread, first, last, rows, values);
    found[first / kSegment].assign(values, values + kept);
  });
  std::vector<double> all;
  for (const std::vector<double>& part : found) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace

Tally combine(const TensorView& base, const std::vector<TensorView>& tuned, const TensorView& out, std::size_t count,
              std::size_t start, int threads, const Rule& rule) {
  if (base.data) check(base, count, "base");
  check(out, count, "out");
  for (const TensorView& view : tuned) check(view, count, "tuned");
  const std::size_t n = tuned.size();
  if (out.dtype != DType::float32 && out.dtype != DType::float64)
    throw std::invalid_argument("the result is float32 or float64");
  if (static_cast<unsigned>(rule.consensus) > static_cast<unsigned>(kLastConsensus))
    throw std::invalid_argument("unknown consensus");
  threads = threads_for(count, threads);
  const std::size_t size = generic::combine_scratch(n);
  std::unique_ptr<double[]> scratch(new double[threads * size]);
  std::vector<Tally> tallies(threads);
  over_segments(count, threads, [&](int thread, std::size_t first, std::size_t last) {
    Tally tally;
    kernels().combine_segment(base, tuned.data(), n, out, first, last, start, rule, scratch.get() + thread * size,
                              &tally);
    tallies[thread].signs += tally.signs;
    tallies[thread].undecided += tally.undecided;
    tallies[thread].non_finite += tally.non_finite;
  });
  Tally sum;
  for (const Tally& tally : tallies) {
    sum.signs += tally.signs;
    sum.undecided += tally.undecided;
    sum.non_finite += tally.non_finite;
  }
  return sum;
}

void magnitude_counts(const TensorView& base, const TensorView& tuned, std::size_t count, std::uint64_t prefix,
                      int above, int shift, int width, int threads, long long* counts) {
  check(tuned, count, "tuned");
  threads = threads_for(count, threads);
  const std::size_t bins = std::size_t{1} << width;
  std::unique_ptr<double[]> scratch(new double[threads * 2 * generic::kRow]);
  std::vector<long long> others((threads - 1) * bins);
  over_segments(count, threads, [&](int thread, std::size_t first, std::size_t last) {
    kernels().count_segment(base, tuned, first, last, prefix, above, shift, width,
                            scratch.get() + thread * 2 * generic::kRow,
                            thread ? others.data() + (thread - 1) * bins : counts);
  });
  for (int thread = 1; thread < threads; ++thread)
    for (std::size_t bin = 0; bin < bins; ++bin) counts[bin] += others[(thread - 1) * bins + bin];
}

std::vector<double> magnitudes(const TensorView& base, const TensorView& tuned, std::size_t count,
                               std::uint64_t prefix, int above, int threads) {
  check(tuned, count, "tuned");
  // One element longer than a segment: each value is written first, and overwritten by the next if it is not kept.
  return collected(count, threads, 1, [&](int, std::size_t first, std::size_t last, double* rows, double* values) {
    return kernels().collect_segment(base, tuned, first, last, prefix, above, rows, values);
  });
}

std::vector<double> magnitudes_between(const TensorView& base, const TensorView& tuned, std::size_t count, double low,
                                       double high, int threads, Window* window) {
  check(tuned, count, "tuned");
  std::vector<Window> windows(threads_for(count, threads));
  std::vector<double> found = collected(
      count, threads, kMostLanes, [&](int thread, std::size_t first, std::size_t last, double* rows, double* values) {
        return kernels().window_segment(base, tuned, first, last, low, high, rows, values, &windows[thread]);
      });
  for (const Window& part : windows) {
    window->above += part.above;
    window->at_high += part.at_high;
    window->at_low += part.at_low;
  }
  return found;
}

void variances(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count, int threads,
               double* out) {
  for (const TensorView& view : tuned) check(view, count, "tuned");
  threads = threads_for(count, threads);
  const std::size_t size = (tuned.size() + 3) * generic::kRow;
  std::unique_ptr<double[]> scratch(new double[threads * size]);
  over_segments(count, threads, [&](int thread, std::size_t first, std::size_t last) {
    kernels().variance_segment(base, tuned.data(), tuned.size(), first, last, scratch.get() + thread * size, out);
  });
}

std::vector<double> energies(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count,
                             double least, int threads) {
  for (const TensorView& view : tuned) check(view, count, "tuned");
  threads = threads_for(count, threads);
  const std::size_t n = tuned.size(), size = (n + 4) * generic::kRow, segments = (count + kSegment - 1) / kSegment;
  std::unique_ptr<double[]> scratch(new double[threads * size]);
  std::vector<double> parts(segments * n), sums(n);
  over_segments(count, threads, [&](int thread, std::size_t first, std::size_t last) {
    kernels().energy_segment(base, tuned.data(), n, first, last, least, scratch.get() + thread * size,
                             parts.data() + first / kSegment * n);
  });
  for (std::size_t part = 0; part < parts.size(); ++part) sums[part % n] += parts[part];
  return sums;
}

std::vector<long long> changes(const TensorView& base, const std::vector<TensorView>& tuned, std::size_t count,
                               double epsilon, int threads) {
  for (const TensorView& view : tuned) check(view, count, "tuned");
  threads = threads_for(count, threads);
  const std::size_t n = tuned.size(), size = (n + 2) * generic::kRow;
  std::unique_ptr<double[]> scratch(new double[threads * size]);
  std::vector<long long> counts(threads * 2 * n), sums(2 * n);
  over_segments(count, threads, [&](int thread, std::size_t first, std::size_t last) {
    kernels().change_segment(base, tuned.data(), n, first, last, epsilon, scratch.get() + thread * size,
                             counts.data() + thread * 2 * n);
  });
  for (std::size_t part = 0; part < counts.size(); ++part) sums[part % (2 * n)] += counts[part];
  return sums;
}

}  // namespace mergekern
