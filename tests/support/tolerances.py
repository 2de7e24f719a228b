"""The one table of tolerances, which every path is held to against a float64 reference."""

# Geometry and effective rank: relative.
GEOMETRY = 1e-5
# Subspace metrics: absolute.
SUBSPACE = 1e-4
# Sines between a computed subspace and the true one, in the Frobenius norm, for float32 vectors. A metric moves by at
# most the sine of the largest angle, so kernels are held to a tenth of SUBSPACE.
SUBSPACE_SINE = 1e-5
# Sums in float64, relative to the sum of absolute values.
SUM = 1e-13
# The published float32 values: absolute or relative, whichever is larger.
PUBLISHED = 1e-4
