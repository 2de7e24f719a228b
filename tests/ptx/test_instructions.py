"""What each kind of instruction does, against closed forms."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.ptx.fma import fma
from tests.ptx.snippets import calculate, kernel

NUMBERS = np.arange(32)
FLOATS = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 2.0**-140] * 4, dtype=np.float32)


def draw(dtype, seed):
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal(32).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, 32, dtype=dtype, endpoint=True)


@pytest.mark.parametrize(
    ("instruction", "dtype", "expected"),
    [
        ("add.s32", np.int32, lambda a, b: a + b),
        ("sub.u64", np.uint64, lambda a, b: a - b),
        ("mul.lo.s64", np.int64, lambda a, b: a * b),
        ("mul.hi.u32", np.uint32, lambda a, b: [int(x) * int(y) >> 32 for x, y in zip(a, b, strict=True)]),
        ("mul.hi.u64", np.uint64, lambda a, b: [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]),
        ("div.s32", np.int32, lambda a, b: [int(Fraction(int(x), int(y))) for x, y in zip(a, b, strict=True)]),
        ("rem.s32", np.int32, lambda a, b: [math.fmod(x, y) for x, y in zip(a, b, strict=True)]),
        ("div.u32", np.uint32, lambda a, b: a // b),
        ("min.s64", np.int64, np.minimum),
        ("max.u64", np.uint64, np.maximum),
        ("and.b32", np.uint32, lambda a, b: a & b),
        ("xor.b64", np.uint64, lambda a, b: a ^ b),
        ("add.rn.f64", np.float64, lambda a, b: a + b),
        ("mul.f32", np.float32, lambda a, b: a * b),
        ("div.rn.f64", np.float64, lambda a, b: a / b),
        ("copysign.f64", np.float64, lambda sign, a: np.copysign(a, sign)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_two_operands(instruction, dtype, expected):
    a, b = draw(dtype, 1), draw(dtype, 2)
    found = calculate(f"{instruction} {{out}}, {{a}}, {{b}};", np.dtype(dtype).name, a, b)
    expected = np.array(expected(a, b), dtype=object if dtype == np.uint64 else None)
    np.testing.assert_array_equal(found, expected.astype(dtype))


@pytest.mark.parametrize(
    ("instruction", "dtype", "out", "expected"),
    [
        ("abs.f64", np.float64, "float64", np.abs),
        ("neg.s32", np.int32, "int32", lambda a: -a),
        ("not.b64", np.uint64, "uint64", lambda a: ~a),
        ("sqrt.rn.f64", np.float64, "float64", np.sqrt),
        ("rcp.rn.f64", np.float64, "float64", lambda a: 1 / a),
        ("popc.b32", np.uint32, "uint32", lambda a: [int(x).bit_count() for x in a]),
        ("cvt.f64.f32", np.float32, "float64", lambda a: a),
        ("cvt.rn.f32.f64", np.float64, "float32", lambda a: a),
        ("cvt.s64.s32", np.int32, "int64", lambda a: a),
        ("cvt.u64.u32", np.uint32, "uint64", lambda a: a),
        ("cvt.u32.u64", np.uint64, "uint32", lambda a: a & 0xFFFFFFFF),
        ("cvt.rn.f64.s64", np.int64, "float64", lambda a: a),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_one_operand(instruction, dtype, out, expected):
    a = np.abs(draw(dtype, 3)) if "sqrt" in instruction else draw(dtype, 3)
    found = calculate(f"{instruction} {{out}}, {{a}};", out, a)
    np.testing.assert_array_equal(found, np.array(expected(a)).astype(out))


def test_floats_become_the_nearest_integers_that_there_are():
    a = np.array([0.5, 1.5, -2.5, 2.49, 1e20, -1e20, np.nan, -0.0] * 4, dtype=np.float32)
    found = calculate("cvt.rni.ftz.s32.f32 {out}, {a};", "int32", a)
    assert found[:8].tolist() == [0, 2, -2, 2, 2**31 - 1, -(2**31), 0, 0]


def test_rounding_to_tf32_and_bf16():
    one_third = np.full(32, 1 / 3, np.float32)
    tf32 = calculate("cvt.rna.tf32.f32 {out}, {a};", "float32", one_third)[0]
    assert tf32 == np.float32(round(Fraction(1, 3) * 2**12) / 2**12)
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1.0] * 8, dtype=np.float32)
    bits = calculate("cvt.rn.bf16.f32 {out}, {a};", "uint16", halves).astype(np.uint32) << 16
    assert bits.view(np.float32)[:4].tolist() == [1.0, 1 + 2**-6, -1.0, 1.0]
    assert calculate("cvt.f64.bf16 {out}, {a};", "float64", np.full(32, 0x3FC0, np.uint16))[0] == 1.5


def test_minima_pass_over_nan():
    found = calculate("min.f32 {out}, {a}, {b};", "float32", FLOATS, np.float32(NUMBERS))
    np.testing.assert_array_equal(found, np.fmin(FLOATS, np.float32(NUMBERS)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype):
    generator = np.random.default_rng(0)
    count = 4000
    a, b = (generator.standard_normal(count).astype(dtype) for _ in range(2))
    # Sums that nearly cancel, that are halfway between two numbers, and that are far apart.
    c = (-(a * b) * generator.choice([0, 1, 1 + 2**-20, 2.0**30, 2.0**-30, 2.0**60], count)).astype(dtype)
    scale = generator.choice([1.0, 2.0**-60, 2.0**60], count).astype(dtype)
    a, c = a * scale, c * scale
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    for found, value in zip(fma(a, b, c), exact, strict=True):
        neighbours = (np.nextafter(found, dtype(-np.inf)), np.nextafter(found, dtype(np.inf)))
        distance = abs(Fraction(float(found)) - value)
        others = [abs(Fraction(float(each)) - value) for each in neighbours]
        is_even = int(np.array(found).view(f"u{found.itemsize}")) % 2 == 0
        assert all(distance < other or (distance == other and is_even) for other in others)


def test_fma_of_extreme_numbers():
    a = np.array([1e200, 1e-200, np.inf, np.nan, 0.0, -0.0, 1e160], dtype=np.float64)
    b = np.array([1e200, 1e-200, 1.0, 1.0, 5.0, 0.0, -1e160], dtype=np.float64)
    c = np.array([-np.inf, 1e-320, 1.0, 1.0, -0.0, -0.0, np.inf], dtype=np.float64)
    found = fma(a, b, c)
    np.testing.assert_array_equal(found, [-np.inf, 1e-320, np.inf, np.nan, 0.0, -0.0, np.inf])
    assert np.signbit(found).tolist() == [True, False, False, False, False, True, False]


def test_fma_instruction():
    a, b, c = draw(np.float64, 1), draw(np.float64, 2), draw(np.float64, 3)
    found = calculate("fma.rn.f64 {out}, {a}, {b}, {c};", "float64", a, b, c)
    np.testing.assert_array_equal(found, fma(a, b, c))
    assert (found != a * b + c).any()


def test_wide_products_and_carries():
    a, b, c = draw(np.uint32, 1), draw(np.uint32, 2), draw(np.uint64, 3)
    found = calculate("mad.wide.u32 {out}, {a}, {b}, {c};", "uint64", a, b, c)
    np.testing.assert_array_equal(found, a.astype(np.uint64) * b + c)
    # The high word of a·b + c, by way of the carry of the low one.
    text = "cvt.u32.u64 %r10, {c};\nshr.u64 %d10, {c}, 32;\ncvt.u32.u64 %r11, %d10;\n"
    text += "mad.lo.cc.u32 %r12, {a}, {b}, %r10;\nmadc.hi.u32 {out}, {a}, {b}, %r11;"
    c >>= np.uint64(1)  # no carry out of 64 bits
    found = calculate(text, "uint32", a >> 1, b, c)
    expected = [(int(x) * int(y) + int(z)) >> 32 for x, y, z in zip(a >> 1, b, c, strict=True)]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.uint64).astype(np.uint32))


def test_shifts_by_more_than_the_width():
    a, by = draw(np.int32, 1), np.uint32([0, 1, 31, 32, 33, 200, 2**31, 5] * 4)
    wide = [min(int(x), 63) for x in by]
    for instruction, expected in (
        ("shl.b32", [int(np.uint32(x)) << y & 0xFFFFFFFF for x, y in zip(a.view(np.uint32), wide, strict=True)]),
        ("shr.u32", [int(x) >> y for x, y in zip(a.view(np.uint32), wide, strict=True)]),
        ("shr.s32", [int(x) >> y & 0xFFFFFFFF for x, y in zip(a, wide, strict=True)]),
    ):
        found = calculate(f"{instruction} {{out}}, {{a}}, {{b}};", "uint32", a, by)
        np.testing.assert_array_equal(found, np.array(expected, dtype=np.uint32))
    rotated = calculate("shf.l.wrap.b32 {out}, {a}, {a}, {b};", "uint32", a, by)
    bits = [f"{int(x):032b}" for x in a.view(np.uint32)]
    assert rotated.tolist() == [int(x[y % 32 :] + x[: y % 32], 2) for x, y in zip(bits, by.astype(int), strict=True)]


def test_bit_fields():
    a = draw(np.uint32, 1)
    first, count = np.uint32([0, 4, 28, 31, 8, 0, 3, 16] * 4), np.uint32([8, 4, 8, 1, 0, 32, 13, 16] * 4)
    unsigned = [int(x) >> int(f) & ((1 << int(n)) - 1) for x, f, n in zip(a, first, count, strict=True)]
    assert calculate("bfe.u32 {out}, {a}, {b}, {c};", "uint32", a, first, count).tolist() == unsigned
    signed = calculate("bfe.s32 {out}, {a}, {b}, {c};", "int32", a, first, count)
    for x, f, n, found in zip(a.astype(int), first.astype(int), count.astype(int), signed, strict=True):
        inside = min(n, 32 - f)  # what is beyond the last bit is the sign
        field = (x >> f) & ((1 << inside) - 1)
        assert found == (field - (1 << inside) if inside and field >> (inside - 1) else field)


def test_permuted_bytes():
    a, b = np.full(32, 0x33221180, np.uint32), np.full(32, 0x77665544, np.uint32)
    found = calculate("prmt.b32 {out}, {a}, {b}, {c};", "uint32", a, b, np.full(32, 0x8417, np.uint32))
    assert hex(found[0]) == "0xff441177"  # the lowest selector first; 8 is the sign of byte 0


def test_comparisons_with_nan():
    a, b = FLOATS, np.float32([0, 0, 1, 1, np.inf, 1, np.nan, np.nan] * 4)
    for name, expected in (
        ("eq", a == b), ("neu", (a != b) | np.isnan(a) | np.isnan(b)), ("lt", a < b), ("geu", ~(a < b)),
        ("num", ~np.isnan(a) & ~np.isnan(b)), ("nan", np.isnan(a) | np.isnan(b)),
    ):  # fmt: skip
        text = f"setp.{name}.f32 %p1, {{a}}, {{b}};\nselp.b32 {{out}}, 1, 0, %p1;"
        assert calculate(text, "uint32", a, b).tolist() == expected.astype(int).tolist(), name
    text = "setp.gt.f32 %p2, {b}, 0f00000000;\nsetp.lt.and.f32 %p1, {a}, {b}, !%p2;\nselp.b32 {out}, 1, 0, %p1;"
    assert calculate(text, "uint32", a, b).tolist() == ((a < b) & ~(b > 0)).astype(int).tolist()


def test_tables_in_global_memory():
    table = ".global .align 4 .b8 table[8] = {1, 0, 0, 0, 7, 1, 0, 0};\n.extern .shared"
    text = "mov.u64 %d1, table;\nld.global.b32 %r1, [%d1+4];\nld.param.u64 %d2, [out];\nst.global.b32 [%d2], %r1;"
    out = torch.zeros(1, dtype=torch.int32)
    kernel(text, head=table).launch("snippet", (1, 1), 32, [out.data_ptr()])
    assert out.item() == 7 + 256


def test_packing():
    a, b = draw(np.uint32, 1), draw(np.uint32, 2)
    found = calculate("mov.b64 {out}, {{{a}, {b}}};", "uint64", a, b)
    np.testing.assert_array_equal(found, b.astype(np.uint64) << 32 | a)
    found = calculate("mov.b32 {{_, %h5}}, {a};\ncvt.u32.u16 {out}, %h5;", "uint32", a)
    np.testing.assert_array_equal(found, a >> 16)


def test_a_guard_leaves_the_other_threads_as_they_are():
    a = np.uint32(NUMBERS)
    text = "mov.u32 {out}, 7;\nsetp.lt.u32 %p1, {a}, 10;\n@!%p1 add.u32 {out}, {a}, 1;"
    assert calculate(text, "uint32", a).tolist() == [7] * 10 + [number + 1 for number in range(10, 32)]


def test_threads_part_and_meet():
    """A loop of as many turns as the number of the thread."""
    text = "mov.u32 {out}, 0;\nmov.u32 %r5, {a};\nLOOP:\nsetp.eq.u32 %p1, %r5, 0;\n@%p1 bra END;\n"
    text += "add.u32 {out}, {out}, %r5;\nsub.u32 %r5, %r5, 1;\nbra.uni LOOP;\nEND:"
    assert calculate(text, "uint32", np.uint32(NUMBERS)).tolist() == [n * (n + 1) // 2 for n in range(32)]


@pytest.mark.parametrize(
    ("mode", "other", "clamp", "expected"),
    [
        ("bfly", "3", "31", lambda lane: lane ^ 3),
        ("idx", "5", "31", lambda lane: 5),
        ("up", "2", "0", lambda lane: lane - 2 if lane >= 2 else lane),
        ("down", "30", "31", lambda lane: lane + 30 if lane < 2 else lane),
        ("idx", "1", "0x181f", lambda lane: lane // 8 * 8 + 1),  # segments of eight lanes
    ],
)
def test_exchanges(mode, other, clamp, expected):
    text = f"shfl.sync.{mode}.b32 {{out}}, {{a}}, {other}, {clamp}, -1;"
    found = calculate(text, "uint32", np.uint32(np.arange(64) + 100), threads=64)
    assert found.tolist() == [100 + warp * 32 + expected(lane) for warp in range(2) for lane in range(32)]


def test_sums_of_a_warp():
    found = calculate("redux.sync.add.s32 {out}, {a}, -1;", "int32", np.int32(np.arange(64) - 20), threads=64)
    assert found.tolist() == [sum(range(-20, 12))] * 32 + [sum(range(12, 44))] * 32


def product(shape, kinds, counts, dtype):
    """Return D of an mma of random fragments, and A·B + C of the matrices that they are parts of.

    Args:
        shape: rows and columns of C, and columns of A.
        kinds: types of D, A, B and C.
        counts: elements of A, B and C that each lane has.
        dtype: of all.
    """
    rows, columns, inner = shape
    generator = np.random.default_rng(1)
    # What is exact in tf32 and in every order of sums.
    sizes = (rows, inner), (inner, columns), (rows, columns)
    a, b, c = (generator.integers(-8, 9, size).astype(dtype) for size in sizes)
    of_c = [(NUMBERS // 4 + 8 * (i // 2), 2 * (NUMBERS % 4) + i % 2) for i in range(counts[2])]
    fragments = [
        a[NUMBERS // 4 + 8 * (i % (rows // 8)), NUMBERS % 4 + 4 * (i // (rows // 8))] for i in range(counts[0])
    ]
    fragments += [b[NUMBERS % 4 + 4 * i, NUMBERS // 4] for i in range(counts[1])]
    fragments += [c[place] for place in of_c]
    lanes = torch.from_numpy(np.stack(fragments, axis=1))
    out = torch.zeros(32, counts[2], dtype=lanes.dtype)
    width, letter = np.dtype(dtype).itemsize, "r" if dtype == np.float32 else "d"
    names = [f"%{letter}{20 + i}" for i in range(lanes.shape[1])]
    results = [f"%{letter}{2 + i}" for i in range(counts[2])]
    text = f"ld.param.u64 %d1, [a];\nmad.wide.u32 %d1, %r60, {lanes.shape[1] * width}, %d1;\n"
    text += "".join(f"ld.global.b{8 * width} {name}, [%d1+{i * width}];\n" for i, name in enumerate(names))
    ends = np.cumsum(counts)
    parts = results, names[: ends[0]], names[ends[0] : ends[1]], names[ends[1] :]
    operands = ", ".join("{" + ", ".join(part) + "}" for part in parts)
    text += f"mma.sync.aligned.m{rows}n{columns}k{inner}.row.col.{kinds} {operands};\n"
    text += f"ld.param.u64 %d1, [out];\nmad.wide.u32 %d1, %r60, {counts[2] * width}, %d1;\n"
    text += "".join(f"st.global.b{8 * width} [%d1+{i * width}], {name};\n" for i, name in enumerate(results))
    kernel(text, ("a", "out")).launch("snippet", (1, 1), 32, [lanes.data_ptr(), out.data_ptr()])
    found = np.empty((rows, columns), dtype)
    for i, place in enumerate(of_c):
        found[place] = out[:, i].numpy()
    return found, a @ b + c


@pytest.mark.parametrize(
    ("shape", "kinds", "counts", "dtype"),
    [
        ((8, 8, 4), "f64.f64.f64.f64", (1, 1, 2), np.float64),
        ((16, 8, 8), "f64.f64.f64.f64", (4, 2, 4), np.float64),
        ((16, 8, 16), "f64.f64.f64.f64", (8, 4, 4), np.float64),
        ((16, 8, 8), "f32.tf32.tf32.f32", (4, 2, 4), np.float32),
    ],
    ids=str,
)
def test_products_of_matrices(shape, kinds, counts, dtype):
    found, expected = product(shape, kinds, counts, dtype)
    np.testing.assert_array_equal(found, expected)
