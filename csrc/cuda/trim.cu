// The k-th largest magnitudes of task vectors, by radix select. Each pass counts the values of one digit in shared
// memory.
#include "common.cuh"

// Bits of a digit. 8192 counts take 32 KiB, so that six blocks of 256 threads fit on a multiprocessor.
constexpr int kDigit = 13;
constexpr int kBins = 1 << kDigit;

// Converts a shorter float to float64, exactly. It works on the bits, since a compiler option decides whether the
// hardware's conversion keeps subnormal float32.
template <int exponent, int mantissa>
__device__ inline double widened(long long bits) {
  constexpr long long infinity = ((1LL << exponent) - 1) << mantissa;
  constexpr double scale = exponent == 5 ? 0x1p1008 : 0x1p896;  // 2^(difference of the exponent biases)
  const long long magnitude = bits & ((1LL << (exponent + mantissa)) - 1);
  const long long placed = magnitude << (52 - mantissa);
  const double value = magnitude < infinity ? __longlong_as_double(placed) * scale
                                            : __longlong_as_double(placed | 0x7ff0000000000000);
  return bits >> (exponent + mantissa) & 1 ? -value : value;
}

struct Float64 {
  using Stored = double;
  __device__ static double value(double x) { return x; }
};
struct Float32 {
  using Stored = unsigned;
  __device__ static double value(unsigned x) { return widened<8, 23>(x); }
};
struct Float16 {
  using Stored = unsigned short;
  __device__ static double value(unsigned short x) { return widened<5, 10>(x); }
};
struct BFloat16 {
  using Stored = unsigned short;
  __device__ static double value(unsigned short x) { return widened<8, 7>(x); }
};

// Counts the values |tuned − base| of this block that begin with `prefix`, by their next `width` bits from bit `shift`
// on. Several values are loaded without a branch before the first is counted: the compiler does not move loads across
// atomic additions or branches.
template <typename Storage>
__device__ void count(long long base_address, long long tuned_address, long long size, long long prefix,
                      long long shift, long long width, unsigned* bins) {
  constexpr int kLoads = 4;
  const auto* tuned = reinterpret_cast<const typename Storage::Stored*>(tuned_address);
  const auto* base = base_address ? reinterpret_cast<const typename Storage::Stored*>(base_address) : tuned;
  const long long mask = (1LL << width) - 1, step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; first < size;
       first += kLoads * step) {
    double from[kLoads], to[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const long long e = min(first + i * step, size - 1);
      from[i] = Storage::value(__ldg(base + e));
      to[i] = Storage::value(__ldg(tuned + e));
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const long long bits = __double_as_longlong(fabs(to[i] - (base_address ? from[i] : 0.0)));
      if (first + i * step < size && bits >> (shift + width) == prefix) atomicAdd(bins + (bits >> shift & mask), 1u);
    }
  }
}

// Adds the counts of one digit to counts (models, kBins). addresses (1 + models) holds the address of the base, or 0,
// and then those of the models; each has `size` elements. storage: 0 float64, 1 float32, 2 float16, 3 bfloat16
// (kernels/device_inputs.py). states (models, 2) holds the digits found so far. Grid (any, models). Shared memory:
// 4·kBins bytes.
extern "C" __global__ void __launch_bounds__(kThreads)
count_magnitudes(const long long* addresses, const long long* states, unsigned long long* counts, long long size,
                 long long shift, long long width, long long storage) {
  unsigned* bins = reinterpret_cast<unsigned*>(shared_memory);
  for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) bins[bin] = 0;
  __syncthreads();
  const long long base = addresses[0], tuned = addresses[1 + blockIdx.y], prefix = states[2 * blockIdx.y];
  if (storage == 0) count<Float64>(base, tuned, size, prefix, shift, width, bins);
  if (storage == 1) count<Float32>(base, tuned, size, prefix, shift, width, bins);
  if (storage == 2) count<Float16>(base, tuned, size, prefix, shift, width, bins);
  if (storage == 3) count<BFloat16>(base, tuned, size, prefix, shift, width, bins);
  __syncthreads();
  unsigned long long* ours = counts + static_cast<long long>(blockIdx.y) * kBins;
  for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x)
    if (bins[bin]) atomicAdd(ours + bin, static_cast<unsigned long long>(bins[bin]));
}

// Extends states (models, 2) by one digit of `width` bits. A state is (digits found so far, k among the values that
// begin with them). Reads counts (models, kBins) and sets them to zero. Grid (models, 1), kThreads threads. Each thread
// has a range of bins; the first thread has the bins of the largest values. Shared memory: 8·kThreads bytes.
extern "C" __global__ void __launch_bounds__(kThreads)
pick_digit(long long* states, unsigned long long* counts, long long width) {
  constexpr int run = kBins / kThreads;
  long long* sums = reinterpret_cast<long long*>(shared_memory);
  const int thread = threadIdx.x, top = kBins - 1 - thread * run;
  unsigned long long* ours = counts + static_cast<long long>(blockIdx.x) * kBins;
  long long* state = states + 2 * blockIdx.x;
  const long long prefix = state[0], k = state[1];
  long long sum = 0;
  for (int i = 0; i < run; ++i) sum += ours[top - i];
  sums[thread] = sum;
  __syncthreads();
  long long larger = 0;  // number of values in higher bins
  for (int other = 0; other < thread; ++other) larger += sums[other];
  const bool has_it = larger < k && k <= larger + sum;
  for (int i = 0; i < run; ++i) {
    const long long here = ours[top - i];
    ours[top - i] = 0;
    if (has_it && larger < k && k <= larger + here) {
      state[0] = prefix << width | (top - i);
      state[1] = k - larger;
    }
    larger += here;
  }
}
