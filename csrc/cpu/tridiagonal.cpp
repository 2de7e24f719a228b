#include "tridiagonal.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "instruction_set.hpp"

namespace mergekern {
namespace {

// Length of one column of the band: both triangles, and the bulge below.
constexpr int kBandStride = 3 * kBand + 8;

// The number of sweeps of `chase` that reach block s.
constexpr std::size_t chase_count(std::size_t size, std::size_t s) {
  const std::size_t used = 2 + (s > 0 ? s * kBand - 1 : 0);
  return size > used ? size - used : 0;
}

}  // namespace
}  // namespace mergekern

#define KERNEL "tridiagonal_kernel.hpp"
#include "for_each_instruction_set.hpp"

namespace mergekern {
namespace {

struct Kernels {
  int shifts;
  decltype(&generic::reduce_to_band) reduce_to_band;
  decltype(&generic::chase) chase;
  decltype(&generic::undo_chase) undo_chase;
  decltype(&generic::undo_band) undo_band;
  decltype(&generic::count_below) count_below;
};

#define MERGEKERN_KERNELS(set) \
  Kernels { set::kShifts, set::reduce_to_band, set::chase, set::undo_chase, set::undo_band, set::count_below }

const Kernels& kernels() {
  static const Kernels chosen = MERGEKERN_CHOOSE(MERGEKERN_KERNELS);
  return chosen;
}

std::size_t chase_total(std::size_t size) {
  std::size_t total = 0;
  for (std::size_t s = 0; chase_count(size, s) > 0; ++s) total += chase_count(size, s);
  return total;
}

std::size_t panel_total(std::size_t size) {
  std::size_t total = 0;
  for (std::size_t rows = padded_size(size); rows > kBand; rows -= kBand) total += rows * kBand;
  return total;
}

// A tridiagonal matrix, scaled to a norm of about 1; off-diagonal elements are stored squared.
struct Scaled {
  std::vector<double> diagonal, squares;
  int exponent = 0;
  double low = 0, high = 0;

  Scaled(const double* a, const double* b, std::size_t size) : diagonal(a, a + size), squares(size ? size - 1 : 0) {
    double norm = 0;
    auto radius = [&](std::size_t i) { return (i ? std::fabs(b[i - 1]) : 0) + (i + 1 < size ? std::fabs(b[i]) : 0); };
    for (std::size_t i = 0; i < size; ++i) norm = std::max(norm, std::fabs(a[i]) + radius(i));
    std::frexp(norm, &exponent);
    low = std::numeric_limits<double>::infinity();
    high = -low;
    for (std::size_t i = 0; i < size; ++i) {
      diagonal[i] = std::ldexp(a[i], -exponent);
      const double reach = std::ldexp(radius(i), -exponent);
      low = std::min(low, diagonal[i] - reach);
      high = std::max(high, diagonal[i] + reach);
    }
    // A zero would break the recurrence. Replacing it by 1e-30 of the norm changes no eigenvalue.
    for (std::size_t i = 0; i + 1 < size; ++i) squares[i] = std::max(std::pow(std::ldexp(b[i], -exponent), 2), 1e-60);
  }
};

}  // namespace

std::size_t padded_size(std::size_t size) { return (size + kBand - 1) / kBand * kBand; }

// An odd number of cache lines, so that the elements of a column are spread over all sets of the cache.
std::size_t padded_stride(std::size_t size) { return (padded_size(size) / 8 | 1) * 8; }

std::size_t reflector_count(std::size_t size) { return panel_total(size) + chase_total(size) * (kBand + 1); }

std::size_t scratch_count(std::size_t size) {
  return std::max(5 * kBand * padded_size(size), kBandStride * (padded_size(size) + 2 * kBand));
}

void tridiagonalise(double* matrix, std::size_t size, double* reflectors, double* scratch, double* diagonal,
                    double* off_diagonal) {
  const std::size_t padded = padded_size(size), stride = padded_stride(size);
  double largest = 0;
  for (std::size_t i = 0; i < size; ++i) largest = std::max(largest, std::fabs(matrix[i * stride + i]));
  int exponent = 0;
  std::frexp(largest, &exponent);
  // Computing reflectors squares the elements. Scaling is only needed if squares come near the limits of float64.
  if (std::abs(exponent) < 400) exponent = 0;
  for (std::size_t i = 0; i < padded; ++i) {
    double* row = matrix + i * stride;
    if (i >= size) std::fill(row + i, row + padded, 0.0);
    else std::fill(row + size, row + padded, 0.0);
    if (exponent)
      for (std::size_t j = i; j < size; ++j) row[j] = std::ldexp(row[j], -exponent);
    for (std::size_t j = i / kBand * kBand; j < i; ++j) row[j] = matrix[j * stride + i];
  }
  const Kernels& run = kernels();
  run.reduce_to_band(matrix, stride, padded, reflectors, scratch);

  double* band = scratch;
  std::fill(band, band + kBandStride * (padded + 2 * kBand), 0.0);
  for (std::size_t c = 0; c < size; ++c)
    for (std::size_t i = c; i <= std::min(c + kBand, size - 1); ++i)
      band[c * kBandStride + kBand + i - c] = band[i * kBandStride + kBand + c - i] = matrix[c * stride + i];
  double* chased = reflectors + panel_total(size);
  run.chase(band, size, chased, chased + chase_total(size) * kBand);
  for (std::size_t c = 0; c < size; ++c) {
    diagonal[c] = std::ldexp(band[c * kBandStride + kBand], exponent);
    if (c + 1 < size) off_diagonal[c] = std::ldexp(band[c * kBandStride + kBand + 1], exponent);
  }
}

void back_transform(const double* reflectors, std::size_t size, double* vectors, std::size_t count, double* scratch) {
  const std::size_t padded = padded_size(size);
  const double* chased = reflectors + panel_total(size);
  const Kernels& run = kernels();
  for (std::size_t first = 0; first < count; first += kBand) {
    const std::size_t some = std::min<std::size_t>(kBand, count - first);
    std::fill(scratch, scratch + (padded + 2 * kBand) * kBand, 0.0);
    for (std::size_t k = 0; k < some; ++k)
      for (std::size_t i = 0; i < size; ++i) scratch[i * kBand + k] = vectors[(first + k) * size + i];
    run.undo_chase(chased, chased + chase_total(size) * kBand, size, scratch);
    run.undo_band(reflectors, padded, scratch);
    for (std::size_t k = 0; k < some; ++k)
      for (std::size_t i = 0; i < size; ++i) vectors[(first + k) * size + i] = scratch[i * kBand + k];
  }
}

void tridiagonal_values(const double* diagonal, const double* off_diagonal, std::size_t size, const long long* positions,
                        std::size_t count, double* values) {
  const Scaled scaled(diagonal, off_diagonal, size);
  const Kernels& run = kernels();
  std::vector<double> low(run.shifts), high(run.shifts), shifts(run.shifts);
  std::vector<long long> below(run.shifts);
  for (std::size_t first = 0; first < count; first += run.shifts) {
    const int some = static_cast<int>(std::min<std::size_t>(run.shifts, count - first));
    std::fill(low.begin(), low.end(), scaled.low);
    std::fill(high.begin(), high.end(), scaled.high);
    // The interval is at most 2 wide, so that after 54 halvings it is an ulp of the norm.
    for (int step = 0; step < 54; ++step) {
      for (int k = 0; k < run.shifts; ++k) shifts[k] = 0.5 * (low[k] + high[k]);
      run.count_below(scaled.diagonal.data(), scaled.squares.data(), size, shifts.data(), below.data());
      for (int k = 0; k < some; ++k) (below[k] > positions[first + k] ? high : low)[k] = shifts[k];
    }
    for (int k = 0; k < some; ++k) values[first + k] = std::ldexp(0.5 * (low[k] + high[k]), scaled.exponent);
  }
}

std::size_t values_below(const double* diagonal, const double* off_diagonal, std::size_t size, double bound) {
  const Scaled scaled(diagonal, off_diagonal, size);
  const Kernels& run = kernels();
  std::vector<double> shifts(run.shifts, std::ldexp(bound, -scaled.exponent));
  std::vector<long long> below(run.shifts);
  run.count_below(scaled.diagonal.data(), scaled.squares.data(), size, shifts.data(), below.data());
  return below[0];
}

}  // namespace mergekern
