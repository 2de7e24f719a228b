// Reduction of symmetric matrices to tridiagonal form in two steps (dense to band, band to tridiagonal), selected
// eigenvalues of that form, and back-transformation of eigenvectors. After Bischof, Lang and Sun, "A framework for
// symmetric band reduction" (2000). The first step consists of matrix products; a one-step reduction would read the
// whole matrix once for each column.
#pragma once

#include <cstddef>

namespace mergekern {

// Half bandwidth of the matrix between the two steps.
constexpr int kBand = 24;

// Layout of the matrix that `tridiagonalise` takes: padded_size rows with a stride of padded_stride.
std::size_t padded_size(std::size_t size);
std::size_t padded_stride(std::size_t size);

// Numbers of float64 that `tridiagonalise` needs for reflectors and for scratch.
std::size_t reflector_count(std::size_t size);
std::size_t scratch_count(std::size_t size);

// Reduces a symmetric matrix, given by its upper triangle (float64, padded as above; the padding need not be set). The
// matrix is overwritten. Writes `size` diagonal and size − 1 off-diagonal elements, and the reflectors that
// `back_transform` needs.
void tridiagonalise(double* matrix, std::size_t size, double* reflectors, double* scratch, double* diagonal,
                    double* off_diagonal);

// Turns `count` eigenvectors of the tridiagonal form (rows of length `size`) into those of the matrix, in place.
// `scratch` is as large as for `tridiagonalise`.
void back_transform(const double* reflectors, std::size_t size, double* vectors, std::size_t count, double* scratch);

// Writes the eigenvalues at `positions` (0 is the smallest). Bisection finds them to an ulp of the norm.
void tridiagonal_values(const double* diagonal, const double* off_diagonal, std::size_t size, const long long* positions,
                        std::size_t count, double* values);

// Returns the number of eigenvalues below `bound`.
std::size_t values_below(const double* diagonal, const double* off_diagonal, std::size_t size, double bound);

}  // namespace mergekern
