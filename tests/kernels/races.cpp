// A program for ThreadSanitizer, which `make sanitize` builds and runs: all kernels from several callers at once, each
// with threads of its own, on shared inputs. Exits with 0 if nothing raced and every caller found the same bits; the
// sanitizer exits with 66.
//
// ThreadSanitizer knows nothing of the fork and the join of libgomp, which is not instrumented, and would report all
// that is handed over there. So this file takes the place of libgomp: GCC outlines `#pragma omp parallel for
// schedule(static)` into a function that it passes to GOMP_parallel, and here that function runs on std::threads, whose
// start and join are known. Nothing is suppressed.
//
// Shown: that the accesses of the kernels, as GCC outlines them, are ordered by that fork and join and by the locks of
// `static` alone, between the threads of a call and between calls, on the paths that run here.
// Not shown: anything about libgomp, the bindings and the interpreter, or two callers that are given one output.
// A pragma that needs more of libgomp does not link here, and wants its entry below.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "merge.hpp"
#include "task_vector.hpp"
#include "tridiagonal.hpp"

namespace {

thread_local int thread_number = 0, thread_count = 1;

}  // namespace

extern "C" int omp_get_thread_num() { return thread_number; }

extern "C" int omp_get_num_threads() { return thread_count; }

extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const auto member = [=](int number) {
    thread_number = number;
    thread_count = static_cast<int>(threads);
    body(data);
    thread_number = 0;
    thread_count = 1;
  };
  std::vector<std::thread> team;
  for (unsigned number = 1; number < threads; ++number) team.emplace_back(member, number);
  member(0);
  for (std::thread& thread : team) thread.join();
}

namespace {

using mergekern::DType;
using mergekern::TensorView;

constexpr int kCallers = 3;
constexpr std::size_t kModels = 7, kSize = 100, kVectors = 30;
// Four segments, the last of them short, so that three threads get more than one or a part of one.
constexpr std::size_t kCount = 3 * (1 << 17) + 4099;

// Small numbers of every dtype: the bytes 0x30 to 0x3f end in finite values of each.
std::vector<std::uint8_t> bytes_of(std::size_t seed) {
  std::vector<std::uint8_t> bytes(kCount * sizeof(double));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(0x30 + (i * 7 + seed) % 13);
  return bytes;
}

// What one caller computes.
struct Results {
  std::vector<double> gram, without_base, distances, difference, diagonal, off_diagonal, values, vectors, magnitudes;
  std::vector<std::vector<double>> merged;  // by consensus
  std::vector<long long> counts, tallies;

  Results()
      : gram(kModels * kModels),
        without_base(kModels * kModels),
        distances(3),
        difference(kCount),
        diagonal(kSize),
        off_diagonal(kSize - 1),
        values(kSize),
        vectors(kVectors * kSize, 1.0),
        merged(static_cast<std::size_t>(mergekern::kLastConsensus) + 1, std::vector<double>(kCount)),
        counts(1 << 16) {}

  bool operator==(const Results& other) const {
    return gram == other.gram && without_base == other.without_base && distances == other.distances &&
           difference == other.difference && diagonal == other.diagonal && off_diagonal == other.off_diagonal &&
           values == other.values && vectors == other.vectors && magnitudes == other.magnitudes &&
           merged == other.merged && counts == other.counts && tallies == other.tallies;
  }
};

void compute(const TensorView& base, const std::vector<TensorView>& tuned, int threads, Results& out) {
  mergekern::add_gram(base, tuned, kCount, 0, threads, out.gram.data());
  mergekern::add_gram({nullptr, DType::float64}, tuned, kCount, 0, threads, out.without_base.data());
  mergekern::add_squared_distances(tuned, {{0, 1}, {2, 5}, {6, 6}}, kCount, threads, out.distances.data());
  mergekern::difference(base, kCount, tuned[0], kCount, 1, kCount, out.difference.data());

  const std::vector<double> weights(kModels, 1.5), thresholds(kModels, 0.25);
  const std::vector<std::uint64_t> keys(kModels, 12345), dropped_below(kModels, std::uint64_t{1} << 51);
  mergekern::Rule rule{mergekern::Consensus::sum, weights.data(), weights.data(), 1.5 * kModels, 0.3,
                       thresholds.data(), nullptr, keys.data(), dropped_below.data(), 1.0, 0.4, 2, false};
  for (std::size_t consensus = 0; consensus < out.merged.size(); ++consensus) {
    rule.consensus = static_cast<mergekern::Consensus>(consensus);
    const TensorView merged{out.merged[consensus].data(), DType::float64};
    const mergekern::Tally tally = mergekern::combine(base, tuned, merged, kCount, 5, threads, rule);
    out.tallies.insert(out.tallies.end(), {tally.signs, tally.undecided, tally.non_finite});
  }
  mergekern::magnitude_counts(base, tuned[1], kCount, 0, 63, 47, 16, threads, out.counts.data());
  out.magnitudes = mergekern::magnitudes(base, tuned[1], kCount, 0, 63, threads);
  mergekern::Window window;
  const auto between = mergekern::magnitudes_between(base, tuned[1], kCount, 0.0, 1.0, threads, &window);
  out.magnitudes.insert(out.magnitudes.end(), between.begin(), between.end());
  out.magnitudes.push_back(static_cast<double>(window.above + window.at_low));

  const std::size_t stride = mergekern::padded_stride(kSize);
  std::vector<double> matrix(mergekern::padded_size(kSize) * stride);
  for (std::size_t i = 0; i < kSize; ++i)
    for (std::size_t j = i; j < kSize; ++j) matrix[i * stride + j] = static_cast<double>((i * 31 + j * 17) % 101);
  std::vector<double> reflectors(mergekern::reflector_count(kSize)), scratch(mergekern::scratch_count(kSize));
  mergekern::tridiagonalise(matrix.data(), kSize, reflectors.data(), scratch.data(), out.diagonal.data(),
                            out.off_diagonal.data());
  mergekern::back_transform(reflectors.data(), kSize, out.vectors.data(), kVectors, scratch.data());
  std::vector<long long> positions(kSize);
  for (std::size_t i = 0; i < kSize; ++i) positions[i] = static_cast<long long>(i);
  mergekern::tridiagonal_values(out.diagonal.data(), out.off_diagonal.data(), kSize, positions.data(), kSize,
                                out.values.data());
}

}  // namespace

// With the argument "planted" all callers write to one output, which ThreadSanitizer must report.
int main(int count, char** arguments) {
  const bool planted = count > 1 && !std::strcmp(arguments[1], "planted");
  constexpr DType dtypes[kModels] = {DType::float64,       DType::float32,     DType::float16, DType::bfloat16,
                                     DType::float8_e4m3fn, DType::float8_e5m2, DType::float32};
  std::vector<std::vector<std::uint8_t>> storage;
  for (std::size_t i = 0; i <= kModels; ++i) storage.push_back(bytes_of(i));
  const TensorView base{storage[kModels].data(), DType::bfloat16};
  std::vector<TensorView> tuned;
  for (std::size_t i = 0; i < kModels; ++i) tuned.push_back({storage[i].data(), dtypes[i]});

  // These are the first calls of the process, so the tables that are filled once are filled under competition.
  std::vector<Results> found(kCallers);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller)
    callers.emplace_back([&, caller] { compute(base, tuned, 2 + caller, found[planted ? 0 : caller]); });
  for (std::thread& caller : callers) caller.join();
  if (planted) return 0;

  Results alone;
  compute(base, tuned, 1, alone);
  for (const Results& results : found)
    if (!(results == alone)) return std::fputs("callers at once found other bits than one alone\n", stderr), 1;
  return 0;
}
