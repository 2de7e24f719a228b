"""What an instruction reads and writes, one value a thread: registers, constants, addresses."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.ptx.block import Block

UNSIGNED: Mapping[int, type[np.unsignedinteger[Any]]] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: Mapping[int, type[np.signedinteger[Any]]] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS: Mapping[int, type[np.floating[Any]]] = {16: np.float16, 32: np.float32, 64: np.float64}
Values = np.ndarray[Any, Any]

_RANGE = re.compile(r"(%?[\w$]+)<\d+>")
_INTEGER = re.compile(r"-?(?:0[xX][0-9A-Fa-f]+|\d+)U?$")
_ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\d+))?\s*\]$")
_SPECIAL = re.compile(r"%(?:(?:n?tid|n?ctaid)\.[xyz]|laneid)$")


def type_of(name: str) -> np.dtype[Any]:
    """Return the NumPy type of one of PTX, such as "s32"; bits are unsigned.

    >>> type_of("b64"), type_of("f32")
    (dtype('uint64'), dtype('float32'))
    """
    kinds = {"u": UNSIGNED, "b": UNSIGNED, "s": SIGNED, "f": FLOATS}
    return np.dtype(kinds[name[0]][int(name[1:])])


def as_type(bits: Values, dtype: np.dtype[Any]) -> Values:
    """Return the low bits of registers as a type; where it is wider than they are, with zeros before them."""
    if bits.itemsize != dtype.itemsize:
        bits = bits.astype(UNSIGNED[8 * dtype.itemsize])
    return bits.view(dtype)


class PtxError(Exception):
    """A text or an instruction that this machine does not know, or behaviour that a GPU leaves undefined."""


class Operand:
    """What an instruction reads or writes."""

    def read(self, block: Block, dtype: np.dtype[Any]) -> Values:
        """Return the values of all threads as a type."""
        raise PtxError(f"{self} is not read")

    def write(self, block: Block, values: Values, mask: Values | None) -> None:
        """Write values of the threads of a mask."""
        raise PtxError(f"{self} is not written")


@dataclass(frozen=True)
class Register(Operand):
    """A register: bits, or a predicate."""

    name: str
    bits: int

    def read(self, block: Block, dtype: np.dtype[Any]) -> Values:
        """Return its values; those that were never written are all ones, as a float NaN."""
        values = block.registers.get(self.name)
        if values is None:
            ones = np.ones(block.threads, bool) if self.bits == 1 else np.zeros(block.threads, UNSIGNED[self.bits]) - 1
            values = block.registers[self.name] = ones.astype(bool if self.bits == 1 else UNSIGNED[self.bits])
        return values if self.bits == 1 else as_type(values, dtype)

    def write(self, block: Block, values: Values, mask: Values | None) -> None:
        """Write values of the threads of a mask; narrower ones are extended by their sign, if they have one."""
        if self.bits == 1:
            values = values.astype(bool, copy=False)
        else:
            width = UNSIGNED[self.bits]
            if values.dtype.kind == "f":
                values = values.view(UNSIGNED[8 * values.dtype.itemsize])
            values = values.astype(width, copy=False)
        if mask is not None:
            values = np.where(mask, values, self.read(block, values.dtype))
        block.registers[self.name] = values


@dataclass(frozen=True)
class Constant(Operand):
    """A number: an integer, or the bits of a float64."""

    value: int
    is_float64: bool = False
    is_float32: bool = False

    def read(self, block: Block, dtype: np.dtype[Any]) -> Values:
        """Return it for every thread."""
        return _constant(self, block.threads, dtype)


@functools.lru_cache(maxsize=4096)
def _constant(constant: Constant, threads: int, dtype: np.dtype[Any]) -> Values:
    if dtype.kind == "b":
        return np.full(threads, bool(constant.value))
    value = constant.value
    if constant.is_float32 and dtype.itemsize == 8:
        value = int(np.uint32(value).view(np.float32).astype(np.float64).view(np.uint64))
    if constant.is_float64 and dtype.itemsize == 4:
        value = int(np.uint64(value).view(np.float64).astype(np.float32).view(np.uint32))
    bits = 8 * dtype.itemsize
    full = np.full(threads, value & ((1 << bits) - 1), UNSIGNED[bits]).view(dtype)
    full.flags.writeable = False
    return full


@dataclass(frozen=True)
class Special(Operand):
    """A register of the hardware: the place of a thread or of its block."""

    name: str

    def read(self, block: Block, dtype: np.dtype[Any]) -> Values:
        """Return it for every thread."""
        value = block.special(self.name)
        return as_type(np.broadcast_to(np.asarray(value, np.uint32), block.threads), dtype)


@dataclass(frozen=True)
class SharedSymbol(Operand):
    """The start of shared memory."""

    def read(self, block: Block, dtype: np.dtype[Any]) -> Values:
        """Return it for every thread: zero."""
        return np.zeros(block.threads, dtype)


@dataclass(frozen=True)
class Parameter(Operand):
    """A parameter of the kernel."""

    name: str


@dataclass(frozen=True)
class Negated(Operand):
    """A predicate that is negated."""

    predicate: Operand

    def read(self, block: Block, dtype: np.dtype[Any]) -> Values:
        """Return its values."""
        return ~self.predicate.read(block, dtype)


@dataclass(frozen=True)
class Address(Operand):
    """A register or symbol, and bytes added to it."""

    base: Operand
    offset: int

    @property
    def bits(self) -> int:
        """Bits of an address: 32 in shared memory, else 64."""
        return self.base.bits if isinstance(self.base, Register) else 64

    def address(self, block: Block) -> Values:
        """Return the address of every thread, int64."""
        dtype = np.dtype(UNSIGNED[self.bits])
        offset = dtype.type(self.offset & ((1 << self.bits) - 1))
        return (self.base.read(block, dtype) + offset).astype(np.uint64).view(np.int64)


@dataclass(frozen=True)
class Group(Operand):
    """Several operands: the elements of a vector {a, b}, or a value and its predicate a|p."""

    elements: tuple[Operand, ...]


@dataclass(frozen=True)
class Label(Operand):
    """The target of a branch."""

    name: str


@dataclass(frozen=True)
class Sink(Operand):
    """`_`: what is written there is lost."""

    def write(self, block: Block, values: Values, mask: Values | None) -> None:
        """Write nothing."""


@dataclass
class Symbols:
    """The names of a kernel.

    Attributes:
        shared: symbols that stand for shared memory, which begins at 0.
        parameters: of the kernel.
        tables: symbol of a table in global memory -> its address.
        local: symbol of local memory -> where it begins.
        registers: name, or prefix of numbered names -> bits.
    """

    shared: frozenset[str]
    parameters: frozenset[str]
    tables: Mapping[str, int] = field(default_factory=dict)
    local: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)

    def declare_registers(self, statement: str) -> None:
        """Take the names of a `.reg` directive.

        Raises:
            ValueError: a name has two types.
        """
        _, kind, names = statement.split(maxsplit=2)
        bits = 1 if kind == ".pred" else int(kind[2:])
        for name in names.split(","):
            numbered = _RANGE.match(name.strip())
            name = numbered[1] if numbered else name.strip()
            if self.registers.setdefault(name, bits) != bits:
                raise ValueError(f"register {name} has {self.registers[name]} bits and {bits}")

    def find_register(self, name: str) -> Register | None:
        """Return a register of this name; None where there is none."""
        bits = self.registers.get(name) or self.registers.get(name.rstrip("0123456789"))
        return None if bits is None else Register(name, bits)

    def register(self, name: str) -> Register:
        """Return the register of this name.

        Raises:
            KeyError: there is none.
        """
        found = self.find_register(name)
        if found is None:
            raise KeyError(f"there is no register {name!r}")
        return found


def operand(text: str, symbols: Symbols) -> Operand:
    """Return an operand of its text.

    >>> operand("[%rd3 + 8]", Symbols(frozenset(), frozenset(), registers={"%rd": 64}))
    Address(base=Register(name='%rd3', bits=64), offset=8)
    """
    if address := _ADDRESS.match(text):
        return Address(operand(address[1], symbols), int(address[2] or 0))
    if text.startswith("{"):
        return Group(tuple(operand(each.strip(), symbols) for each in text[1:-1].split(",")))
    if "|" in text:
        return Group(tuple(operand(each.strip(), symbols) for each in text.split("|")))
    if text.startswith("!"):
        return Negated(symbols.register(text[1:]))
    return _name_or_number(text, symbols)


def _name_or_number(text: str, symbols: Symbols) -> Operand:
    if text == "_":
        return Sink()
    if _SPECIAL.match(text):
        return Special(text[1:])
    if register := symbols.find_register(text):
        return register
    if text in symbols.shared:
        return SharedSymbol()
    if text in symbols.tables:
        return Constant(symbols.tables[text])
    if text in symbols.local:
        return Constant(symbols.local[text])
    if text in symbols.parameters:
        return Parameter(text)
    if text[:2] in ("0d", "0D", "0f", "0F"):
        return Constant(int(text[2:], 16), is_float64=text[1] in "dD", is_float32=text[1] in "fF")
    if _INTEGER.match(text):
        return Constant(int(text.rstrip("U"), 0))
    return Label(text)


def elements(group: Operand) -> Sequence[Operand]:
    """Return the elements of a vector, or an operand that is none as its only element."""
    return group.elements if isinstance(group, Group) else (group,)
