// Functions shared by all kernels. NVRTC compiles all files as one text, without any other header.
//
// Every matrix is float64 and belongs to a batch; one block of threads works on one item of the batch. Some kernels
// keep their matrix in shared memory if it fits, else in place in global memory. `in_shared` tells which.
#pragma once

extern __shared__ double shared_memory[];

constexpr int kWarp = 32;
// The most threads of a block, which limits the registers of a thread. on_cuda.py launches no more.
constexpr int kFewThreads = 128, kThreads = 256, kManyThreads = 512, kMostThreads = 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

// Returns the sum over each group of `lanes` consecutive lanes (a power of two), in every lane.
__device__ inline double lane_sum(double x, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Returns the sum over the block, in every thread. `partial` is workspace for kWarp values, used by nothing else.
__device__ inline double block_sum(double x, double* partial) {
  x = lane_sum(x);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0.0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += partial[warp];
  __syncthreads();
  return sum;
}

// Matrices are scaled to a norm of about 1. A vector whose squared norm is below this counts as zero: squares near the
// smallest float64 have lost precision, and reflectors computed from them are not orthogonal.
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
