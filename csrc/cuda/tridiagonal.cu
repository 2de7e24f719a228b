// Eigenvalues and eigenvectors of symmetric tridiagonal matrices, scaled to a norm of about 1.
#include "common.cuh"

// Returns the number of eigenvalues below `shift`. It equals the number of sign changes among the leading minors p_i =
// (d_i − shift)·p_{i−1} − e²_{i−1}·p_{i−2}. They are rescaled often enough to stay in range, which needs no division.
__device__ inline long long count_below(const double* diagonal, const double* squares, long long size, double shift) {
  double before = 0.0, now = 1.0;
  long long changes = 0;
  for (long long start = 0; start < size; start += 8) {
    const long long stop = start + 8 < size ? start + 8 : size;
    for (long long i = start; i < stop; ++i) {
      const double next = (diagonal[i] - shift) * now - squares[i] * before;
      changes += (next < 0.0) != (now < 0.0);
      before = now;
      now = next;
    }
    // 2^−exponent of the larger of the two.
    const long long a = __double_as_longlong(now) & 0x7ff0000000000000, b = __double_as_longlong(before) & 0x7ff0000000000000;
    const double scale = __longlong_as_double(0x7fe0000000000000 - (a > b ? a : b));
    now *= scale;
    before *= scale;
  }
  return changes;
}

// Writes the eigenvalues at `positions` (count; 0 is the smallest) to values (batch, count), to an ulp of the norm.
// diagonal and squares are (batch, size). squares[i] couples i − 1 with i; squares[0] is 0, all others are at least
// 1e-60. All eigenvalues lie between low and high (batch), which are at most 2 apart. Each thread bisects for one
// eigenvalue; grid (batch, blocks of count).
extern "C" __global__ void __launch_bounds__(kFewThreads)
tridiagonal_values(const double* diagonal, const double* squares, const double* low, const double* high,
                   const long long* positions, double* values, long long size, long long count) {
  const long long item = blockIdx.x, k = blockIdx.y * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (k >= count) return;
  double from = low[item], to = high[item];
  for (int step = 0; step < 54; ++step) {
    const double middle = 0.5 * (from + to);
    if (count_below(diagonal + item * size, squares + item * size, size, middle) > positions[k]) to = middle;
    else from = middle;
  }
  values[item * count + k] = 0.5 * (from + to);
}

// Writes the number of eigenvalues below `bounds` (batch) to counts (batch). Each thread handles one matrix.
extern "C" __global__ void __launch_bounds__(kFewThreads)
tridiagonal_counts(const double* diagonal, const double* squares, const double* bounds, long long* counts,
                   long long size, long long batch) {
  const long long item = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (item < batch) counts[item] = count_below(diagonal + item * size, squares + item * size, size, bounds[item]);
}

// Writes unit eigenvectors of `values` (batch, count) to vectors (batch, size, count), by inverse iteration. Each
// vector starts from random numbers of its own: the vectors of clustered eigenvalues are then independent, but not
// orthogonal. off_diagonal is (batch, size); element i couples i with i + 1. upper (batch, 3, size, count) is workspace
// for the rows of U in T − value = P·L·U. Each thread computes one vector; grid (batch, blocks of count).
extern "C" __global__ void __launch_bounds__(kFewThreads)
tridiagonal_vectors(const double* diagonal, const double* off_diagonal, const double* values, double* vectors,
                    double* upper, long long size, long long count) {
  const long long item = blockIdx.x, k = blockIdx.y * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (k >= count) return;
  const double *d = diagonal + item * size, *e = off_diagonal + item * size;
  const double value = values[item * count + k];
  double* x = vectors + item * size * count + k;
  double* u = upper + item * 3 * size * count + k;
  const long long plane = size * count;
  constexpr double kSmallestPivot = 1e-18;

  unsigned long long state = 0x9e3779b97f4a7c15ULL * (k + 1);
  for (long long i = 0; i < size; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    x[i * count] = static_cast<double>(static_cast<long long>(state) >> 11) * (1.0 / 4503599627370496.0);
  }
  for (int iteration = 0; iteration < 3; ++iteration) {
    // Partial pivoting. The first right-hand side is random, so that multiplying it by L⁻¹ would gain nothing.
    double pivot = d[0] - value, beside = size > 1 ? e[0] : 0.0, right = x[0];
    for (long long i = 0; i < size; ++i) {
      const double below = i + 1 < size ? e[i] : 0.0;
      const double next = i + 1 < size ? d[i + 1] - value : 0.0, after = i + 2 < size ? e[i + 1] : 0.0;
      const double other = i + 1 < size ? x[(i + 1) * count] : 0.0;
      const bool exchange = fabs(below) > fabs(pivot);
      if (!exchange && fabs(pivot) < kSmallestPivot) pivot = copysign(kSmallestPivot, pivot);
      u[i * count] = exchange ? below : pivot;
      u[plane + i * count] = exchange ? next : beside;
      u[2 * plane + i * count] = exchange ? after : 0.0;
      x[i * count] = iteration > 0 && exchange ? other : right;
      const double factor = exchange ? pivot / below : below / pivot;
      pivot = exchange ? beside - factor * next : next - factor * beside;
      const double kept = exchange ? right : other, gone = exchange ? other : right;
      right = iteration > 0 ? kept - factor * gone : other;
      beside = exchange ? -factor * after : after;
    }
    double first = 0.0, second = 0.0, squares = 0.0;  // x[i + 1], x[i + 2]
    for (long long i = size - 1; i >= 0; --i) {
      const double sum = x[i * count] - u[plane + i * count] * first - u[2 * plane + i * count] * second;
      second = first;
      first = sum / u[i * count];
      x[i * count] = first;
      squares += first * first;
    }
    const double scale = 1.0 / sqrt(squares);
    for (long long i = 0; i < size; ++i) x[i * count] *= scale;
  }
}
