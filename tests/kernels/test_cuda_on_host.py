"""CUDA kernels on the processor: what is correct on a GPU gives the same result, and errors are reported."""

import pytest
import torch

from mergekern.kernels import cuda_module
from tests.support.cuda_on_host import ORDERS, HostCudaModule, kernels

TEXT = r"""
extern __shared__ double shared_memory[];
constexpr unsigned all = 0xffffffffu;
constexpr int most = 64;

extern "C" __global__ void block_sums(const double* values, double* sums, long long count) {
    double sum = 0.0;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += values[blockIdx.x * count + i];
    shared_memory[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) shared_memory[threadIdx.x] += shared_memory[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = shared_memory[0];
}

extern "C" __global__ void exchanges(double* out) {
    const int lane = threadIdx.x % warpSize;
    double* row = out + threadIdx.x * 10;
    row[0] = __shfl_sync(all, 1.0 * lane, 5);
    row[1] = __shfl_sync(all, lane, 5, 8);
    row[2] = __shfl_up_sync(all, 1.0 * lane, 3);
    row[3] = __shfl_down_sync(all, lane, 3u, 16);
    row[4] = __shfl_xor_sync(all, -1LL * lane, 17);
    double sum = threadIdx.x;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(all, sum, step);
    row[5] = sum;
    row[6] = __ballot_sync(all, lane % 3 == 0);
    row[7] = 10 * __any_sync(all, lane == 7) + __all_sync(all, lane == 7);
    row[8] = 100 * __popc(255u) + __clz(1);
    row[9] = max(min(lane, 7LL), 2.5);
}

// What `in_warp` or `in_block` says not to wait for is read too early, or too late.
extern "C" __global__ void reversed(const double* values, double* out, long long in_warp, long long in_block) {
    const unsigned lane = threadIdx.x % 32, first = threadIdx.x - lane;
    shared_memory[threadIdx.x] = values[threadIdx.x];
    if (in_warp) __syncwarp();
    const double mine = shared_memory[first + 31 - lane];
    __syncthreads();
    shared_memory[threadIdx.x] = mine;
    if (in_block) __syncthreads();
    out[threadIdx.x] = shared_memory[(threadIdx.x + 32) % blockDim.x];
}

extern "C" __global__ void last_block(double* out) { out[0] = blockIdx.x; }

extern "C" __global__ void indices(long long* out) {
    const long long block = blockIdx.y * gridDim.x + blockIdx.x;
    out[block * blockDim.x + threadIdx.x] = 1000000 * blockIdx.y + 1000 * blockIdx.x + threadIdx.x;
}

extern "C" __global__ void divergent(double* out, long long kind) {
    const bool few = threadIdx.x < 40;
    if (kind == 0 && few) return;
    if (kind == 1) {
        if (few) __syncthreads();
        else __syncthreads();
    }
    if (kind == 2 && few) __syncwarp();
    if (kind == 3) {
        if (few) out[0] = __shfl_sync(all, 1.0, 0);
        else __syncwarp();
    }
    if (kind == 4) __syncwarp(0xffff);
    __syncthreads();
}

extern "C" __global__ void histogram(const long long* values, unsigned long long* counts, double* before) {
    unsigned* bins = reinterpret_cast<unsigned*>(shared_memory);
    if (threadIdx.x < 4) bins[threadIdx.x] = 0;
    __syncthreads();
    before[threadIdx.x] = atomicAdd(bins + values[threadIdx.x], 1u);
    __syncthreads();
    if (threadIdx.x < 4) atomicAdd(counts + threadIdx.x, static_cast<unsigned long long>(bins[threadIdx.x]));
}

extern "C" __global__ void touch(double* out, long long write, long long read) {
    shared_memory[write] = 1.0;
    out[0] = shared_memory[read];
}

extern "C" __global__ void __launch_bounds__(most) bounded(float* a, const int* b, void* c, double d) { a[0] = *b + d; }
"""


def module(**options):
    return HostCudaModule(TEXT, **options)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param


@pytest.mark.parametrize("flags", [(), ("-DHOST_UCONTEXT",)], ids=["own switch", "ucontext"])
@pytest.mark.parametrize("threads", [1, 32, 64, 1024])
def test_sums_in_shared_memory(order, threads, flags):
    values = torch.randn(3, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = torch.full((3,), torch.nan, dtype=torch.float64)
    module(order=order, flags=flags).launch("block_sums", (3, 1), threads, [values, sums, 700], 8 * threads)
    assert torch.allclose(sums, values.sum(1), rtol=0, atol=1e-12)


def test_exchanges(order):
    out = torch.full((64, 10), torch.nan, dtype=torch.float64)
    module(order=order).launch("exchanges", (1, 1), 64, [out])
    for thread in range(64):
        lane = thread % 32
        assert out[thread].tolist() == [
            5,
            lane // 8 * 8 + 5,
            lane - 3 if lane >= 3 else lane,
            lane + 3 if lane % 16 < 13 else lane,
            -(lane ^ 17),
            sum(range(32)) + 32 * 32 * (thread // 32),
            sum(1 << each for each in range(0, 32, 3)),
            10,
            831,
            max(min(lane, 7), 2.5),
        ]


def test_atomic_additions(order):
    values, counts = torch.arange(96) * 7 % 4, torch.tensor([10, 0, 0, 0])
    before = vector(*[-1.0] * 96)
    module(order=order).launch("histogram", (2, 1), 96, [values, counts, before], 16)
    assert counts.tolist() == [58, 48, 48, 48]
    for bin in range(4):
        assert sorted(before[values == bin].tolist()) == list(range(24))


def test_grid(order):
    out = torch.full((3, 5, 40), -1)
    module(order=order).launch("indices", (5, 3), 40, [out])
    y, x, thread = torch.meshgrid(torch.arange(3), torch.arange(5), torch.arange(40), indexing="ij")
    assert torch.equal(out, 1000000 * y + 1000 * x + thread)


@pytest.mark.parametrize(("in_warp", "in_block"), [(1, 1), (0, 1), (1, 0)])
def test_a_missing_barrier_depends_on_the_order(in_warp, in_block):
    values = torch.arange(128, dtype=torch.float64)
    found = set()
    for order in ORDERS:
        out = torch.full_like(values, torch.nan)
        module(order=order).launch("reversed", (1, 1), 128, [values, out, in_warp, in_block], 1024)
        found.add(str(out.tolist()))
    correct = values.view(4, 32).flip(1).roll(-1, 0).flatten()
    assert (found == {str(correct.tolist())}) == bool(in_warp and in_block)
    assert (len(found) > 1) == (not (in_warp and in_block))


def test_blocks_run_in_the_order(order):
    out = torch.full((1,), -1.0, dtype=torch.float64)
    module(order=order, seed=3).launch("last_block", (5, 1), 32, [out])
    assert order == "shuffled" or out.item() == (4 if order == "forward" else 0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (0, r"thread 0 returned, but thread 40 waits in __syncthreads"),
        (1, r"thread 0 waits in __syncthreads \(.*\), but thread 40 waits in __syncthreads"),
        (2, r"thread 32 waits in __syncwarp \(.*\), but thread 40 waits in __syncthreads"),
        (3, r"thread 32 waits in __shfl_sync \(.*\), but thread 40 waits in __syncwarp"),
        (4, r"gives __syncwarp \(.*\) a mask that is not full"),
    ],
)
def test_divergence(order, kind, message):
    with pytest.raises(RuntimeError, match=rf"^kernel 'divergent', block \(., 0\): .*{message}"):
        module(order=order).launch("divergent", (2, 1), 64, [vector(0), kind])
    module(order=order).launch("divergent", (2, 1), 64, [vector(0), 5])  # an error does not change what runs after it


def test_a_warp_with_missing_threads_exchanges_nothing():
    with pytest.raises(RuntimeError, match="has only 16 threads"):
        module().launch("exchanges", (1, 1), 48, [torch.empty(48, 10, dtype=torch.float64)])


@pytest.mark.parametrize(("index", "size"), [(4, 32), (29055, 32), (0, 0), (29056, 232448), (-1, 32)])
def test_shared_memory_ends(index, size):
    with pytest.raises(RuntimeError, match=rf"'touch'.*: byte {8 * index} of shared memory was written, of {size} "):
        module().launch("touch", (1, 1), 1, [vector(0), index, index], size)


def test_shared_memory_starts_as_nan():
    out = vector(0, 0)
    for read in (0, 3, 4, -1):  # the last two are outside
        for index in (0, 1):
            module().launch("touch", (1, 1), 1, [out[index:], 1 + index, read], 32)
        assert out.isnan().all()


def test_limits():
    assert module().shared_limit == 232448
    with pytest.raises(ValueError, match="33 bytes of shared memory, of 32"):
        module(shared_limit=32).launch("touch", (1, 1), 1, [vector(0), 0, 0], 33)
    arguments = [torch.zeros(1), torch.zeros(1, dtype=torch.int32), vector(0), 0.0]
    with pytest.raises(RuntimeError, match="runs at most 64 threads"):
        module().launch("bounded", (1, 1), 65, arguments)
    for grid, threads in [((1, 1), 1025), ((1, 1), 0), ((0, 1), 32), ((1, 65536), 32)]:
        with pytest.raises(ValueError, match="a GPU has no"):
            module().launch("touch", grid, threads, [vector(0), 0, 0], 8)


def test_arguments():
    a, b, c = torch.zeros(2), torch.ones(2, dtype=torch.int32), torch.zeros(2, dtype=torch.bfloat16)
    module().launch("bounded", (1, 1), 1, [a, b, c, 2.5])
    assert a.tolist() == [3.5, 0.0]
    for wrong in ([a.double(), b, c, 2.5], [a, b.long(), c, 2.5], [a, b, 0, 2.5], [a, b, c, 2], [a, b, c]):
        with pytest.raises(RuntimeError, match=r"'bounded': (argument . has another type|takes 4 arguments, got 3)"):
            module().launch("bounded", (1, 1), 1, wrong)
    with pytest.raises(ValueError, match="contiguous"):
        module().launch("bounded", (1, 1), 1, [torch.zeros(2, 2)[:, 0], b, c, 2.5])
    with pytest.raises(TypeError, match="bool"):
        module().launch("bounded", (1, 1), 1, [a, b, c, True])
    with pytest.raises(ValueError, match="no kernel 'unknown'"):
        module().launch("unknown", (1, 1), 1, [])


def test_texts_that_cannot_run_here():
    with pytest.raises(ValueError, match="double tile"):
        HostCudaModule("// __shared__ int comment;\nvoid f() { __shared__ double tile[32]; }")
    with pytest.raises(RuntimeError, match=r"my\.cu:2:"):
        HostCudaModule('#line 1 "my.cu"\n\nnonsense')
    with pytest.raises(RuntimeError, match="a GPU adds atomically to"):
        HostCudaModule('extern "C" __global__ void wide(long long* x) { atomicAdd(x, 1LL); }')
    with pytest.raises(RuntimeError, match="pointers, long long and double only"):
        HostCudaModule('extern "C" __global__ void narrow(int count) {}')


def test_kernels_of_a_text():
    text = """// __global__ void not_this()
    extern "C" __global__ void one(double* x) {} /* __global__ void nor_this() */
    extern "C" __global__ void __launch_bounds__(256, 2) two(double* x) {}
    extern "C" __global__
    __launch_bounds__(most) void three() {}"""
    assert kernels(text) == {"one": "1024", "two": "256", "three": "most"}


def test_the_kernels_of_the_package_compile():
    package = HostCudaModule()
    for name in kernels(cuda_module.source()):
        with pytest.raises(RuntimeError, match=f"'{name}': takes .* arguments, got 0"):
            package.launch(name, (1, 1), 32, [])
