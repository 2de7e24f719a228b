// The parts that all kernels share. NVRTC compiles them without any other header, all as one text.
//
// Every matrix is float64 and belongs to a batch: one block works on one item of it. A kernel that keeps its matrix in
// shared memory where that is large enough, and in place in global memory where not, learns it from `in_shared`.
#pragma once

extern __shared__ double shared_memory[];

constexpr int kWarp = 32;
// Threads of a block at most, which bounds the registers of a thread; on_cuda.py launches no more.
constexpr int kFewThreads = 128, kThreads = 256, kManyThreads = 512, kMostThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over groups of `lanes` consecutive lanes (a power of two), in every lane.
__device__ inline double lane_sum(double x, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// The sum over the block, in every thread; `partial` is room for kWarp values that nobody else uses.
__device__ inline double block_sum(double x, double* partial) {
  x = lane_sum(x);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0.0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += partial[warp];
  __syncthreads();
  return sum;
}

// The kernels get matrices that are scaled to a norm of about 1. A vector whose square is below this counts as zero:
// squares near the end of the range of float64 have lost their digits, and reflectors made of them are not orthogonal.
constexpr double kZeroSquare = 1e-200;

// The reflector I − tau·v·vᵀ, v = (1, scale·rest), that turns (pivot, rest) into (beta, 0); `below` is ‖rest‖².
struct Reflection {
  double tau, beta, scale;
};

__device__ inline Reflection reflection(double pivot, double below) {
  if (below < kZeroSquare) return {0.0, pivot, 0.0};
  const double beta = -copysign(sqrt(pivot * pivot + below), pivot);
  return {(beta - pivot) / beta, beta, 1.0 / (pivot - beta)};
}
