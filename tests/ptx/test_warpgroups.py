"""Products of a warpgroup: each layout of shared memory, when they land, and what must come before them."""

import numpy as np
import pytest
import torch

from tests.ptx.operands import PtxError
from tests.ptx.snippets import kernel

THREADS, ROWS, COLUMNS, INNER = 128, 64, 16, 8
BYTES = 4 * COLUMNS * 32  # as many as the widest layout takes

# Two words of B for each thread come from `words`, at their places in shared memory; A from registers.
PRODUCT = """
mov.u32 %r1, memory;
ld.param.u64 %d1, [words];
mad.wide.u32 %d1, %r60, {share}, %d1;
mad.lo.u32 %r2, %r60, {share}, %r1;
{words}
{proxy}
{barrier}
ld.param.u64 %d2, [a];
mad.wide.u32 %d2, %r60, 16, %d2;
ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%d2];
{start}
{fence}
mov.u64 %d3, {descriptor};
setp.eq.u32 %p1, 0, 0;
{products}
{wait}
ld.param.u64 %d4, [out];
mad.wide.u32 %d4, %r60, 32, %d4;
{stores}
{end}
"""
SUMS = ", ".join(f"%r{20 + i}" for i in range(8))
ONCE = (
    "wgmma.mma_async.sync.aligned.m64n16k8.f32.tf32.tf32 {{{sums}}}, {{%r10, %r11, %r12, %r13}}, %d3, {scale}, 1, 1;\n"
)


def product(swizzle=1, scales=("%p1",), **changes):
    """Return what a kernel gives for D = C + A·B once for each scale, and the same in NumPy; C is 3."""
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-8, 9, shape).astype(np.float32) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
    width = {0: 16, 1: 128, 2: 64, 3: 32}[swizzle]
    leading, stride = (1024, 128) if swizzle == 0 else (0, 8 * width)
    memory = np.full(BYTES // 4, np.nan, np.float32)
    for k in range(INNER):
        for n in range(COLUMNS):
            row, byte = divmod(n, 8)[0] * stride + n % 8 * width, 4 * k
            if swizzle == 0:
                row, byte = row + byte // 16 * leading, byte % 16
            at = row + byte
            # "Swizzling modes" of the PTX ISA: pieces of 16 bytes change places by the number of 128 bytes they are in.
            at ^= {0: 0, 1: at >> 7 & 7, 2: at >> 7 & 3, 3: at >> 7 & 1}[swizzle] << 4
            memory[at // 4] = b[k, n]
    thread = np.arange(THREADS)
    row, column = thread % 32 // 4 + thread // 32 * 16, thread % 4
    fragments = np.stack([a[row + 8 * (i % 2), column + 4 * (i // 2)] for i in range(4)], axis=1)
    share = BYTES // THREADS
    text = PRODUCT.format(**{
        "share": share,
        "words": "".join(f"ld.global.b32 %r3, [%d1+{at}];\nst.shared.b32 [%r2+{at}], %r3;\n"
                         for at in range(0, share, 4)),
        "proxy": "fence.proxy.async.shared::cta;",
        "barrier": "bar.sync 0;",
        "start": "".join(f"mov.b32 %r{20 + i}, 0f40400000;\n" for i in range(8)),
        "fence": "wgmma.fence.sync.aligned;",
        "descriptor": swizzle << 62 | stride >> 4 << 32 | leading >> 4 << 16,
        "products": "".join(ONCE.format(sums=SUMS, scale=scale) for scale in scales)
        + "wgmma.commit_group.sync.aligned;",
        "wait": "wgmma.wait_group.sync.aligned 0;",
        "stores": "".join(f"st.global.b32 [%d4+{4 * i}], %r{20 + i};\n" for i in range(8)),
        "end": "",
        **changes,
    })  # fmt: skip
    out = torch.zeros(THREADS, 8)
    words, lanes = torch.from_numpy(memory), torch.from_numpy(np.ascontiguousarray(fragments))
    machine = kernel(text, ("a", "words", "out"), THREADS)
    addresses = [tensor.data_ptr() for tensor in (lanes, words, out)]
    machine.launch("snippet", (1, 1), THREADS, addresses, shared_bytes=BYTES)
    found = np.empty((ROWS, COLUMNS), np.float32)
    for i in range(8):
        found[row + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * column + i % 2] = out[:, i].numpy()
    return found, a @ b


@pytest.mark.parametrize("swizzle", range(4), ids=["no swizzle", "128 bytes", "64 bytes", "32 bytes"])
def test_layouts_of_shared_memory(swizzle):
    found, expected = product(swizzle)
    np.testing.assert_array_equal(found, 3 + expected)


def test_products_add_up_or_begin_at_zero():
    found, expected = product(scales=["0", "%p1", "%p1"])
    np.testing.assert_array_equal(found, 3 * expected)


def test_products_land_only_where_they_are_waited_for():
    late = {"wait": "wgmma.wait_group.sync.aligned 1;", "end": "wgmma.wait_group.sync.aligned 0;"}
    assert np.isnan(product(**late)[0]).all()
    for wait in ("", "wgmma.wait_group.sync.aligned 1;"):
        with pytest.raises(PtxError, match="products of a warpgroup are on their way"):
            product(wait=wait)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": ""}, r"without fence\.proxy\.async"),
        ({"barrier": ""}, "a race"),
        ({"proxy": "", "barrier": "bar.sync 0;\nfence.proxy.async.shared::cta;"}, r"without fence\.proxy\.async"),
        ({"fence": ""}, r"written since the last wgmma\.fence"),
        ({"wait": "mov.b32 %r20, 0;\nwgmma.wait_group.sync.aligned 0;"}, "written while a product of it was"),
        ({"descriptor": 1 << 49}, "base offset"),
        ({"descriptor": 1 << 62 | 64 << 32 | 1000}, "shared memory at"),
    ],
)
def test_what_must_come_before_a_product(changes, message):
    with pytest.raises(PtxError, match=message):
        product(**changes)


def test_a_warpgroup_is_whole():
    for text, threads in (("wgmma.fence.sync.aligned;", 32), ("@%p1 wgmma.fence.sync.aligned;", 128)):
        with pytest.raises(PtxError, match="a warpgroup is not whole"):
            kernel(f"setp.lt.u32 %p1, %r60, 32;\n{text}", threads=threads).launch("snippet", (1, 1), threads, [0])
