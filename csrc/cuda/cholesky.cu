// Cholesky QR: vectors·R⁻¹ is orthonormal, where R is the Cholesky factor of the vectors' Gram matrix.
#include "common.cuh"

// Writes R⁻¹ (upper triangle, gram = Rᵀ·R) to inverses (batch, size, size). grams (batch, size, size), symmetric, is
// overwritten. A Gram matrix that is not positive definite in float64 gives NaN. Shared memory: 2·size² if in_shared.
extern "C" __global__ void __launch_bounds__(kThreads)
cholesky_inverses(double* grams, double* inverses, long long size, long long in_shared) {
  const long long thread = threadIdx.x, threads = blockDim.x, count = size * size;
  double* item = inverses + blockIdx.x * count;
  double* factor = grams + blockIdx.x * count;  // becomes L = Rᵀ
  double* inverse = item;                       // column c of L⁻¹ is row c here
  if (in_shared) {
    factor = shared_memory;
    inverse = factor + count;
    for (long long e = thread; e < count; e += threads) factor[e] = grams[blockIdx.x * count + e];
  }
  __syncthreads();

  for (long long p = 0; p < size; ++p) {
    const double pivot = factor[p * size + p];
    // What remains of a dependent column is rounding error, which must not be taken for a direction.
    const double root = pivot > 0.0 ? sqrt(pivot) : nan("");
    __syncthreads();
    for (long long i = p + thread; i < size; i += threads) factor[i * size + p] = i == p ? root : factor[i * size + p] / root;
    __syncthreads();
    const long long rest = size - p - 1;
    for (long long e = thread; e < rest * rest; e += threads) {
      const long long i = p + 1 + e / rest, j = p + 1 + e % rest;
      if (j <= i) factor[i * size + j] -= factor[i * size + p] * factor[j * size + p];
    }
    __syncthreads();
  }
  for (long long c = thread; c < size; c += threads) {
    double* x = inverse + c * size;  // L·x = the unit vector c
    for (long long i = 0; i < size; ++i) {
      double sum = i == c ? 1.0 : 0.0;
      for (long long j = c; j < i; ++j) sum -= factor[i * size + j] * x[j];
      x[i] = i < c ? 0.0 : sum / factor[i * size + i];
    }
  }
  __syncthreads();
  // Row c of `inverse` is column c of L⁻¹, which is row c of R⁻¹ = L⁻ᵀ.
  if (in_shared)
    for (long long e = thread; e < count; e += threads) item[e] = inverse[e];
}
