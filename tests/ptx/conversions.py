"""Moves and conversions of values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.block import Block, Step
from tests.ptx.memory import LOCAL, SHARED
from tests.ptx.operands import UNSIGNED, Group, Values, elements, type_of
from tests.ptx.program import Instruction, Kernel
from tests.ptx.steps import operation, unknown

_BITS32 = np.dtype(np.uint32)


@operation("mov")
def _move(instruction: Instruction, kernel: Kernel) -> Step:
    target, source = instruction.operands
    kind = instruction.modifiers[0]
    if isinstance(target, Group) or isinstance(source, Group):
        return _repack(instruction)
    dtype = np.dtype(bool) if kind == "pred" else np.dtype(UNSIGNED[type_of(kind).itemsize * 8])

    def step(block: Block, mask: Values | None) -> None:
        target.write(block, source.read(block, dtype), mask)

    return step


def _repack(instruction: Instruction) -> Step:
    """The parts of a vector are the parts of one register, the lowest first."""
    target, source = instruction.operands
    whole = np.dtype(UNSIGNED[type_of(instruction.modifiers[0]).itemsize * 8])
    parts = elements(target if isinstance(target, Group) else source)
    bits = 8 * whole.itemsize // len(parts)
    part = np.dtype(UNSIGNED[bits])

    def unpack(block: Block, mask: Values | None) -> None:
        values = source.read(block, whole)
        for place, each in enumerate(parts):
            each.write(block, (values >> whole.type(place * bits)).astype(part), mask)

    def pack(block: Block, mask: Values | None) -> None:
        values = np.zeros(block.threads, whole)
        for place, each in enumerate(parts):
            values |= each.read(block, part).astype(whole) << whole.type(place * bits)
        target.write(block, values, mask)

    return unpack if isinstance(target, Group) else pack


@operation("cvta")
def _generic_address(instruction: Instruction, kernel: Kernel) -> Step:
    target, source = instruction.operands
    tags = {"shared": SHARED, "local": LOCAL, "global": 0}
    tag = next((np.uint64(tags[each]) for each in instruction.modifiers if each in tags), None)
    if tag is None:
        raise unknown(instruction)

    def step(block: Block, mask: Values | None) -> None:
        address = source.read(block, np.dtype(np.uint64))
        target.write(block, address - tag if "to" in instruction.modifiers else address + tag, mask)

    return step


@operation("cvt")
def _convert(instruction: Instruction, kernel: Kernel) -> Step:
    *how, to, source_type = instruction.modifiers
    target, source = instruction.operands
    modes = {*how} - {"ftz"}
    if modes - {"rn", "rna", "rni", "rzi", "rz", "rmi", "rpi"}:
        raise unknown(instruction)

    def step(block: Block, mask: Values | None) -> None:
        if source_type == "bf16":
            values = (source.read(block, np.dtype(np.uint16)).astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = source.read(block, type_of(source_type))
        target.write(block, _converted(values, to, modes), mask)

    return step


def _converted(values: Values, to: str, modes: set[str]) -> Values:
    if to == "tf32":
        return _nearest_tf32(values)
    if to == "bf16":
        return _nearest_bf16(values)
    dtype = type_of(to)
    if values.dtype.kind == "f" and dtype.kind != "f":
        rounded = _ROUND[next(iter(modes))](values)
        limits = np.iinfo(dtype)
        # A GPU gives the nearest integer that there is, and zero for NaN.
        inside = np.clip(np.nan_to_num(rounded, nan=0.0), float(limits.min), float(limits.max))
        found = np.where(inside >= float(limits.max), limits.max, inside.astype(np.float64).astype(dtype))
        return found.astype(dtype)
    return values.astype(dtype)


_ROUND: dict[str, Callable[[Values], Values]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _nearest_tf32(values: Values) -> Values:
    """Round float32 to 10 bits after the point, halves away from zero."""
    bits = values.astype(np.float32, copy=False).view(_BITS32).astype(np.uint64)
    size = bits & np.uint64(0x7FFFFFFF)
    rounded = np.where(size >= 0x7F800000, size, (size + np.uint64(0x1000)) & np.uint64(0xFFFFE000))
    return (rounded | (bits & np.uint64(0x80000000))).astype(np.uint32)


def _nearest_bf16(values: Values) -> Values:
    """Round float32 to 7 bits after the point, halves to even; the bits, uint16."""
    single = values.astype(np.float32, copy=False)
    bits = single.view(_BITS32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(single), np.uint64(0x7FFF), rounded).astype(np.uint16)
