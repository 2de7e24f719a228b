// Householder QR of tall matrices of any condition number, for the panels of the band reduction and bases of subspaces.
#include "common.cuh"

// Factors panel = (I − V·t·Vᵀ)·[r; 0]. panels (batch, columns, rows), each column contiguous, rows ≥ columns, is
// replaced by the reflectors V with their explicit ones and zeros. r and t (batch, columns, columns) are row-major
// upper triangles. Shared memory: columns + kWarp, and columns·rows if in_shared.
extern "C" __global__ void __launch_bounds__(kManyThreads)
factor_panels(double* panels, double* r, double* t, long long rows, long long columns, long long in_shared) {
  const long long thread = threadIdx.x, threads = blockDim.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  double* item = panels + blockIdx.x * rows * columns;
  double* triangle = r + blockIdx.x * columns * columns;
  double* factor = t + blockIdx.x * columns * columns;
  double* dots = shared_memory;
  double* partial = dots + columns;
  double* panel = item;
  if (in_shared) {
    panel = partial + kWarp;
    for (long long e = thread; e < rows * columns; e += threads) panel[e] = item[e];
  }
  for (long long e = thread; e < columns * columns; e += threads) factor[e] = 0.0;
  __syncthreads();

  for (long long p = 0; p < columns; ++p) {
    double* v = panel + p * rows;
    double squares = 0.0;
    for (long long i = p + 1 + thread; i < rows; i += threads) squares += v[i] * v[i];
    const double below = block_sum(squares, partial);
    const Reflection now = reflection(v[p], below);
    __syncthreads();
    for (long long i = p + 1 + thread; i < rows; i += threads) v[i] *= now.scale;
    if (thread == 0) {
      v[p] = 1.0;
      triangle[p * columns + p] = now.beta;
    }
    __syncthreads();
    // Reflect the columns to the right. The products with the columns to the left enter t.
    for (long long c = warp; c < columns; c += warps) {
      if (c == p) continue;
      double* other = panel + c * rows;
      double dot = 0.0;
      for (long long i = p + lane; i < rows; i += kWarp) dot += v[i] * other[i];
      dot = lane_sum(dot);
      if (c < p) {
        if (lane == 0) dots[c] = dot;
      } else {
        const double change = now.tau * dot;
        for (long long i = p + lane; i < rows; i += kWarp) other[i] -= change * v[i];
      }
    }
    __syncthreads();
    for (long long i = thread; i < p; i += threads) {
      double sum = 0.0;
      for (long long l = i; l < p; ++l) sum += factor[i * columns + l] * dots[l];
      factor[i * columns + p] = -now.tau * sum;
    }
    if (thread == 0) factor[p * columns + p] = now.tau;
  }
  __syncthreads();
  for (long long e = thread; e < columns * columns; e += threads) {
    const long long i = e / columns, c = e % columns;
    if (i < c) {
      triangle[e] = panel[c * rows + i];
      panel[c * rows + i] = 0.0;
    } else if (i > c) {
      triangle[e] = 0.0;
    }
  }
  if (!in_shared) return;
  __syncthreads();
  for (long long e = thread; e < rows * columns; e += threads) item[e] = panel[e];
}
