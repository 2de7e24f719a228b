// One-sided Jacobi: singular values and right singular vectors of small square matrices. If the columns are scaled,
// each value has a small relative error (Demmel and Veselić, 1992). An eigensolver of the Gram matrix would lose that.
#include "common.cuh"

// columns (batch, size, size), each column contiguous, holds A, and on return A·J with orthogonal columns in any order.
// rotations (batch, size, size) receives the columns of J. values (batch, size) receives the norms of the columns of
// A·J, or NaN if `most_sweeps` sweeps do not suffice. Each warp rotates a pair of columns. The pairs follow a
// round-robin tournament: each column is in one pair per round. Shared memory: kWarp, and 2·size² if in_shared.
extern "C" __global__ void __launch_bounds__(kMostThreads)
jacobi_svd(double* columns, double* rotations, double* values, long long size, long long most_sweeps,
           long long in_shared) {
  const long long thread = threadIdx.x, threads = blockDim.x, count = size * size;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  double* partial = shared_memory;
  double* a = columns + blockIdx.x * count;
  double* j = rotations + blockIdx.x * count;
  if (in_shared) {
    a = partial + kWarp;
    j = a + count;
    for (long long e = thread; e < count; e += threads) a[e] = columns[blockIdx.x * count + e];
  }
  for (long long e = thread; e < count; e += threads) j[e] = e / size == e % size ? 1.0 : 0.0;
  __syncthreads();

  const double orthogonal = 2.2e-16 * sqrt(static_cast<double>(size));
  const long long players = size + size % 2, rounds = players - 1;
  bool converged = false;
  for (long long sweep = 0; sweep < most_sweeps && !converged; ++sweep) {
    double rotated = 0.0;
    for (long long round = 0; round < rounds; ++round) {
      for (long long pair = warp; pair < players / 2; pair += warps) {
        const long long first = pair == 0 ? players - 1 : (round + pair) % rounds;
        const long long second = (round + rounds - pair) % rounds;
        if (first >= size || second >= size) continue;
        double *x = a + first * size, *y = a + second * size;
        double xx = 0.0, yy = 0.0, xy = 0.0;
        for (long long i = lane; i < size; i += kWarp) {
          xx += x[i] * x[i];
          yy += y[i] * y[i];
          xy += x[i] * y[i];
        }
        xx = lane_sum(xx);
        yy = lane_sum(yy);
        xy = lane_sum(xy);
        // Both conditions are written so that NaN counts as not orthogonal.
        if (xx < kZeroSquare || yy < kZeroSquare) continue;
        if (fabs(xy) <= orthogonal * sqrt(xx) * sqrt(yy)) continue;
        rotated = 1.0;
        const double zeta = (yy - xx) / (2.0 * xy);
        const double tangent = copysign(1.0 / (fabs(zeta) + sqrt(1.0 + zeta * zeta)), zeta);
        const double cosine = 1.0 / sqrt(1.0 + tangent * tangent), sine = cosine * tangent;
        double *p = j + first * size, *q = j + second * size;
        for (long long i = lane; i < size; i += kWarp) {
          const double xi = x[i], yi = y[i], pi = p[i], qi = q[i];
          x[i] = cosine * xi - sine * yi;
          y[i] = sine * xi + cosine * yi;
          p[i] = cosine * pi - sine * qi;
          q[i] = sine * pi + cosine * qi;
        }
      }
      __syncthreads();
    }
    converged = block_sum(rotated, partial) == 0.0;
  }

  for (long long c = warp; c < size; c += warps) {
    double squares = 0.0;
    for (long long i = lane; i < size; i += kWarp) squares += a[c * size + i] * a[c * size + i];
    squares = lane_sum(squares);
    if (lane == 0) values[blockIdx.x * size + c] = converged ? sqrt(squares) : nan("");
  }
  if (in_shared)
    for (long long e = thread; e < count; e += threads) {
      columns[blockIdx.x * count + e] = a[e];
      rotations[blockIdx.x * count + e] = j[e];
    }
}
