"""PTX executed on the processor: what Triton emits for sm_90, and NVRTC for csrc/cuda, runs without a GPU.

`machine.Machine(ptx).launch(...)` runs one kernel. From the bottom: `program` (text to instructions), `operands` (what
an instruction reads and writes), `memory` (global, shared and local, with every access checked), `block` (the threads
of one block, and which of them go on), `fma` (a product and a sum, rounded once); what an instruction does is in
`arithmetic`, `conversions`, `control`, `accesses`, `warps` and `warpgroups`. `triton_driver` and `cuda_ptx` put the
machine in the place of a GPU under Triton and under csrc/cuda.

What it sees that interpreted Triton and emulated CUDA do not: the code that the compilers made. An access outside of a
living tensor or not aligned; a word of shared memory that two threads touch, one of them writing, without a barrier
between them; an asynchronous copy that nobody waited for (its target is NaN until it lands); a barrier that only a part
of the threads reach; a fragment of `mma` in the wrong lane; a product of a warpgroup that nobody waited for, or that
reads what was not fenced. What it does not see: time, registers that do not suffice,
and what ptxas makes of PTX.
"""
