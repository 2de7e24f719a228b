// Reduces a symmetric band matrix to tridiagonal form by bulge chasing (Schwarz, 1968, here with Householder
// reflectors), and transforms vectors back.
#include "common.cuh"

// Half bandwidth. Two blocks of the band have together one row for each lane of a warp.
constexpr int kBand = 16;
// Column c of the lower band, with the bulge below it, starts at c·kColumn; element (i, c) is at offset i − c. A column
// has one element more than the bulge needs, so that the lanes of a warp use different banks of shared memory.
constexpr int kColumn = 2 * kBand + 1;
// The most sweeps that a block runs at a time. It limits a thread to 85 registers.
constexpr int kMostSweeps = 24;

// Offset of the reflectors of a sweep, which have one element for each of the rows sweep + 1 … size − 1.
__device__ inline long long sweep_start(long long sweep, long long size) {
  return sweep * (size - 1) - sweep * (sweep - 1) / 2;
}

// Reduces matrices (batch, stride, stride): symmetric, with half bandwidth kBand, given in the upper triangle of the
// first `size` rows. Elements outside the band are not read. Writes diagonal and off_diagonal (batch, size), where
// off_diagonal[i] couples i with i + 1, and for undo_chase reflectors (batch, size·(size − 1)/2) and taus (batch, size,
// steps), steps = ⌈(size − 1)/kBand⌉. bands (batch, (size + kBand)·kColumn) is workspace for the band if not in_shared.
//
// Each warp runs one sweep at a time: it eliminates one column, then chases the bulge by kBand rows a step. The next
// sweep follows `stagger` steps behind. With a stagger of two the columns of both do not overlap. stagger·warps ≥
// steps.
extern "C" __global__ void __launch_bounds__(kMostSweeps * kWarp)
chase(const double* matrices, double* bands, double* diagonal, double* off_diagonal, double* reflectors, double* taus,
      long long stride, long long size, long long stagger, long long in_shared) {
  const long long thread = threadIdx.x, threads = blockDim.x, warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp, i = lane % kBand;
  const bool lower = lane < kBand;  // these lanes hold the diagonal block D, the others the block E below it
  const double* matrix = matrices + blockIdx.x * stride * stride;
  const long long elements = (size + kBand) * kColumn;
  double* band = in_shared ? shared_memory : bands + blockIdx.x * elements;
  const long long steps = (size - 1 + kBand - 1) / kBand;
  double* kept = reflectors + blockIdx.x * (size * (size - 1) / 2);
  double* scales = taus + blockIdx.x * size * steps;

  for (long long e = thread; e < elements; e += threads) {
    const long long c = e / kColumn, below = e % kColumn;
    band[e] = below <= kBand && c + below < size ? matrix[c * stride + c + below] : 0.0;
  }
  __syncthreads();

  const long long sweeps = size > 2 ? size - 2 : 0;
  const long long rounds = sweeps > 0 ? stagger * (sweeps - 1) + steps : 0;
  long long sweep = warp, row = 0;
  bool active = false;
  double v = 0.0, tau = 0.0;
  for (long long round = 0; round < rounds; ++round) {
    if (!active && sweep < sweeps && round == stagger * sweep) {
      active = true;
      row = sweep + 1;
      double* column = band + sweep * kColumn + 1;
      const double x = column[i];
      const double below = lane_sum(i == 0 ? 0.0 : x * x, kBand);
      const Reflection now = reflection(__shfl_sync(kAllLanes, x, 0), below);
      tau = now.tau;
      v = i == 0 ? 1.0 : x * now.scale;
      __syncwarp();
      if (lower) column[i] = i == 0 ? now.beta : 0.0;
    }
    if (active) {
      if (lower && row + i < size) kept[sweep_start(sweep, size) + row - sweep - 1 + i] = v;
      if (lane == 0) scales[sweep * steps + (row - sweep - 1) / kBand] = tau;
      // Row `lane` of [D; E], columns row … row + kBand − 1.
      double* block = band + row * kColumn;
      double product = 0.0;  // D·v in the lower lanes, E·v in the upper
      for (int c = 0; c < kBand; ++c) {
        const double element = lane >= c ? block[c * kColumn + lane - c] : block[lane * kColumn + c - lane];
        product += __shfl_sync(kAllLanes, v, c) * element;
      }
      const double y = tau * product;
      const double x = lower ? 0.0 : block[lane] - y;  // the first column of E·(I − tau·v·vᵀ)
      const double below = lane_sum(i == 0 ? 0.0 : x * x, kBand);
      const Reflection next = reflection(__shfl_sync(kAllLanes, x, kBand), __shfl_sync(kAllLanes, below, kBand));
      const double u = i == 0 ? 1.0 : x * next.scale;  // the next reflector, in the upper lanes
      // D −= v·wᵀ + w·vᵀ with w = tau·(D·v − tau/2·(vᵀ·D·v)·v), in the lower lanes.
      const double along = lane_sum(lower ? product * v : y * u, kBand);
      const double w = tau * (product - 0.5 * tau * along * v);
      // E −= y·vᵀ + u·zᵀ with z = tau'·(Eᵀ·u − (uᵀ·y)·v); each half of the warp sums over half of the rows.
      double sum = 0.0;
      for (int r = 0; r < kBand / 2; ++r) {
        const int source = lower ? r : r + kBand / 2;
        sum += __shfl_sync(kAllLanes, u, kBand + source) * block[i * kColumn + kBand + source - i];
      }
      sum += __shfl_xor_sync(kAllLanes, sum, kBand);
      const double z = next.tau * (sum - __shfl_sync(kAllLanes, along, kBand) * v);
      __syncwarp();
      const double first = lower ? v : u, second = lower ? w : y, factor = lower ? w : z;
      for (int c = 0; c < kBand; ++c) {
        const double with_first = __shfl_sync(kAllLanes, factor, (lane & kBand) + c);
        const double with_second = __shfl_sync(kAllLanes, v, c);
        if (lane >= c) block[c * kColumn + lane - c] -= first * with_first + second * with_second;
      }
      if (!lower) block[lane] = i == 0 ? next.beta : 0.0;
      v = __shfl_sync(kAllLanes, u, kBand + i);
      tau = next.tau;
      row += kBand;
      if (row >= size) {
        active = false;
        sweep += warps;
      }
    }
    __syncthreads();
  }
  for (long long c = thread; c < size; c += threads) {
    diagonal[blockIdx.x * size + c] = band[c * kColumn];
    off_diagonal[blockIdx.x * size + c] = c + 1 < size ? band[c * kColumn + 1] : 0.0;
  }
}

// Turns eigenvectors of the tridiagonal form into those of the band: vectors (batch, size, count), in place. The
// reflectors of one sweep act on disjoint rows; sweeps are undone one after the other. A block handles `tile` vectors;
// its number of threads is a multiple of tile; grid (batch, ⌈count/tile⌉). Shared memory, if in_shared:
// (size + size/kBand + 1)·tile.
extern "C" __global__ void __launch_bounds__(kThreads, 4)
undo_chase(const double* reflectors, const double* taus, double* vectors, long long size, long long count,
           long long tile, long long in_shared) {
  const long long vector = blockIdx.y * tile + threadIdx.x % tile;
  const long long slot = threadIdx.x / tile, slots = blockDim.x / tile;
  const long long steps = (size - 1 + kBand - 1) / kBand;
  const double* kept = reflectors + blockIdx.x * (size * (size - 1) / 2);
  const double* scales = taus + blockIdx.x * size * steps;
  double* item = vectors + blockIdx.x * size * count + vector;
  const bool present = vector < count;
  // In shared memory a gap after every kBand rows distributes the steps of a warp over the banks.
  double* x = in_shared ? shared_memory + threadIdx.x % tile : item;
  const long long step = in_shared ? tile : count;
  auto at = [&](long long row) -> double& { return x[(in_shared ? row + row / kBand : row) * step]; };
  if (in_shared && present)
    for (long long row = slot; row < size; row += slots) at(row) = item[row * count];
  __syncthreads();
  for (long long sweep = size - 3; sweep >= 0; --sweep) {
    if (present)
      for (long long s = slot; sweep + 1 + s * kBand < size; s += slots) {
        const long long row = sweep + 1 + s * kBand;
        const double* v = kept + sweep_start(sweep, size) + s * kBand;
        const int rows = size - row < kBand ? static_cast<int>(size - row) : kBand;
        double sum = 0.0;
        for (int r = 0; r < rows; ++r) sum += v[r] * at(row + r);
        sum *= scales[sweep * steps + s];
        for (int r = 0; r < rows; ++r) at(row + r) -= sum * v[r];
      }
    __syncthreads();
  }
  if (in_shared && present)
    for (long long row = slot; row < size; row += slots) item[row * count] = at(row);
}
