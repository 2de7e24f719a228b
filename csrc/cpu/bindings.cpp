// The module mergekern._native. Tensors come in as pointers, results are arrays. The GIL is released while a kernel
// runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "gram_product.hpp"
#include "instruction_set.hpp"
#include "mapped_range.hpp"
#include "merge.hpp"
#include "overlap.hpp"
#include "signs.hpp"
#include "task_vector.hpp"
#include "tridiagonal.hpp"

namespace py = pybind11;
using mergekern::DType;
using mergekern::TensorView;

namespace {

using Address = std::pair<std::uintptr_t, int>;  // data pointer, DType code

TensorView view(const Address& address) {
  return {reinterpret_cast<const void*>(address.first), static_cast<DType>(address.second)};
}

std::vector<TensorView> views(const std::vector<Address>& addresses) {
  std::vector<TensorView> out;
  out.reserve(addresses.size());
  for (const Address& address : addresses) out.push_back(view(address));
  return out;
}

using Array = py::array_t<double, py::array::c_style>;

void add_gram(const Address& base, const std::vector<Address>& tuned, std::size_t count, std::size_t split,
              int threads, Array& sums, bool absolute) {
  if (sums.ndim() != 2 || sums.shape(0) != sums.shape(1) || static_cast<std::size_t>(sums.shape(0)) != tuned.size())
    throw py::value_error("sums must be a matrix of all pairs");
  double* data = sums.mutable_data();
  py::gil_scoped_release release;
  mergekern::add_gram(view(base), views(tuned), count, split, threads, data, absolute);
}

void add_sign_counts(const Address& base, const std::vector<Address>& tuned, std::size_t count, std::size_t split,
                     const std::vector<double>& thresholds, int threads,
                     py::array_t<long long, py::array::c_style>& counts, Array& sums) {
  const py::ssize_t n = static_cast<py::ssize_t>(tuned.size());
  if (counts.ndim() != 3 || counts.shape(0) != static_cast<py::ssize_t>(mergekern::kSignCounts) ||
      counts.shape(1) != n || counts.shape(2) != n || sums.size() != n || thresholds.size() != tuned.size())
    throw py::value_error("counts must be of all pairs, thresholds and sums of all tensors");
  long long* found = counts.mutable_data();
  double* data = sums.mutable_data();
  py::gil_scoped_release release;
  mergekern::add_sign_counts(view(base), views(tuned), count, split, thresholds.data(), threads, found, data);
}

void add_squared_distances(const std::vector<Address>& tensors, const std::vector<std::pair<int, int>>& pairs,
                           std::size_t count, int threads, Array& sums) {
  if (static_cast<std::size_t>(sums.size()) != pairs.size()) throw py::value_error("sums must be one for each pair");
  double* data = sums.mutable_data();
  py::gil_scoped_release release;
  mergekern::add_squared_distances(views(tensors), pairs, count, threads, data);
}

void difference(const Address& base, std::size_t base_stride, const Address& tuned, std::size_t tuned_stride,
                Array& out) {
  if (out.ndim() != 2) throw py::value_error("out must be a matrix");
  const std::size_t rows = out.shape(0), columns = out.shape(1);
  double* data = out.mutable_data();
  py::gil_scoped_release release;
  mergekern::difference(view(base), base_stride, view(tuned), tuned_stride, rows, columns, data);
}

using Vectors = py::array_t<float, py::array::c_style>;

double largest_difference(const Address& base, std::size_t base_stride, const Address& tuned, std::size_t tuned_stride,
                          std::size_t rows, std::size_t columns) {
  py::gil_scoped_release release;
  return mergekern::largest_difference({view(base), base_stride, view(tuned), tuned_stride, rows, columns});
}

void add_gram_product(const Address& base, std::size_t base_stride, const Address& tuned, std::size_t tuned_stride,
                      std::size_t rows, std::size_t columns, bool of_rows, double factor, double weight,
                      const Vectors& vectors, Array& total, std::optional<Vectors>& images) {
  const std::size_t length = of_rows ? rows : columns, number = of_rows ? columns : rows;
  if (vectors.ndim() != 2 || total.ndim() != 2 || vectors.shape(1) != total.shape(1) ||
      static_cast<std::size_t>(vectors.shape(0)) != length || static_cast<std::size_t>(total.shape(0)) != length)
    throw py::value_error("vectors and total must be (short side, count)");
  if (images && (images->ndim() != 2 || static_cast<std::size_t>(images->shape(0)) != number ||
                 images->shape(1) != vectors.shape(1)))
    throw py::value_error("images must be (long side, count)");
  const std::size_t count = vectors.shape(1);
  const float* v = vectors.data();
  double* t = total.mutable_data();
  float* i = images ? images->mutable_data() : nullptr;
  py::gil_scoped_release release;
  mergekern::add_gram_product({view(base), base_stride, view(tuned), tuned_stride, rows, columns}, of_rows, factor,
                              weight, v, count, t, i);
}

// Throws unless the array holds at least `count` values. Its type guarantees that it is contiguous.
double* at_least(Array& array, std::size_t count, const char* name) {
  if (static_cast<std::size_t>(array.size()) < count) throw py::value_error(std::string(name) + " is too small");
  return array.mutable_data();
}

py::tuple tridiagonalise(Array& matrix, std::size_t size, Array& reflectors, Array& scratch) {
  if (size == 0) throw py::value_error("an empty matrix has no tridiagonal form");
  double* m = at_least(matrix, mergekern::padded_size(size) * mergekern::padded_stride(size), "matrix");
  double* r = at_least(reflectors, mergekern::reflector_count(size), "reflectors");
  double* s = at_least(scratch, mergekern::scratch_count(size), "scratch");
  Array diagonal(static_cast<py::ssize_t>(size)), off_diagonal(static_cast<py::ssize_t>(size - 1));
  double *d = diagonal.mutable_data(), *o = off_diagonal.mutable_data();
  {
    py::gil_scoped_release release;
    mergekern::tridiagonalise(m, size, r, s, d, o);
  }
  return py::make_tuple(diagonal, off_diagonal);
}

void back_transform(Array& reflectors, Array& vectors, Array& scratch) {
  if (vectors.ndim() != 2 || vectors.shape(1) == 0) throw py::value_error("vectors must be a matrix");
  const std::size_t count = vectors.shape(0), size = vectors.shape(1);
  const double* r = at_least(reflectors, mergekern::reflector_count(size), "reflectors");
  double* s = at_least(scratch, mergekern::scratch_count(size), "scratch");
  double* v = vectors.mutable_data();
  py::gil_scoped_release release;
  mergekern::back_transform(r, size, v, count, s);
}

std::size_t checked_size(const Array& diagonal, const Array& off_diagonal) {
  if (diagonal.size() == 0 || off_diagonal.size() != diagonal.size() - 1)
    throw py::value_error("a tridiagonal matrix has n ≥ 1 and n − 1 elements");
  return diagonal.size();
}

Array tridiagonal_values(const Array& diagonal, const Array& off_diagonal,
                         const py::array_t<long long, py::array::c_style>& positions) {
  const std::size_t size = checked_size(diagonal, off_diagonal);
  for (py::ssize_t i = 0; i < positions.size(); ++i)
    if (positions.data()[i] < 0 || positions.data()[i] >= static_cast<long long>(size))
      throw py::value_error("position out of range");
  Array values(positions.size());
  const double *d = diagonal.data(), *o = off_diagonal.data();
  const long long* p = positions.data();
  const std::size_t count = positions.size();
  double* out = values.mutable_data();
  {
    py::gil_scoped_release release;
    mergekern::tridiagonal_values(d, o, size, p, count, out);
  }
  return values;
}

std::size_t values_below(const Array& diagonal, const Array& off_diagonal, double bound) {
  const std::size_t size = checked_size(diagonal, off_diagonal);
  return mergekern::values_below(diagonal.data(), off_diagonal.data(), size, bound);
}

py::tuple combine(const Address& base, const std::vector<Address>& tuned, const Address& out, std::size_t count,
                  std::size_t start, int threads, int consensus, const std::vector<double>& weights,
                  const std::vector<double>& divisors, double total_weight, double factor,
                  const std::vector<double>& thresholds, const std::vector<double>& limits,
                  const std::vector<std::uint64_t>& keys, const std::vector<std::uint64_t>& dropped_below, int majority,
                  double share, long long needed, bool by_count, const std::vector<double>& ballots,
                  const std::vector<double>& alone, double floor, double spread) {
  const std::size_t n = tuned.size();
  const auto is_for_all = [n](const auto& values) { return values.empty() || values.size() == n; };
  if (weights.size() != n || divisors.size() != n || !is_for_all(thresholds) || !is_for_all(limits) ||
      !is_for_all(keys) || dropped_below.size() != keys.size() || !is_for_all(ballots) || !is_for_all(alone))
    throw py::value_error("a rule has one number of each kind for each model");
  const mergekern::Rule rule{static_cast<mergekern::Consensus>(consensus), weights.data(), divisors.data(),
                             total_weight, factor, thresholds.empty() ? nullptr : thresholds.data(),
                             limits.empty() ? nullptr : limits.data(), keys.empty() ? nullptr : keys.data(),
                             dropped_below.data(), static_cast<double>(majority), share, needed, by_count,
                             ballots.empty() ? nullptr : ballots.data(), alone.empty() ? nullptr : alone.data(), floor,
                             spread};
  mergekern::Tally tally;
  {
    py::gil_scoped_release release;
    tally = mergekern::combine(view(base), views(tuned), view(out), count, start, threads, rule);
  }
  return py::make_tuple(tally.signs, tally.undecided, tally.non_finite);
}

py::array_t<long long> magnitude_counts(const Address& base, const Address& tuned, std::size_t count,
                                        std::uint64_t prefix, int above, int shift, int width, int threads) {
  if (width < 1 || width > 16 || shift < 0 || shift + width > above || above > 63)
    throw py::value_error("a digit is 1 to 16 bits below the prefix");
  py::array_t<long long> counts(static_cast<py::ssize_t>(1) << width);
  long long* data = counts.mutable_data();
  std::fill(data, data + counts.size(), 0);
  py::gil_scoped_release release;
  mergekern::magnitude_counts(view(base), view(tuned), count, prefix, above, shift, width, threads, data);
  return counts;
}

Array magnitudes(const Address& base, const Address& tuned, std::size_t count, std::uint64_t prefix, int above,
                 int threads) {
  if (above < 0 || above > 63) throw py::value_error("a prefix begins at bit 0 to 63");
  std::vector<double> found;
  {
    py::gil_scoped_release release;
    found = mergekern::magnitudes(view(base), view(tuned), count, prefix, above, threads);
  }
  Array values(static_cast<py::ssize_t>(found.size()));
  std::copy(found.begin(), found.end(), values.mutable_data());
  return values;
}

// Returns the values between two magnitudes, and how many are above the upper one, equal to it, and to the lower one.
py::tuple magnitudes_between(const Address& base, const Address& tuned, std::size_t count, double low, double high,
                             int threads) {
  std::vector<double> found;
  mergekern::Window window;
  {
    py::gil_scoped_release release;
    found = mergekern::magnitudes_between(view(base), view(tuned), count, low, high, threads, &window);
  }
  Array values(static_cast<py::ssize_t>(found.size()));
  std::copy(found.begin(), found.end(), values.mutable_data());
  return py::make_tuple(values, window.above, window.at_high, window.at_low);
}

Array variances(const Address& base, const std::vector<Address>& tuned, std::size_t count, int threads) {
  Array out(static_cast<py::ssize_t>(count));
  double* data = out.mutable_data();
  py::gil_scoped_release release;
  mergekern::variances(view(base), views(tuned), count, threads, data);
  return out;
}

std::vector<double> energies(const Address& base, const std::vector<Address>& tuned, std::size_t count, double least,
                             int threads) {
  py::gil_scoped_release release;
  return mergekern::energies(view(base), views(tuned), count, least, threads);
}

std::vector<long long> changes(const Address& base, const std::vector<Address>& tuned, std::size_t count,
                               double epsilon, int threads) {
  py::gil_scoped_release release;
  return mergekern::changes(view(base), views(tuned), count, epsilon, threads);
}

using Bases = py::array_t<float, py::array::c_style>;

py::array_t<double> overlap(const Bases& bases, const std::optional<Bases>& others) {
  if (bases.ndim() != 3 || bases.size() == 0) throw py::value_error("bases must be (models, length, k)");
  const std::size_t models = bases.shape(0), length = bases.shape(1), k = bases.shape(2);
  if (others && (others->ndim() != 3 || bases.shape(1) != others->shape(1) || bases.shape(2) != others->shape(2)))
    throw py::value_error("both bases must be of one length and one k");
  const std::size_t other_models = others ? others->shape(0) : models;
  py::array_t<double> out({models, other_models});
  const float *first = bases.data(), *second = others ? others->data() : nullptr;
  double* data = out.mutable_data();
  py::gil_scoped_release release;
  mergekern::overlap(first, models, second, other_models, length, k, data);
  return out;
}

py::array_t<double> basis_products(const Bases& bases, const Bases& others) {
  if (bases.ndim() != 3 || bases.size() == 0 || others.ndim() != 3 || bases.shape(1) != others.shape(1) ||
      bases.shape(2) != others.shape(2))
    throw py::value_error("bases must be (models, length, k), both of one length and one k");
  const std::size_t models = bases.shape(0), length = bases.shape(1), k = bases.shape(2), other_models = others.shape(0);
  py::array_t<double> out({models, other_models, k, k});
  const float *first = bases.data(), *second = others.data();
  double* data = out.mutable_data();
  py::gil_scoped_release release;
  mergekern::basis_products(first, models, second, other_models, length, k, data);
  return out;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "C++ kernels of mergekern; use them through mergekern.kernels";
  module.attr("SEGMENT") = mergekern::kSegment;
  module.def("add_gram", &add_gram, py::arg("base"), py::arg("tuned"), py::arg("count"), py::arg("split"),
             py::arg("threads"), py::arg("sums").noconvert(), py::arg("absolute") = false);
  module.def("add_squared_distances", &add_squared_distances, py::arg("tensors"), py::arg("pairs"), py::arg("count"),
             py::arg("threads"), py::arg("sums").noconvert());
  module.def("add_sign_counts", &add_sign_counts, py::arg("base"), py::arg("tuned"), py::arg("count"), py::arg("split"),
             py::arg("thresholds"), py::arg("threads"), py::arg("counts").noconvert(), py::arg("sums").noconvert());
  module.def("difference", &difference, py::arg("base"), py::arg("base_stride"), py::arg("tuned"),
             py::arg("tuned_stride"), py::arg("out").noconvert());
  module.attr("VECTOR_GROUP") = mergekern::kVectorGroup;
  module.def("largest_difference", &largest_difference, py::arg("base"), py::arg("base_stride"), py::arg("tuned"),
             py::arg("tuned_stride"), py::arg("rows"), py::arg("columns"));
  module.def("add_gram_product", &add_gram_product, py::arg("base"), py::arg("base_stride"), py::arg("tuned"),
             py::arg("tuned_stride"), py::arg("rows"), py::arg("columns"), py::arg("of_rows"), py::arg("factor"),
             py::arg("weight"), py::arg("vectors").noconvert(), py::arg("total").noconvert(),
             py::arg("images").noconvert());
  module.def("padded_size", &mergekern::padded_size, py::arg("size"));
  module.def("padded_stride", &mergekern::padded_stride, py::arg("size"));
  module.def("reflector_count", &mergekern::reflector_count, py::arg("size"));
  module.def("scratch_count", &mergekern::scratch_count, py::arg("size"));
  module.def("tridiagonalise", &tridiagonalise, py::arg("matrix").noconvert(), py::arg("size"),
             py::arg("reflectors").noconvert(), py::arg("scratch").noconvert());
  module.def("back_transform", &back_transform, py::arg("reflectors").noconvert(), py::arg("vectors").noconvert(),
             py::arg("scratch").noconvert());
  module.def("tridiagonal_values", &tridiagonal_values, py::arg("diagonal"), py::arg("off_diagonal"),
             py::arg("positions"));
  module.def("values_below", &values_below, py::arg("diagonal"), py::arg("off_diagonal"), py::arg("bound"));
  module.def("combine", &combine, py::arg("base"), py::arg("tuned"), py::arg("out"), py::arg("count"),
             py::arg("start"), py::arg("threads"), py::arg("consensus"), py::arg("weights"), py::arg("divisors"),
             py::arg("total_weight"), py::arg("factor"), py::arg("thresholds"), py::arg("limits"), py::arg("keys"),
             py::arg("dropped_below"), py::arg("majority"), py::arg("share"), py::arg("needed"), py::arg("by_count"),
             py::arg("ballots"), py::arg("alone"), py::arg("floor"), py::arg("spread"));
  module.def("magnitude_counts", &magnitude_counts, py::arg("base"), py::arg("tuned"), py::arg("count"),
             py::arg("prefix"), py::arg("above"), py::arg("shift"), py::arg("width"), py::arg("threads"));
  module.def("variances", &variances, py::arg("base"), py::arg("tuned"), py::arg("count"), py::arg("threads"));
  module.def("energies", &energies, py::arg("base"), py::arg("tuned"), py::arg("count"), py::arg("least"),
             py::arg("threads"));
  module.def("changes", &changes, py::arg("base"), py::arg("tuned"), py::arg("count"), py::arg("epsilon"),
             py::arg("threads"));
  module.def("magnitudes_between", &magnitudes_between, py::arg("base"), py::arg("tuned"), py::arg("count"),
             py::arg("low"), py::arg("high"), py::arg("threads"));
  module.def("magnitudes", &magnitudes, py::arg("base"), py::arg("tuned"), py::arg("count"), py::arg("prefix"),
             py::arg("above"), py::arg("threads"));
  module.def("overlap", &overlap, py::arg("bases").noconvert(), py::arg("others").noconvert());
  module.def("basis_products", &basis_products, py::arg("bases").noconvert(), py::arg("others").noconvert());
  module.def("guard", &mergekern::guard, py::arg("begin"), py::arg("size"));
  module.def("unguard", &mergekern::unguard, py::arg("number"));
  module.def("instruction_set", &mergekern::instruction_set_name);
}
