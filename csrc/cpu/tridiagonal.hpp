// Symmetric matrices to tridiagonal form in two steps (dense to band, band to tridiagonal), some of the eigenvalues
// of that form, and its eigenvectors turned back. After Bischof, Lang and Sun, "A framework for symmetric band
// reduction" (2000); the first step is products of matrices, where the one-step reduction reads the matrix once for
// each column.
#pragma once

#include <cstddef>

namespace mergekern {

// Width of the band between the two steps.
constexpr int kBand = 24;

// Layout of the matrix that `tridiagonalise` takes: rows `stride` apart, padded_size rows.
std::size_t padded_size(std::size_t size);
std::size_t padded_stride(std::size_t size);

// Float64 values that `tridiagonalise` needs to keep and to work with.
std::size_t reflector_count(std::size_t size);
std::size_t scratch_count(std::size_t size);

// Reduces the symmetric matrix whose upper triangle is given (float64, padded as above; the padding need not be
// set). Overwrites the matrix; writes size diagonal and size − 1 off-diagonal elements, and what
// `back_transform` needs to `reflectors`.
void tridiagonalise(double* matrix, std::size_t size, double* reflectors, double* scratch, double* diagonal,
                    double* off_diagonal);

// Turns `count` eigenvectors of the tridiagonal form (rows of `size`) into those of the matrix, in place.
// `scratch` as above.
void back_transform(const double* reflectors, std::size_t size, double* vectors, std::size_t count, double* scratch);

// Writes the eigenvalues at `positions` (0 is the smallest), to an ulp of the norm, by bisection.
void tridiagonal_values(const double* diagonal, const double* off_diagonal, std::size_t size, const long long* positions,
                        std::size_t count, double* values);

// The number of eigenvalues below `bound`.
std::size_t values_below(const double* diagonal, const double* off_diagonal, std::size_t size, double bound);

}  // namespace mergekern
