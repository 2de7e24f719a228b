"""Arithmetic, logic, comparisons and bit fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.block import Block, Step
from tests.ptx.fma import fma
from tests.ptx.operands import SIGNED, UNSIGNED, Values, type_of
from tests.ptx.program import Instruction, Kernel
from tests.ptx.steps import operation, unknown

_PREDICATE = np.dtype(bool)
# Flushing subnormal numbers to zero (.ftz) is not done: results differ only where they are below 1e-38.
_IGNORED = {"rn", "lo", "ftz", "approx", "wrap"}


def _flags(instruction: Instruction) -> set[str]:
    return set(instruction.modifiers[:-1]) - _IGNORED


def _calculate(instruction: Instruction, function: Callable[..., Values], out: np.dtype[Any] | None = None) -> Step:
    """Return the step that writes a function of all operands but the first, each of the instruction's type."""
    if _flags(instruction):
        raise unknown(instruction)
    kind = instruction.modifiers[-1]
    dtype = _PREDICATE if kind == "pred" else type_of(kind)
    target, *sources = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        target.write(block, function(*(source.read(block, dtype) for source in sources)), mask)

    return step


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the integer type of twice the width."""
    return np.dtype((SIGNED if dtype.kind == "i" else UNSIGNED)[16 * dtype.itemsize])


def _high(a: Values, b: Values) -> Values:
    """Return the high half of the product of integers."""
    bits = 8 * a.dtype.itemsize
    if bits <= 32:
        wide = _wide(a.dtype)
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    products = [(int(x) * int(y)) >> bits for x, y in zip(a, b, strict=True)]
    return np.array(products, dtype=object).astype(a.dtype)


def _quotient(a: Values, b: Values) -> Values:
    """Return a / b: of integers without the fraction, and all ones where b is zero."""
    if a.dtype.kind == "f":
        return a / b
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    towards_zero = (a % safe != 0) & ((a < 0) != (safe < 0)) if a.dtype.kind == "i" else np.zeros(len(a), bool)
    return np.where(b == 0, np.array(-1).astype(a.dtype), quotient + towards_zero).astype(a.dtype)


def _remainder(a: Values, b: Values) -> Values:
    """Return a − b·quotient."""
    return a - b * _quotient(a, b)


def _negative(a: Values) -> Values:
    return -a if a.dtype.kind == "f" else (~a + a.dtype.type(1))


def _least(a: Values, b: Values) -> Values:
    return np.fmin(a, b)


def _most(a: Values, b: Values) -> Values:
    return np.fmax(a, b)


_FUNCTIONS: dict[str, Callable[..., Values]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "fma": fma,
    "div": _quotient,
    "rem": _remainder,
    "abs": np.abs,
    "neg": _negative,
    "min": _least,
    "max": _most,
    "sqrt": np.sqrt,
    "rcp": lambda a: a.dtype.type(1) / a,
    "copysign": lambda sign, a: np.copysign(a, sign),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
}


@operation(*_FUNCTIONS)
def _simple(instruction: Instruction, kernel: Kernel) -> Step:
    flags, name = _flags(instruction), instruction.name
    if "wide" in flags:
        return _widening(instruction)
    if "cc" in flags:
        return _low_with_carry(instruction)
    if name == "mul" and flags == {"hi"}:
        plain = Instruction(name, instruction.modifiers[1:], instruction.operands, None, instruction.text)
        return _calculate(plain, _high)
    return _calculate(instruction, _FUNCTIONS[name])


def _widening(instruction: Instruction) -> Step:
    """mul.wide and mad.wide: factors of one width, and a result of twice that."""
    dtype = type_of(instruction.modifiers[-1])
    wide = _wide(dtype)
    target, a, b, *rest = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        product = a.read(block, dtype).astype(wide) * b.read(block, dtype).astype(wide)
        target.write(block, product + rest[0].read(block, wide) if rest else product, mask)

    return step


def _low_with_carry(instruction: Instruction) -> Step:
    """mad.lo.cc.u32 and add.cc.u32: what the sum has beyond 32 bits is kept for what follows."""
    if instruction.modifiers[-1] not in ("u32", "s32"):
        raise unknown(instruction)
    target, *sources = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        values = [source.read(block, np.dtype(np.uint32)).astype(np.uint64) for source in sources]
        low = (values[0] * values[1]) & np.uint64(0xFFFFFFFF) if instruction.name == "mad" else values[0]
        total = low + values[-1]
        block.carry = (total >> np.uint64(32)).astype(np.uint32)
        target.write(block, total.astype(np.uint32), mask)

    return step


@operation("madc")
def _high_with_carry(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.modifiers != ("hi", "u32"):
        raise unknown(instruction)
    target, *sources = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        a, b, c = (source.read(block, np.dtype(np.uint32)) for source in sources)
        assert block.carry is not None
        target.write(block, _high(a, b) + c + block.carry, mask)

    return step


@operation("shl", "shr")
def _shift(instruction: Instruction, kernel: Kernel) -> Step:
    dtype = type_of(instruction.modifiers[-1])
    bits = 8 * dtype.itemsize
    target, value, amount = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        values, by = value.read(block, dtype), amount.read(block, np.dtype(np.uint32))
        most = np.minimum(by, bits - 1).astype(dtype)
        if instruction.name == "shl":
            shifted = np.where(by >= bits, dtype.type(0), values << most)
        elif dtype.kind == "i":
            shifted = values >> most  # the sign fills what is beyond
        else:
            shifted = np.where(by >= bits, dtype.type(0), values >> most)
        target.write(block, shifted.astype(dtype), mask)

    return step


@operation("shf")
def _funnel_shift(instruction: Instruction, kernel: Kernel) -> Step:
    direction, mode, _ = instruction.modifiers
    if mode != "wrap":
        raise unknown(instruction)
    target, *sources = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        low, high, by = (source.read(block, np.dtype(np.uint32)).astype(np.uint64) for source in sources)
        both, by = (high << np.uint64(32)) | low, by & np.uint64(31)
        found = (both << by) >> np.uint64(32) if direction == "l" else both >> by
        target.write(block, found.astype(np.uint32), mask)

    return step


@operation("bfe")
def _bit_field(instruction: Instruction, kernel: Kernel) -> Step:
    dtype = type_of(instruction.modifiers[-1])
    if dtype.itemsize != 4:
        raise unknown(instruction)
    target, *sources = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        value, first, count = (source.read(block, np.dtype(np.uint32)).astype(np.uint64) for source in sources)
        first = np.minimum(first & np.uint64(255), np.uint64(32))
        count = np.minimum(count & np.uint64(255), np.uint64(32) - first)  # the bits that there are
        ones = (np.uint64(1) << count) - np.uint64(1)
        field = (value >> first) & ones
        if dtype.kind == "i":
            # What is beyond the last bit is the sign of the field, or that of the value where the field is outside.
            last = np.where(first >= 32, np.uint64(31), first + np.maximum(count, np.uint64(1)) - np.uint64(1))
            is_negative = ((value >> last) & np.uint64(1) == 1) & ((count > 0) | (first >= 32))
            field = np.where(is_negative, field | ~ones, field)
        target.write(block, field.astype(np.uint32), mask)

    return step


@operation("prmt")
def _permute_bytes(instruction: Instruction, kernel: Kernel) -> Step:
    target, *sources = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        low, high, selector = (source.read(block, np.dtype(np.uint32)).astype(np.uint64) for source in sources)
        both, found = (high << np.uint64(32)) | low, np.zeros(block.threads, np.uint64)
        for place in range(4):
            chosen = (selector >> np.uint64(4 * place)) & np.uint64(15)
            byte = (both >> ((chosen & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            found |= np.where(chosen & np.uint64(8), sign, byte) << np.uint64(8 * place)
        target.write(block, found.astype(np.uint32), mask)

    return step


@operation("selp")
def _select(instruction: Instruction, kernel: Kernel) -> Step:
    dtype = np.dtype(UNSIGNED[8 * type_of(instruction.modifiers[-1]).itemsize])
    target, yes, no, predicate = instruction.operands

    def step(block: Block, mask: Values | None) -> None:
        chosen = np.where(predicate.read(block, _PREDICATE), yes.read(block, dtype), no.read(block, dtype))
        target.write(block, chosen, mask)

    return step


_COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_JOINS: dict[str, Callable[[Values, Values], Values]] = {
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor,
}  # fmt: skip


@operation("setp")
def _compare(instruction: Instruction, kernel: Kernel) -> Step:
    comparison, *joins, kind = (each for each in instruction.modifiers if each != "ftz")
    dtype = type_of(kind)
    target, a, b, *others = instruction.operands
    if len(joins) != len(others) or not {*joins} <= _JOINS.keys():
        raise unknown(instruction)

    def step(block: Block, mask: Values | None) -> None:
        found = _compared(comparison, a.read(block, dtype), b.read(block, dtype))
        for join, other in zip(joins, others, strict=True):
            found = _JOINS[join](found, other.read(block, _PREDICATE))
        target.write(block, found, mask)

    return step


def _compared(comparison: str, a: Values, b: Values) -> Values:
    """Compare; of floats, a NaN makes it false, and true where the name ends with u (unordered)."""
    if a.dtype.kind != "f":
        return _COMPARISONS[comparison](a, b)
    is_nan = np.isnan(a) | np.isnan(b)
    if comparison in ("num", "nan"):
        return is_nan if comparison == "nan" else ~is_nan
    if comparison in _COMPARISONS:
        return _COMPARISONS[comparison](a, b) & ~is_nan
    return _COMPARISONS[comparison.removesuffix("u")](a, b) | is_nan
