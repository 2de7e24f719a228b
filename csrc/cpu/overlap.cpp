#include "overlap.hpp"

#include <algorithm>
#include <vector>

#include "instruction_set.hpp"

#define KERNEL "overlap_kernel.hpp"
#include "for_each_instruction_set.hpp"

namespace mergekern {
namespace {

struct Kernels {
  std::size_t rows, columns;
  decltype(&generic::pack_rows) pack_rows;
  decltype(&generic::pack_columns) pack_columns;
  decltype(&generic::add_products) add_products;
  decltype(&generic::squares) squares;
};

#define MERGEKERN_KERNELS(set) \
  Kernels { set::kRows, set::kColumns, set::pack_rows, set::pack_columns, set::add_products, set::squares }

const Kernels& kernels() {
  static const Kernels chosen = MERGEKERN_CHOOSE(MERGEKERN_KERNELS);
  return chosen;
}

// kSide is the number of vectors on one side of a tile, kChunk the number of their elements processed at a time. Two
// panels and the sums take 700 KiB, which fit a private cache.
constexpr std::size_t kSide = 128, kChunk = 256;

std::size_t padded(std::size_t count, std::size_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// The models of one tile.
struct Side {
  const float* bases;
  std::size_t models;
};

// Workspace for tiles of at most `most` models with k vectors each.
class Tile {
 public:
  Tile(std::size_t most, std::size_t length, std::size_t k)
      : length_(length), k_(k), height_(padded(most * k, kernels().rows)), width_(padded(most * k, kernels().columns)),
        rows_(height_ * kChunk), columns_(width_ * kChunk), sums_(height_ * width_), squares_(height_ * width_) {}

  // Writes the overlaps of all pairs to out, whose row stride is `stride`. With `among`, rows and columns are the same
  // models, and only the diagonal and the elements above it are written.
  void overlap(Side rows, Side columns, bool among, double* out, std::size_t stride) {
    const Kernels& run = kernels();
    multiply(rows, columns, among);
    each_block(rows, columns, among, [&](std::size_t r, std::size_t c, const double* sums) {
      run.squares(sums, width_, squares_.data() + r * width_ + c);
    });
    for (std::size_t i = 0; i < rows.models; ++i)
      for (std::size_t j = among ? i : 0; j < columns.models; ++j)
        out[i * stride + j] = block_sum(squares_.data() + i * k_ * width_ + j * k_);
  }

  // Writes the products themselves, k × k for each pair, to out, whose rows of pairs have a stride of `stride`.
  void products(Side rows, Side columns, double* out, std::size_t stride) {
    const std::size_t height = kernels().rows, width = kernels().columns;
    multiply(rows, columns, false);
    each_block(rows, columns, false, [&](std::size_t r, std::size_t c, const double* sums) {
      for (std::size_t i = r; i < std::min(r + height, rows.models * k_); ++i)
        for (std::size_t j = c; j < std::min(c + width, columns.models * k_); ++j)
          out[((i / k_ * stride + j / k_) * k_ + i % k_) * k_ + j % k_] = sums[(i - r) * width + j - c];
    });
  }

 private:
  // Computes the inner products of the vectors of all pairs, block by block.
  void multiply(Side rows, Side columns, bool among) {
    const Kernels& run = kernels();
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for (std::size_t at = 0; at < length_; at += kChunk) {
      const std::size_t count = std::min(kChunk, length_ - at);
      run.pack_rows(rows.bases, rows.models, length_, k_, at, count, rows_.data());
      run.pack_columns(columns.bases, columns.models, length_, k_, at, count, columns_.data());
      each_block(rows, columns, among, [&](std::size_t r, std::size_t c, double* sums) {
        run.add_products(rows_.data() + r * count, columns_.data() + c * count, count, sums);
      });
    }
  }

  template <typename Block>
  void each_block(Side rows, Side columns, bool among, Block block) {
    const std::size_t height = kernels().rows, width = kernels().columns;
    double* sums = sums_.data();
    for (std::size_t r = 0; r < rows.models * k_; r += height)
      for (std::size_t c = 0; c < columns.models * k_; c += width, sums += height * width)
        if (!among || c + width > r / k_ * k_) block(r, c, sums);  // starts at the model of the first row
  }

  // Returns the sum of k × k squares. Each is first added to its mirror image: the transposed block then has the same
  // sum, to the last bit.
  double block_sum(const double* squares) const {
    double sum = 0.0;
    for (std::size_t r = 0; r < k_; ++r) {
      sum += squares[r * width_ + r];
      for (std::size_t c = r + 1; c < k_; ++c) sum += squares[r * width_ + c] + squares[c * width_ + r];
    }
    return sum;
  }

  std::size_t length_, k_, height_, width_;
  std::vector<double> rows_, columns_, sums_, squares_;
};

}  // namespace

void overlap(const float* bases, std::size_t models, const float* others, std::size_t other_models, std::size_t length,
             std::size_t k, double* out) {
  const bool among = others == nullptr;
  if (among) {
    others = bases;
    other_models = models;
  }
  const std::size_t step = std::max<std::size_t>(1, kSide / k), size = length * k;
  Tile tile(std::min(step, std::max(models, other_models)), length, k);
  for (std::size_t i = 0; i < models; i += step)
    for (std::size_t j = among ? i : 0; j < other_models; j += step)
      tile.overlap({bases + i * size, std::min(step, models - i)}, {others + j * size, std::min(step, other_models - j)},
                   among && i == j, out + i * other_models + j, other_models);
  if (among)
    for (std::size_t i = 0; i < models; ++i)
      for (std::size_t j = 0; j < i; ++j) out[i * models + j] = out[j * models + i];
}

void basis_products(const float* bases, std::size_t models, const float* others, std::size_t other_models,
                    std::size_t length, std::size_t k, double* out) {
  const std::size_t step = std::max<std::size_t>(1, kSide / k), size = length * k;
  Tile tile(std::min(step, std::max(models, other_models)), length, k);
  for (std::size_t i = 0; i < models; i += step)
    for (std::size_t j = 0; j < other_models; j += step)
      tile.products({bases + i * size, std::min(step, models - i)}, {others + j * size, std::min(step, other_models - j)},
                    out + (i * other_models + j) * k * k, other_models);
}

}  // namespace mergekern
