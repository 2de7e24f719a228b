"""What a GPU leaves undefined is an error: accesses, races, copies that nobody waited for, barriers."""

import pytest
import torch

from tests.ptx.program import PtxError
from tests.ptx.snippets import kernel

# Each thread writes its number to shared memory and reads that of its neighbour.
NEIGHBOUR = """
mov.u32 %r1, memory;
mad.lo.u32 %r2, %r60, 4, %r1;
st.shared.b32 [%r2], %r60;
{barrier}
xor.b32 %r3, %r60, {partner};
mad.lo.u32 %r4, %r3, 4, %r1;
ld.shared.b32 %r5, [%r4];
ld.param.u64 %d1, [out];
mad.wide.u32 %d1, %r60, 4, %d1;
st.global.b32 [%d1], %r5;
"""


def neighbours(barrier, partner, threads=64):
    out = torch.zeros(threads, dtype=torch.int32)
    machine = kernel(NEIGHBOUR.format(barrier=barrier, partner=partner), threads=threads)
    machine.launch("snippet", (1, 1), threads, [out.data_ptr()], shared_bytes=4 * threads)
    return out.tolist()


def test_a_barrier_parts_accesses():
    assert neighbours("bar.sync 0;", 32) == [thread ^ 32 for thread in range(64)]
    assert neighbours("bar.warp.sync -1;", 1) == [thread ^ 1 for thread in range(64)]


@pytest.mark.parametrize(("barrier", "partner"), [("", 32), ("", 1), ("bar.warp.sync -1;", 32)])
def test_a_missing_barrier_is_a_race(barrier, partner):
    with pytest.raises(PtxError, match=r"a race: thread \d+ reads shared memory.*\n.*ld\.shared"):
        neighbours(barrier, partner)


@pytest.mark.parametrize("barrier", ["", "bar.sync 0;"])
def test_reads_of_several_threads_before_a_write(barrier):
    """All read what thread 40 writes afterwards; a thread of its own warp reads it last."""
    text = "mov.u32 %r1, memory;\nsetp.eq.u32 %p1, %r60, 0;\n@%p1 st.shared.b32 [%r1], %r60;\nbar.sync 0;\n"
    text += "ld.shared.b32 %r2, [%r1];\n" + barrier + "\nsetp.eq.u32 %p2, %r60, 40;\n@%p2 st.shared.b32 [%r1], %r60;"
    machine = kernel(text, threads=64)
    if barrier:
        machine.launch("snippet", (1, 1), 64, [0], shared_bytes=16)
        return
    with pytest.raises(PtxError, match=r"a race: thread 40 writes"):
        machine.launch("snippet", (1, 1), 64, [0], shared_bytes=16)


def test_two_threads_write_different_values_at_once():
    text = "mov.u32 %r1, memory;\nst.shared.b32 [%r1], {value};"
    kernel(text.format(value="5")).launch("snippet", (1, 1), 32, [0], shared_bytes=16)
    with pytest.raises(PtxError, match="two threads write different values"):
        kernel(text.format(value="%r60")).launch("snippet", (1, 1), 32, [0], shared_bytes=16)


def test_additions_do_not_race_with_each_other():
    text = "mov.u32 %r1, memory;\nsetp.eq.u32 %p1, %r60, 0;\nmov.u32 %r2, 0;\n@%p1 st.shared.b32 [%r1], %r2;\n"
    text += "bar.sync 0;\natom.shared.add.u32 %r3, [%r1], 2;\n{barrier}\nld.shared.b32 %r4, [%r1];\n"
    text += "ld.param.u64 %d1, [out];\n@%p1 st.global.b32 [%d1], %r4;"
    out = torch.zeros(1, dtype=torch.int32)
    kernel(text.format(barrier="bar.sync 0;"), threads=64).launch(
        "snippet", (1, 1), 64, [out.data_ptr()], shared_bytes=16
    )
    assert out.item() == 128
    with pytest.raises(PtxError, match="a race"):
        kernel(text.format(barrier=""), threads=64).launch("snippet", (1, 1), 64, [out.data_ptr()], shared_bytes=16)


COPY = """
ld.param.u64 %d1, [source];
mad.wide.u32 %d1, %r60, 4, %d1;
mov.u32 %r1, memory;
mad.lo.u32 %r2, %r60, 4, %r1;
cp.async.ca.shared.global [%r2], [%d1], 4, {bytes};
cp.async.commit_group;
{wait}
ld.shared.b32 %r3, [%r2];
ld.param.u64 %d2, [out];
mad.wide.u32 %d2, %r60, 4, %d2;
st.global.b32 [%d2], %r3;
{end}
"""


def copied(wait, end="", size=4):
    source, out = torch.arange(32, dtype=torch.float32), torch.zeros(32)
    machine = kernel(COPY.format(wait=wait, end=end, bytes=size), ("source", "out"))
    machine.launch("snippet", (1, 1), 32, [source.data_ptr(), out.data_ptr()], shared_bytes=128)
    return out


def test_copies_land_only_where_they_are_waited_for():
    assert torch.equal(copied("cp.async.wait_group 0;"), torch.arange(32.0))
    assert torch.equal(copied("cp.async.wait_group 0;", size=0), torch.zeros(32))
    assert copied("cp.async.wait_group 1;", "cp.async.wait_group 0;").isnan().all()
    with pytest.raises(PtxError, match="copies are on their way"):
        copied("cp.async.wait_group 1;")


@pytest.mark.parametrize(
    ("offset", "message"),
    [(0, None), (128, "is of no tensor"), (-4, "is of no tensor"), (2, "not aligned")],
)
def test_accesses_of_global_memory(offset, message):
    text = f"ld.param.u64 %d1, [out];\nsetp.eq.u32 %p1, %r60, 3;\n@%p1 st.global.b32 [%d1+{offset}], %r60;"
    storage = torch.zeros(32, dtype=torch.int32)
    if message is None:
        kernel(text).launch("snippet", (1, 1), 32, [storage.data_ptr()])
        assert storage[0] == 3
        return
    with pytest.raises(PtxError, match=message):
        kernel(text).launch("snippet", (1, 1), 32, [storage.data_ptr()])


def test_a_vector_must_be_aligned_as_a_whole():
    out = torch.zeros(8, dtype=torch.int32)
    text = "ld.param.u64 %d1, [out];\nst.global.v2.b32 [%d1+{offset}], {{%r60, %r60}};"
    text = "setp.eq.u32 %p1, %r60, 0;\n" + text.replace("st.", "@%p1 st.")
    kernel(text.format(offset=8)).launch("snippet", (1, 1), 32, [out.data_ptr()])
    with pytest.raises(PtxError, match="not aligned"):
        kernel(text.format(offset=4)).launch("snippet", (1, 1), 32, [out.data_ptr()])


def test_shared_memory_ends_and_starts_as_nan():
    text = (
        "mov.u32 %r1, memory;\nld.shared.b32 %r2, [%r1+{offset}];\nld.param.u64 %d1, [out];\nst.global.b32 [%d1], %r2;"
    )
    out = torch.zeros(1)
    kernel(text.format(offset=12)).launch("snippet", (1, 1), 32, [out.data_ptr()], shared_bytes=16)
    assert out.isnan().all()
    with pytest.raises(PtxError, match="shared memory at 16, of 16 bytes"):
        kernel(text.format(offset=16)).launch("snippet", (1, 1), 32, [out.data_ptr()], shared_bytes=16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("setp.lt.u32 %p1, %r60, 5;\n@%p1 bar.sync 0;", "skip a barrier"),
        ("setp.lt.u32 %p1, %r60, 5;\n@%p1 bra ON;\nbar.sync 0;\nON:", "have ended while others wait"),
        ("setp.lt.u32 %p1, %r60, 5;\n@%p1 bra ON;\nbar.sync 0;\nON:\nbar.sync 0;", "wait at different barriers"),
        ("setp.lt.u32 %p1, %r60, 5;\n@%p1 shfl.sync.bfly.b32 %r1, %r60, 1, 31, -1;", "a part of a warp is missing"),
        ("setp.lt.u32 %p1, %r60, 5;\n@%p1 bar.warp.sync -1;", "a part of a warp is missing"),
    ],
)
def test_barriers_that_a_part_reaches(text, message):
    with pytest.raises(PtxError, match=message):
        kernel(text).launch("snippet", (1, 1), 32, [0], shared_bytes=16)


def test_what_is_not_known():
    with pytest.raises(PtxError, match=r"does not know the instruction 'tcgen05"):
        kernel("tcgen05.fence.before_thread_sync;").launch("snippet", (1, 1), 32, [0])
    with pytest.raises(PtxError, match=r"at most 32"):
        kernel("").launch("snippet", (1, 1), 64, [0])
    with pytest.raises(PtxError, match="takes 1 arguments, not 2"):
        kernel("").launch("snippet", (1, 1), 32, [0, 0])
