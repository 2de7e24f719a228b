// Raw-pointer kernels of the tridiagonal form. Included once for each instruction set (for_each_instruction_set.hpp).
//
// Every matrix is row-major, and its number of rows is a multiple of kBand, so that no loop has a remainder. The
// padding is zero and stays zero.

#include "lanes.hpp"

// Number of registers that hold kBand float64.
constexpr int kVectors = kBand / LANES;
// The register block of a product has kTileRows × 3 registers, which fill the register file.
constexpr int kTileRows = LANES == 8 ? 8 : 4;
constexpr int kTileColumns = 3 * LANES;
// Columns of a panel that are reflected one at a time; the other columns are then updated in one product.
constexpr int kInner = 8;
// Blocks of kBand on one side of a square that is read once: 295 KB. Measured on one busy thread with AVX-512, against a
// row of tiles at a time: size 2048 410 ms instead of 455, 4096 3.05 s instead of 4.66; 768 as before.
constexpr std::size_t kTogether = 8;

// sum += a·b. Element (r, d) of a is a[r·row_step + d·depth_step]; row d of b starts at b + d·b_step.
MERGEKERN_INLINE void add_tile(const double* a, std::size_t row_step, std::size_t depth_step, const double* b,
                               std::size_t b_step, std::size_t depth, Lanes (&sum)[kTileRows][3]) {
  for (std::size_t d = 0; d < depth; ++d, a += depth_step, b += b_step) {
    const Lanes first = load(b), second = load(b + LANES), third = load(b + 2 * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const double x = a[r * row_step];
      sum[r][0] += x * first;
      sum[r][1] += x * second;
      sum[r][2] += x * third;
    }
  }
}

MERGEKERN_INLINE void store_tile(double* c, std::size_t c_step, const Lanes (&sum)[kTileRows][3], bool subtract) {
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v) {
      double* at = c + r * c_step + v * LANES;
      store(at, subtract ? load(at) - sum[r][v] : sum[r][v]);
    }
}

// c = a·b, or c −= a·b. c is rows × kBand.
MERGEKERN_INLINE void multiply(std::size_t rows, const double* a, std::size_t row_step, std::size_t depth_step,
                               std::size_t depth, const double* b, double* c, std::size_t c_step, bool subtract) {
  for (int column = 0; column < kBand; column += kTileColumns)
    for (std::size_t r = 0; r < rows; r += kTileRows) {
      Lanes sum[kTileRows][3] = {};
      add_tile(a + r * row_step, row_step, depth_step, b + column, kBand, depth, sum);
      store_tile(c + r * c_step + column, c_step, sum, subtract);
    }
}

// Adds a·b to a tile of c, whose rows have a stride of kBand; see add_tile.
MERGEKERN_INLINE void add_to_tile(const double* a, std::size_t row_step, std::size_t depth_step, const double* b,
                                  std::size_t depth, double* c) {
  Lanes sum[kTileRows][3];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v) sum[r][v] = load(c + r * kBand + v * LANES);
  add_tile(a, row_step, depth_step, b, kBand, depth, sum);
  store_tile(c, kBand, sum, false);
}

// y = matrix·v for a symmetric matrix (size × size), given by its upper blocks of kBand. v and y are size × kBand. A
// square of kTogether blocks is read once for both of its products, while it is in a cache. An element of y is the same
// sum in the same order whatever the squares are.
void symmetric_product(const double* matrix, std::size_t stride, std::size_t size, const double* v, double* y) {
  constexpr std::size_t side = kTogether * kBand;
  for (std::size_t e = 0; e < size * kBand; ++e) y[e] = 0.0;
  for (std::size_t first = 0; first < size; first += side) {
    const std::size_t last = first + side < size ? first + side : size;
    for (int column = 0; column < kBand; column += kTileColumns)
      for (std::size_t r = first; r < last; r += kTileRows) {
        const std::size_t block = r / kBand * kBand;
        double* to = y + r * kBand + column;
        // Elements left of the diagonal block are read from the upper triangle, transposed.
        add_to_tile(matrix + first * stride + r, 1, stride, v + first * kBand + column, block - first, to);
        add_to_tile(matrix + r * stride + block, stride, 1, v + block * kBand + column, last - block, to);
      }
    for (std::size_t c = last; c < size; c += side) {
      const std::size_t stop = c + side < size ? c + side : size;
      for (int column = 0; column < kBand; column += kTileColumns) {
        for (std::size_t r = first; r < last; r += kTileRows)
          add_to_tile(matrix + r * stride + c, stride, 1, v + c * kBand + column, stop - c, y + r * kBand + column);
        for (std::size_t r = c; r < stop; r += kTileRows)
          add_to_tile(matrix + first * stride + r, 1, stride, v + first * kBand + column, last - first,
                      y + r * kBand + column);
      }
    }
  }
}

// matrix −= left·right, on the upper blocks. left is size × 2·kBand, and right is stored in blocks of 2·kBand × kBand.
// A block of `right` is read once for kTogether blocks of the matrix.
void symmetric_update(double* matrix, std::size_t stride, std::size_t size, const double* left, const double* right) {
  constexpr std::size_t side = kTogether * kBand;
  for (std::size_t first = 0; first < size; first += side)
    for (std::size_t column = first; column < size; column += kBand) {
      const std::size_t last = first + side < column + kBand ? first + side : column + kBand;
      for (std::size_t row = first; row < (last < size ? last : size); row += kBand)
        multiply(kBand, left + row * 2 * kBand, 2 * kBand, 1, 2 * kBand, right + column * 2 * kBand,
                 matrix + row * stride + column, stride, true);
    }
}

// Computes t from the inner products of the v, so that the product of the reflectors I − tau·v·vᵀ is I − V·t·Vᵀ.
inline void triangular_factor(const double* products, const double* tau, int size, double* t) {
  for (int p = 0; p < size; ++p) {
    for (int i = 0; i < p; ++i) {
      double sum = 0;
      for (int l = i; l < p; ++l) sum += t[i * size + l] * products[l * size + p];
      t[i * size + p] = -tau[p] * sum;
    }
    t[p * size + p] = tau[p];
    for (int i = p + 1; i < size; ++i) t[i * size + p] = 0.0;
  }
}

// out (kInner × kBand) = (first kInner columns of `left`)ᵀ · right. Both have a row stride of kBand.
MERGEKERN_INLINE void inner_products(const double* left, const double* right, std::size_t rows, double* out) {
  for (int v = 0; v < kVectors; ++v) {
    Lanes sum[kInner] = {};
    for (std::size_t i = 0; i < rows; ++i) {
      const Lanes x = load(right + i * kBand + v * LANES);
#pragma GCC unroll 8
      for (int a = 0; a < kInner; ++a) sum[a] += left[i * kBand + a] * x;
    }
    for (int a = 0; a < kInner; ++a) store(out + a * kBand + v * LANES, sum[a]);
  }
}

// Householder QR of a panel (rows × kBand), in place: panel = (I − V·t·Vᵀ)·[r; 0]. The panel is replaced by V with its
// explicit ones and zeros. r and t are kBand × kBand, r an upper triangle.
void factor_panel(double* panel, std::size_t rows, double* r, double* t) {
  constexpr int kRegisters = kInner / LANES > 0 ? kInner / LANES : 1;
  double tau[kBand], products[kBand * kBand], factor[kInner * kInner], square[kInner * kInner];
  for (int q = 0; q < kBand; q += kInner) {
    for (int p = q; p < q + kInner; ++p) {
      Lanes dots[4][kRegisters] = {};
      std::size_t i = p + 1;
      for (; i + 4 <= rows; i += 4)
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u)
#pragma GCC unroll 4
          for (int v = 0; v < kRegisters; ++v)
            dots[u][v] += panel[(i + u) * kBand + p] * load(panel + (i + u) * kBand + q + v * LANES);
      for (; i < rows; ++i)
        for (int v = 0; v < kRegisters; ++v)
          dots[0][v] += panel[i * kBand + p] * load(panel + i * kBand + q + v * LANES);
      double w[kInner];
      for (int v = 0; v < kRegisters; ++v) store(w + v * LANES, (dots[0][v] + dots[1][v]) + (dots[2][v] + dots[3][v]));
      double* row = panel + p * kBand;
      const double pivot = row[p], below = w[p - q];
      tau[p] = 0.0;
      if (below == 0.0) continue;
      const double beta = -__builtin_copysign(__builtin_sqrt(pivot * pivot + below), pivot);
      tau[p] = (beta - pivot) / beta;
      const double scale = 1.0 / (pivot - beta);
      for (int c = 0; c < kInner; ++c) w[c] = c > p - q ? tau[p] * (scale * w[c] + row[q + c]) : 0.0;
      for (int c = p - q + 1; c < kInner; ++c) row[q + c] -= w[c];
      row[p] = beta;
      Lanes change[kRegisters];
      for (int v = 0; v < kRegisters; ++v) change[v] = load(w + v * LANES);
      for (i = p + 1; i < rows; ++i) {
        double* other = panel + i * kBand;
        const double x = other[p] * scale;
        for (int v = 0; v < kRegisters; ++v) store(other + q + v * LANES, load(other + q + v * LANES) - x * change[v]);
        other[p] = x;
      }
    }
    for (int i = 0; i < q + kInner; ++i)
      for (int c = q; c < q + kInner; ++c) {
        r[i * kBand + c] = i <= c ? panel[i * kBand + c] : 0.0;
        if (i <= c) panel[i * kBand + c] = i == c ? 1.0 : 0.0;
      }
    if (q + kInner == kBand) break;
    // Multiply the columns to the right by I − V·factorᵀ·Vᵀ.
    double* from = panel + q * kBand;
    inner_products(from + q, from, rows - q, products);
    for (int a = 0; a < kInner; ++a)
      for (int b = 0; b < kInner; ++b) square[a * kInner + b] = products[a * kBand + q + b];
    triangular_factor(square, tau + q, kInner, factor);
    double change[kInner * kBand] = {};
    for (int a = 0; a < kInner; ++a)
      for (int b = 0; b <= a; ++b)
        for (int c = q + kInner; c < kBand; ++c) change[a * kBand + c] += factor[b * kInner + a] * products[b * kBand + c];
    for (int v = (q + kInner) / LANES; v < kVectors; ++v) {
      Lanes w[kInner];
      for (int a = 0; a < kInner; ++a) w[a] = load(change + a * kBand + v * LANES);
      for (std::size_t i = q; i < rows; ++i) {
        Lanes x = load(panel + i * kBand + v * LANES);
#pragma GCC unroll 8
        for (int a = 0; a < kInner; ++a) x -= panel[i * kBand + q + a] * w[a];
        store(panel + i * kBand + v * LANES, x);
      }
    }
  }
  multiply(kBand, panel, 1, kBand, rows, panel, products, kBand, false);
  triangular_factor(products, tau, kBand, t);
}

// Reduces a symmetric matrix (size × size, upper blocks) to a similar band matrix of half bandwidth kBand. `panels`
// receives V and t of each step in order. `scratch` holds 5·size·kBand.
void reduce_to_band(double* matrix, std::size_t stride, std::size_t size, double* panels, double* scratch) {
  for (std::size_t start = 0; start + kBand < size; start += kBand) {
    const std::size_t rows = size - start - kBand;
    double *v = panels, *t = panels + rows * kBand;
    panels = t + kBand * kBand;
    double* block = matrix + start * stride + start + kBand;  // kBand × rows: the panel, transposed
    for (std::size_t i = 0; i < rows; ++i)
      for (int c = 0; c < kBand; ++c) v[i * kBand + c] = block[c * stride + i];
    double r[kBand * kBand] = {};
    factor_panel(v, rows, r, t);
    for (int c = 0; c < kBand; ++c)
      for (int i = 0; i < kBand; ++i) block[c * stride + i] = r[i * kBand + c];

    // B becomes B − V·Zᵀ − Z·Vᵀ with Y = B·V·t, Z = Y − V·(tᵀ·Vᵀ·Y)/2.
    double* trailing = block + kBand * stride;
    double *y = scratch, *left = scratch + rows * kBand, *right = left + 2 * rows * kBand;
    double product[kBand * kBand], inner[kBand * kBand];
    symmetric_product(trailing, stride, rows, v, right);
    multiply(rows, right, kBand, 1, kBand, t, y, kBand, false);
    multiply(kBand, v, 1, kBand, rows, y, product, kBand, false);
    multiply(kBand, t, 1, kBand, kBand, product, inner, kBand, false);
    for (int e = 0; e < kBand * kBand; ++e) inner[e] *= 0.5;
    multiply(rows, v, kBand, 1, kBand, inner, y, kBand, true);
    for (std::size_t i = 0; i < rows; ++i)
      for (int c = 0; c < kBand; ++c) {
        double* column = right + i / kBand * 2 * kBand * kBand + i % kBand;
        left[i * 2 * kBand + c] = column[(kBand + c) * kBand] = v[i * kBand + c];
        left[i * 2 * kBand + kBand + c] = column[c * kBand] = y[i * kBand + c];
      }
    symmetric_update(trailing, stride, rows, left, right);
  }
}

// Computes a reflector I − tau·v·vᵀ of kBand elements that maps x to beta times the first unit vector.
struct Reflector {
  Lanes v[kVectors];
  double tau, beta;
};

MERGEKERN_INLINE Reflector reflector_of(const Lanes (&x)[kVectors]) {
  Reflector out;
  for (int i = 0; i < kVectors; ++i) out.v[i] = x[i];
  const double pivot = out.v[0][0];
  out.v[0][0] = 0.0;
  Lanes squares = {};
  for (int i = 0; i < kVectors; ++i) squares += out.v[i] * out.v[i];
  const double below = sum_of_lanes(squares);
  out.tau = 0.0;
  out.beta = pivot;
  if (below != 0.0) {
    out.beta = -__builtin_copysign(__builtin_sqrt(pivot * pivot + below), pivot);
    out.tau = (out.beta - pivot) / out.beta;
    const double scale = 1.0 / (pivot - out.beta);
    for (int i = 0; i < kVectors; ++i) out.v[i] *= scale;
  }
  out.v[0][0] = 1.0;
  return out;
}

// Reduces a symmetric band matrix to tridiagonal form, in place. Both triangles are stored: column c starts at
// band + c·kBandStride, with element (i, c) at offset kBand + i − c, and zeros beyond `size` and below the band. Each
// column is eliminated in turn, and the resulting bulge is chased off the end, kBand rows at a time. The reflector of
// sweep j and block s goes to v[(start of s) + j] (see chase_count), and its tau to the same place of `taus`.
void chase(double* band, std::size_t size, double* reflectors, double* taus) {
  alignas(64) double v[kBand], w[kBand], z[kBand];
  for (std::size_t sweep = 0; sweep + 2 < size; ++sweep) {
    double* column = band + sweep * kBandStride + kBand + 1;
    Lanes x[kVectors];
    for (int i = 0; i < kVectors; ++i) x[i] = load(column + i * LANES);
    Reflector now = reflector_of(x);
    for (int i = 0; i < kVectors; ++i) store(column + i * LANES, Lanes{});
    column[0] = now.beta;
    std::size_t slot = sweep;
    for (std::size_t row = sweep + 1, s = 0;; row += kBand, ++s) {
      for (int i = 0; i < kVectors; ++i) {
        store(v + i * LANES, now.v[i]);
        store(reflectors + slot * kBand + i * LANES, now.v[i]);
      }
      taus[slot] = now.tau;
      slot += chase_count(size, s);
      // Column c of the diagonal block D starts at diagonal + c·(kBandStride − 1), that of the block E below it kBand
      // later.
      double* diagonal = band + row * kBandStride + kBand;
      Lanes p[kVectors] = {}, y[kVectors] = {};
      for (int c = 0; c < kBand; ++c) {
        const double* at = diagonal + c * (kBandStride - 1);
#pragma GCC unroll 12
        for (int i = 0; i < kVectors; ++i) {
          p[i] += v[c] * load(at + i * LANES);
          y[i] += v[c] * load(at + kBand + i * LANES);
        }
      }
      const bool last = row + kBand >= size;
      Reflector next = now;
      if (!last) {
        for (int i = 0; i < kVectors; ++i) {
          y[i] *= now.tau;
          x[i] = load(diagonal + kBand + i * LANES) - y[i];
        }
        next = reflector_of(x);
      }
      // D −= v·wᵀ + w·vᵀ with w = tau·(p − tau/2·(pᵀv)·v).
      Lanes dot = {};
      for (int i = 0; i < kVectors; ++i) dot += p[i] * now.v[i];
      const double half = 0.5 * now.tau * sum_of_lanes(dot);
      for (int i = 0; i < kVectors; ++i) {
        p[i] = now.tau * (p[i] - half * now.v[i]);
        store(w + i * LANES, p[i]);
      }
      for (int c = 0; c < kBand; ++c) {
        double* at = diagonal + c * (kBandStride - 1);
#pragma GCC unroll 12
        for (int i = 0; i < kVectors; ++i) store(at + i * LANES, load(at + i * LANES) - w[c] * now.v[i] - v[c] * p[i]);
      }
      if (last) break;
      // E −= y·vᵀ, and then −= tau·v'·(v'ᵀE); its first column becomes beta·e₁.
      Lanes along = {};
      for (int i = 0; i < kVectors; ++i) along += y[i] * next.v[i];
      const double shared = sum_of_lanes(along);
      for (int c = 0; c < kBand; c += LANES) {
        Lanes products[LANES];
#pragma GCC unroll 8
        for (int l = 0; l < LANES; ++l) {
          const double* at = diagonal + kBand + (c + l) * (kBandStride - 1);
          products[l] = load(at) * next.v[0];
#pragma GCC unroll 12
          for (int i = 1; i < kVectors; ++i) products[l] += load(at + i * LANES) * next.v[i];
        }
        store(z + c, next.tau * (sums_of_lanes(products) - shared * load(v + c)));
      }
      for (int c = 1; c < kBand; ++c) {
        double* at = diagonal + kBand + c * (kBandStride - 1);
#pragma GCC unroll 12
        for (int i = 0; i < kVectors; ++i) store(at + i * LANES, load(at + i * LANES) - v[c] * y[i] - z[c] * next.v[i]);
        // The first row of E is part of D in the next sweep, where D needs both triangles.
        band[(row + kBand) * kBandStride + c] = at[0];
      }
      for (int i = 0; i < kVectors; ++i) store(diagonal + kBand + i * LANES, Lanes{});
      diagonal[kBand] = next.beta;
      now = next;
    }
  }
}

// Turns vectors x of the tridiagonal form into vectors of the band. x is (size + 2·kBand) × kBand.
void undo_chase(const double* reflectors, const double* taus, std::size_t size, double* x) {
  std::size_t start = 0;
  // Successive reflectors of one block s move up by one row. This order never uses a row before earlier sweeps are
  // done.
  for (std::size_t s = 0; chase_count(size, s) > 0; start += chase_count(size, s), ++s)
    for (std::size_t sweep = chase_count(size, s); sweep-- > 0;) {
      const double* v = reflectors + (start + sweep) * kBand;
      const double tau = taus[start + sweep];
      double* rows = x + (sweep + 1 + s * kBand) * kBand;
      for (int column = 0; column < kBand; column += kTileColumns) {
        Lanes sum[2][3] = {};
        for (int i = 0; i < kBand; i += 2)
#pragma GCC unroll 2
          for (int u = 0; u < 2; ++u)
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k) sum[u][k] += v[i + u] * load(rows + (i + u) * kBand + column + k * LANES);
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) sum[0][k] = tau * (sum[0][k] + sum[1][k]);
        for (int i = 0; i < kBand; ++i)
#pragma GCC unroll 3
          for (int k = 0; k < 3; ++k) {
            double* at = rows + i * kBand + column + k * LANES;
            store(at, load(at) - v[i] * sum[0][k]);
          }
      }
    }
}

// Turns vectors x of the band into vectors of the matrix that reduce_to_band received.
void undo_band(const double* panels, std::size_t size, double* x) {
  const double* end = panels;
  for (std::size_t rows = size - kBand; rows > 0; rows -= kBand) end += (rows + kBand) * kBand;
  for (std::size_t rows = kBand; rows < size; rows += kBand) {
    const double *t = end - kBand * kBand, *v = t - rows * kBand;
    end = v;
    double product[kBand * kBand], change[kBand * kBand];
    double* from = x + (size - rows) * kBand;
    multiply(kBand, v, 1, kBand, rows, from, product, kBand, false);
    multiply(kBand, t, kBand, 1, kBand, product, change, kBand, false);
    multiply(rows, v, kBand, 1, kBand, change, from, kBand, true);
  }
}

// below[i] = number of eigenvalues below shifts[i], for kShifts shifts. `squares` are the squared off-diagonal
// elements, each at least kTinySquare. The norm of the matrix is about 1.
constexpr int kShiftRegisters = 4;
constexpr int kShifts = kShiftRegisters * LANES;

void count_below(const double* diagonal, const double* squares, std::size_t size, const double* shifts,
                 long long* below) {
  // The number of eigenvalues below x is the number of sign changes among the leading minors
  // p_i = (a_i − x)·p_{i−1} − b²·p_{i−2}. They are rescaled often enough to stay in range. The usual recurrence of
  // quotients needs divisions (measured: 4 times slower).
  Lanes shift[kShiftRegisters], before[kShiftRegisters], now[kShiftRegisters];
  Bits changes[kShiftRegisters] = {};
  for (int k = 0; k < kShiftRegisters; ++k) {
    shift[k] = load(shifts + k * LANES);
    before[k] = Lanes{};
    now[k] = Lanes{} + 1.0;
  }
  for (std::size_t start = 0; start < size; start += 8) {
    const std::size_t stop = start + 8 < size ? start + 8 : size;
    for (std::size_t i = start; i < stop; ++i) {
      const double square = i ? squares[i - 1] : 0.0;
#pragma GCC unroll 4
      for (int k = 0; k < kShiftRegisters; ++k) {
        const Lanes next = (diagonal[i] - shift[k]) * now[k] - square * before[k];
        changes[k] += (Bits)((UnsignedBits)((Bits)next ^ (Bits)now[k]) >> 63);
        before[k] = now[k];
        now[k] = next;
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < kShiftRegisters; ++k) {
      // 2^−exponent of the larger of the two.
      const Bits a = (Bits)now[k] & 0x7ff0000000000000, b = (Bits)before[k] & 0x7ff0000000000000;
      const Lanes scale = (Lanes)(0x7fe0000000000000 - (a > b ? a : b));
      now[k] *= scale;
      before[k] *= scale;
    }
  }
  for (int k = 0; k < kShiftRegisters; ++k)
    for (int lane = 0; lane < LANES; ++lane) below[k * LANES + lane] = changes[k][lane];
}
