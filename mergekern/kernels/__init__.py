"""The kernels do all arithmetic on weights. Each is a folder: formula and cost, float64 oracle, implementations.

    combine         merges task vectors element by element
    count_sketch    projects a task vector onto a few numbers
    gram            inner products and squared distances of task vectors
    interference    how leading singular triplets of all pairs of models stand in each other's way
    low_rank        inner products, distances and spectra of task matrices given by thin factors
    overlap         overlaps of the subspaces of all pairs of models
    polar           orthogonal factors
    randomized_spectrum
                    leading singular values and vectors by block Krylov iteration, with estimates of their errors
    signs           where task vectors agree in sign, for all pairs of models
    spectrum        leading singular values and vectors of a task matrix
    task_product    task matrices times thin matrices
    trim            the k-th largest magnitude of a task vector
    truncation      leading singular triplets of a task matrix
    variation       how task vectors differ from each other, element by element

Start in `dispatch`: its table names every implementation, and `choose` returns the backend of a device.
`device_backend` is the backend of a GPU. `native` gives access to the C++ extension, `cuda_module` to the kernels of
csrc/cuda. CPU kernels share `lapack`, `tridiagonal`, `eigen`, `vectors` and `workspace`. Device kernels share
`device_inputs` and `transfer`; `streams` orders copies, kernels and results.

To add a kernel:

1. mergekern/kernels/<name>/__init__.py: formula, inputs, outputs, bytes and flops.
2. reference.py in that folder: the formula in float64, in as few lines as it takes.
3. on_cpu.py, and where it pays on_triton.py, on_cuda.py (a kernel of csrc/cuda) or on_torch.py.
4. A row of `dispatch.KERNELS`, and a method of `DeviceBackend` where a measurement or a merge calls it on a device.
5. tests/kernels/test_<name>.py: every implementation against the oracle, awkward sizes and dtypes included.

To add an implementation in C++, write a kernel on raw pointers (csrc/cpu/<name>_kernel.hpp), a checked launcher
(<name>.cpp, <name>.hpp), a binding (bindings.cpp) and its line of mergekern/_native.pyi. To add a backend, give
`dispatch.Support` a column, and `dispatch.choose` the device that it is for. To add a storage dtype, see
mergekern/checkpoints/dtypes.py.
"""
