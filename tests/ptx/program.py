"""The text of a PTX file, as kernels of instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from tests.ptx.operands import Operand, PtxError, Register, Symbols, operand

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_LINE_DIRECTIVE = re.compile(r"^\s*\.(?:loc|file|pragma)\b[^\n]*$", re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.[busf](\d+)\b.*?([\w$]+)\s*$", re.DOTALL)
_MOST_THREADS = re.compile(r"\.(?:maxntid|reqntid)\s+(\d+)")
_DYNAMIC_SHARED = re.compile(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]")
_STATIC_SHARED = re.compile(r"^\s*\.shared\b[^;]*;", re.MULTILINE)
_LOCAL = re.compile(r"\.local\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]")
_TABLE = re.compile(r"\.global\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\d+\]\s*=\s*\{([^}]*)\}")
_LABEL = re.compile(r"([$\w]+)\s*:(?!:)\s*")
_GUARD = re.compile(r"@(!?)([%\w]+)\s+")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: such as "add".
        modifiers: what follows it, such as ("rn", "f64").
        operands: in the order of the text.
        guard: the predicate under which a thread executes it, and the value that this must have; None: all do.
        text: as written.
    """

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: tuple[Register, bool] | None
    text: str


@dataclass
class Kernel:
    """One entry of a PTX file.

    Attributes:
        name: of the entry.
        parameters: name -> bytes, in their order.
        most_threads: of a block.
        instructions: of its body; branches name labels.
        labels: label -> index of the instruction that follows.
        local_bytes: of each thread.
        tables: constants in global memory, by name.
    """

    name: str
    parameters: dict[str, int]
    most_threads: int
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    tables: dict[str, torch.Tensor] = field(default_factory=dict)


def parse(text: str) -> dict[str, Kernel]:
    """Return the kernels of a PTX file by name.

    Raises:
        PtxError: static shared memory, or an operand that is not known.
    """
    text = _LINE_DIRECTIVE.sub("", _COMMENT.sub(" ", text))
    if static := _STATIC_SHARED.search(text):
        raise PtxError(f"only dynamic shared memory is known, not {static[0].strip()!r}")
    shared = frozenset(_DYNAMIC_SHARED.findall(text))
    tables = {name: torch.tensor([int(b) for b in values.split(",")]).byte() for name, values in _TABLE.findall(text)}
    kernels = {}
    for entry in _ENTRY.finditer(text):
        most = _MOST_THREADS.search(entry[3])
        parameters = (_PARAMETER.search(each) for each in entry[2].split(","))
        sizes = {found[2]: int(found[1]) // 8 for found in parameters if found}
        kernel = Kernel(entry[1], sizes, int(most[1]) if most else 1024, tables=tables)
        _fill(kernel, _body(text, entry.end()), shared)
        kernels[kernel.name] = kernel
    return kernels


def _body(text: str, start: int) -> str:
    """Return the text up to the brace that closes the one before `start`."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    raise PtxError("a brace is not closed")


def _fill(kernel: Kernel, body: str, shared: frozenset[str]) -> None:
    addresses = {name: table.data_ptr() for name, table in kernel.tables.items()}
    symbols = Symbols(shared, frozenset(kernel.parameters), addresses)
    for statement in _statements(body):
        while label := _LABEL.match(statement):
            kernel.labels[label[1]] = len(kernel.instructions)
            statement = statement[label.end() :]
        if statement.startswith(".reg"):
            symbols.declare_registers(statement)
        elif local := _LOCAL.match(statement):
            symbols.local[local[1]] = kernel.local_bytes
            kernel.local_bytes += -(-int(local[2]) // 16) * 16
        elif statement.startswith("."):
            raise PtxError(f"the directive {statement!r} is not known")
        elif statement:
            kernel.instructions.append(_instruction(statement, symbols))


def _statements(body: str) -> Iterator[str]:
    """Yield statements with the labels before them; the braces of inline assembly vanish, those of vectors stay."""
    for statement in body.split(";"):
        text = " ".join(statement.split())
        # No statement begins with the brace of a vector; a label may stand before that of a scope.
        while scope := re.match(r"((?:[$\w]+\s*:\s*)*)[{}]\s*", text):
            text = scope[1] + text[scope.end() :]
        yield text


def _instruction(statement: str, symbols: Symbols) -> Instruction:
    text, guard = statement, None
    if found := _GUARD.match(statement):
        guard = (symbols.register(found[2]), found[1] == "")
        statement = statement[found.end() :]
    opcode, _, rest = statement.partition(" ")
    name, *modifiers = opcode.replace("::", ".").split(".")
    operands = tuple(operand(each, symbols) for each in split(rest))
    return Instruction(name, tuple(modifiers), operands, guard, text)


def split(operands: str) -> list[str]:
    """Return the operands of a text, at the commas that are outside of braces and brackets.

    >>> split("{%r1, %r2}, [%rd3 + 8]")
    ['{%r1, %r2}', '[%rd3 + 8]']
    """
    return [each.strip() for each in re.split(r",(?![^{\[]*[}\]])", operands) if each.strip()]
