"""Merging: one file a method, pure functions of one tensor; `merge` streams zoos through them.

To add a method, touch three files:

1. `<name>.py`: how it merges, and a `METHOD = Method(...)` that names it, with what mergekit calls it.
   A function of the method's own name merges one tensor in memory; its docstring defines the result, and shows one.
   There are three kinds of rules:

   - `elements`: an `Elementwise` of parts: trim or drop, consensus, factor. The kernel `combine` does it (`ties.py`).
   - `matrix`: for matrices, in operators that NumPy arrays and tensors share (`tsv.py`).
   - `tensor`: looks at a whole tensor first, for inner products, order statistics or counts, and returns what is done
     to its elements: a weighted sum, a rule of the kernel `combine` (`ram.py`), or a function of blocks in operators of
     torch (`della.py`). Where inner products of
     the models are all that it needs, it is one function, Gram -> coefficients (`span.py`, `slerp.py`).

2. A line in `registry.py`. The command line, the table in the README (`make readme`), the studies and the tests of what
   holds for every method (bits, files, devices, degenerate inputs) read that.
3. `tests/merging/test_closed_forms.py`: values worked out by hand, or a rule for matrices written out with full SVDs.

A consensus that is not among those of `mergekern.kernels.combine` takes five more files, eight in all: its name and
formula there, `reference.py` and `on_triton.py` beside it, and `merge.hpp`, `merge_kernel.hpp` in `csrc/cpu`. The tests
of `combine` and of codes that C++ shares take it from there.

What a merge is made of, from the top: `merge` (the functions that users call), `merge_pass` (tensors side by side),
`group_merge` (one merge), `shared_layer` (what merges of one tensor share), `route` (the kernels of a processor or a
device), `elementwise`, `matrices` and `whole_tensor` (what a method does to a tensor), `settings` (the weights and
options of one tensor), `mergekit_names` (the table that `mergekit` writes recipes by).
"""
