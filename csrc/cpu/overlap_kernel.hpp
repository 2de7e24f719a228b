// Inner products of the vectors of two tiles of models. Included once for each instruction set
// (for_each_instruction_set.hpp).

#include "lanes.hpp"

// The register block. With registers of 8 float64, 6 × 32 sums, 4 operands and a factor use 29 of 32 registers; with
// registers of 4, 6 × 8 sums, 2 operands and a factor use 15 of 16.
constexpr int kRows = 6;
constexpr int kVectors = LANES == 8 ? 4 : 2;
constexpr int kColumns = kVectors * LANES;

// Copies vectors into panels of WIDTH vectors, in which element [d][v] is element d of vector v. Each model has k
// vectors, whose elements have a stride of k. Vectors beyond the last are zeros.
template <int WIDTH>
void pack(const float* bases, std::size_t models, std::size_t length, std::size_t k, std::size_t start,
          std::size_t count, double* out) {
  const float nothing = 0.0f;
  std::size_t model = 0, vector = 0;
  while (model < models) {
    const float* at[WIDTH];
    std::size_t step[WIDTH];
    for (int v = 0; v < WIDTH; ++v) {
      at[v] = model < models ? bases + (model * length + start) * k + vector : &nothing;
      step[v] = model < models ? k : 0;
      if (++vector == k) {
        vector = 0;
        ++model;
      }
    }
    for (std::size_t d = 0; d < count; ++d)
      for (int v = 0; v < WIDTH; ++v) *out++ = at[v][d * step[v]];
  }
}

void pack_rows(const float* bases, std::size_t models, std::size_t length, std::size_t k, std::size_t start,
               std::size_t count, double* out) {
  pack<kRows>(bases, models, length, k, start, count, out);
}

void pack_columns(const float* bases, std::size_t models, std::size_t length, std::size_t k, std::size_t start,
                  std::size_t count, double* out) {
  pack<kColumns>(bases, models, length, k, start, count, out);
}

// sums (kRows × kColumns) += Σ_d rows[d][r]·columns[d][c], added in the order of d.
void add_products(const double* rows, const double* columns, std::size_t count, double* sums) {
  Lanes sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load(sums + r * kColumns + v * LANES);
  for (std::size_t d = 0; d < count; ++d, rows += kRows, columns += kColumns) {
    Lanes column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = load(columns + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += rows[r] * column[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + r * kColumns + v * LANES, sum[r][v]);
}

// Writes the squares of a register block to a matrix with a row stride of `stride`.
void squares(const double* sums, std::size_t stride, double* out) {
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const Lanes value = load(sums + r * kColumns + v * LANES);
      store(out + r * stride + v * LANES, value * value);
    }
}
