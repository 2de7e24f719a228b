// mergekern._native: pointers in, arrays out, the GIL released while a kernel runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "task_vector.hpp"

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

py::array_t<double> gram(const Address& base, const std::vector<Address>& tuned, std::size_t count, int threads) {
  py::array_t<double> out({tuned.size(), tuned.size()});
  double* data = out.mutable_data();
  py::gil_scoped_release release;
  mergekern::gram(view(base), views(tuned), count, threads, data);
  return out;
}

py::array_t<double> squared_distances(const std::vector<Address>& tensors,
                                      const std::vector<std::pair<int, int>>& pairs, std::size_t count, int threads) {
  py::array_t<double> out(static_cast<py::ssize_t>(pairs.size()));
  double* data = out.mutable_data();
  py::gil_scoped_release release;
  mergekern::squared_distances(views(tensors), pairs, count, threads, data);
  return out;
}

void difference(const Address& base, std::size_t base_stride, const Address& tuned, std::size_t tuned_stride,
                py::array_t<double, py::array::c_style>& out) {
  if (out.ndim() != 2) throw py::value_error("out must be a matrix");
  const std::size_t rows = out.shape(0), columns = out.shape(1);
  double* data = out.mutable_data();
  py::gil_scoped_release release;
  mergekern::difference(view(base), base_stride, view(tuned), tuned_stride, rows, columns, data);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "C++ kernels of mergekern; use them through mergekern.kernels";
  module.def("gram", &gram, py::arg("base"), py::arg("tuned"), py::arg("count"), py::arg("threads"));
  module.def("squared_distances", &squared_distances, py::arg("tensors"), py::arg("pairs"), py::arg("count"),
             py::arg("threads"));
  module.def("difference", &difference, py::arg("base"), py::arg("base_stride"), py::arg("tuned"),
             py::arg("tuned_stride"), py::arg("out").noconvert());
  module.def("instruction_set", &mergekern::instruction_set);
}
