"""Merging: one file a method, pure functions of one tensor; `merge` streams zoos through them.

To add a method, touch three files:

1. `<name>.py`: how it merges, and a `METHOD = Method(...)` that names it. Most methods are an `Elementwise` of parts:
   trim or drop, a consensus, a factor (`ties.py`). A method of matrices also has a rule for those, written in operators
   that NumPy arrays and tensors share (`tsv.py`). A function of the method's own name merges one tensor in memory; its
   docstring defines the result, and shows one.
2. A line in `registry.py`. The command line, the table in the README (`make readme`), the studies and the tests of what
   holds for every method (bits, files, devices, degenerate inputs) read that.
3. `tests/merging/test_closed_forms.py`: values worked out by hand, or a rule for matrices written out with full SVDs.

A consensus that is not among those of `mergekern.kernels.combine` takes five more files, eight in all: its name and
formula there, `reference.py` and `on_triton.py` beside it, and `merge.hpp`, `merge_kernel.hpp` in `csrc/cpu`. The tests
of `combine` and of codes that C++ shares take it from there.

What a merge is made of, from the top: `merge` (the functions that users call), `merge_pass` (tensors side by side),
`group_merge` (one merge), `shared_layer` (what merges of one tensor share), `route` (the kernels of a processor or a
device), `elementwise` and `matrices` (what a method does to a tensor).
"""
