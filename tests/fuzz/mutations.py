"""How files are damaged or made hostile: bytes of any file, and what is inside of files of a kind."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

# Values that no reader may trust, whatever it expects in their place.
HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 7, 1 << 31, 1 << 63, 1 << 70, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"),
    "", "a", "base", "../x", "/etc/passwd", "a/b", "\x00", "\x1b[31m", ":fire:", "=1+1", "é" * 300, "\ud800", "NaN",
    "1e999", "float32", "(([a-z]+)+)+!", "a{99999999999999999999}", "__class__", [], {}, [[]], {"": {}}, [None],
    ["a", "a"], {"a": 1}, list(range(50)), "x" * 5000,
]  # fmt: skip


def hostile(draw: random.Random) -> Any:
    """Return one of the hostile values; a copy, as later changes of the document may be inside of it."""
    return copy.deepcopy(draw.choice(HOSTILE))


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return a file with some bytes flipped, removed, inserted, repeated or cut off."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        kind = draw.choice(["flip", "flip", "flip", "cut", "insert", "repeat", "zeros", "end"])
        if kind == "flip":
            changed[at : at + 1] = draw.randbytes(1)
        elif kind == "cut":
            del changed[at : at + draw.randint(1, 40)]
        elif kind == "insert":
            changed[at:at] = draw.randbytes(draw.randint(1, 20))
        elif kind == "repeat":
            changed[at:at] = changed[at : at + draw.randint(1, 200)]
        elif kind == "zeros":
            count = draw.randint(1, 60)
            changed[at : at + count] = bytes(count)
        else:
            del changed[at:]
    return bytes(changed)


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """Return a JSON document with a node replaced, removed, doubled or nested, or with odd text around it."""
    kind = draw.choice(["value", "value", "value", "value", "key", "text"])
    if kind == "text":
        odd = ["", "[" * 300_000, '{"a":' * 100_000, "null", "[]", "{}", "\ufeff" + content.decode(), "'", "0", '""']
        return draw.choice(odd).encode("utf-8", "surrogatepass")
    document = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        document = change_node(document, draw, kind == "key")
    return _dump(document)


def change_node(document: Any, draw: random.Random, of_key: bool = False) -> Any:
    """Return a document in which one node, drawn from all, is hostile; or the key of one."""
    places = list(_places(document, []))
    if not places:
        return hostile(draw)
    *way, last = draw.choice(places)
    parent = document
    for step in way:
        parent = parent[step]
    if of_key and isinstance(parent, dict):
        value = parent.pop(last)
        if draw.random() < 0.6:
            parent[str(draw.choice(HOSTILE))[:400]] = value
    elif draw.random() < 0.15:
        del parent[last]
    elif draw.random() < 0.15 and isinstance(parent, list):
        parent.insert(last, parent[last])
    else:
        parent[last] = hostile(draw)
    return document


def _places(node: Any, way: list[Any]) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield [*way, key]
        yield from _places(value, [*way, key])


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def mutate_lines(content: bytes, draw: random.Random) -> bytes:
    """Return a file of JSON lines of which one is hostile."""
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = mutate_json(lines[at], draw)
    return b"\n".join(lines)


def mutate_csv(content: bytes, draw: random.Random) -> bytes:
    """Return a CSV file with cells, rows or columns that do not belong."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(draw.randint(1, 3)):
        row = draw.randrange(len(rows))
        column = draw.randrange(max(1, len(rows[row])))
        kind = draw.choice(["cell", "cell", "cell", "drop row", "repeat row", "cut row", "more", "header", "swap"])
        if kind == "cell" and rows[row]:
            rows[row][column] = str(draw.choice(HOSTILE))
        elif kind == "drop row" and len(rows) > 1:
            del rows[row]
        elif kind == "repeat row":
            rows.insert(row, list(rows[row]))
        elif kind == "cut row":
            del rows[row][column:]
        elif kind == "more":
            rows[row].append(str(draw.choice(HOSTILE)))
        elif kind == "header" and rows[0]:
            rows[0][column % len(rows[0])] = str(draw.choice(HOSTILE))
        elif len(rows[row]) > 1:
            rows[row][0], rows[row][-1] = rows[row][-1], rows[row][0]
    text = "\n".join(",".join(row) for row in rows)
    return text.replace("\n", draw.choice(["\n", "\n", "\r\n"])).encode("utf-8", "surrogatepass")


def mutate_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Return a safetensors file whose header or values are hostile, and otherwise consistent."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    if draw.random() < 0.35 and data:
        kind = draw.choice(["nan", "inf", "noise", "huge"])
        at = 4 * draw.randrange(max(1, len(data) // 4))
        patterns = {"nan": "0000c07f", "inf": "0000807f", "noise": draw.randbytes(4).hex(), "huge": "ffff7f7f"}
        data[at : at + 4] = bytes.fromhex(patterns[kind])[: len(data) - at]
    else:
        header = change_node(header, draw, draw.random() < 0.4)
    text = _dump(header)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def mutate_torch(content: bytes, draw: random.Random) -> bytes:
    """Return a torch file with a member that is damaged, compressed, missing, or there twice."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        members = old.infolist()
        chosen = draw.choice(members).filename
        kind = draw.choice(["bytes", "bytes", "bytes", "deflate", "drop", "twice", "empty"])
        for member in members:
            values = old.read(member)
            if member.filename != chosen:
                new.writestr(member.filename, values)
            elif kind == "bytes":
                new.writestr(chosen, mutate_bytes(values, draw))
            elif kind == "deflate":
                new.writestr(chosen, values, zipfile.ZIP_DEFLATED)
            elif kind == "empty":
                new.writestr(chosen, b"")
            elif kind == "twice":
                new.writestr(chosen, values)
                new.writestr(chosen + "x", values)
    return target.getvalue()


def mutate_parquet(content: bytes, draw: random.Random) -> bytes:
    """Return a Parquet file whose metadata or columns are hostile."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    metadata = dict(table.schema.metadata or {})
    kind = draw.choice(["metadata", "metadata", "metadata", "drop column", "text column", "rows", "name"])
    if kind == "metadata":
        metadata[b"mergekern"] = mutate_json(metadata.get(b"mergekern", b"{}"), draw)
    elif kind == "drop column":
        table = table.drop_columns([draw.choice(table.column_names)])
    elif kind == "text column":
        at = draw.randrange(table.num_columns)
        values = pa.array([str(draw.choice(HOSTILE[:22])) for _ in range(table.num_rows)])
        table = table.set_column(at, table.column_names[at], values)
    elif kind == "rows":
        table = pa.concat_tables([table.slice(0, draw.randrange(table.num_rows)), table.slice(0, draw.randint(0, 3))])
    else:
        names = list(table.column_names)
        names[draw.randrange(len(names))] = str(draw.choice(HOSTILE[16:24])).encode("utf-8", "replace").decode()
        table = table.rename_columns(names)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


def mutate_manifest(content: bytes, draw: random.Random) -> bytes:
    """Return a manifest that is hostile, with its right checksum."""
    document = json.loads(content)
    document.pop("checksum")
    document = change_node(document, draw, draw.random() < 0.2)
    if not isinstance(document, dict):
        return _dump(document)
    document["checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(document).encode("utf-8", "surrogatepass"))
    return json.dumps(document, indent=1).encode("utf-8", "surrogatepass")


def mutate_block(content: bytes, draw: random.Random) -> bytes:
    """Return a block of statistics whose arrays or description are hostile, with its right checksum."""
    import safetensors.numpy

    from mergekern.statistics.blocks import checksum

    arrays = {name: array.copy() for name, array in safetensors.numpy.load(content).items()}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = json.loads(header["__metadata__"]["mergekern"])["description"]
    if draw.random() < 0.4 or not arrays:
        text = json.dumps(change_node(json.loads(text), draw))
    else:
        name = draw.choice(sorted(arrays))
        arrays[name] = _wrong_array(arrays[name], draw)
    described = json.dumps({"description": text, "checksum": checksum(arrays, text)})
    return safetensors.numpy.save(arrays, metadata={"mergekern": described})


def _wrong_array(array: np.ndarray, draw: random.Random) -> np.ndarray:
    wrong: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a[:1], lambda a: a[..., :0], lambda a: a.reshape(-1), lambda a: a[None],
        lambda a: a.astype(np.float16), lambda a: a.astype(np.int64), lambda a: np.full_like(a, -1),
        lambda a: np.full(a.shape, np.nan), lambda a: np.full(a.shape, 1e300), lambda a: np.concatenate([a, a]),
    ]  # fmt: skip
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(draw.choice(wrong)(np.atleast_1d(array)))


def mutator_of(path: Path) -> list[Callable[[bytes, random.Random], bytes]]:
    """Return the mutations that suit a file, by its name and place."""
    if path.name == "manifest.json":
        return [mutate_manifest, mutate_json]
    if path.parent.name in ("blocks", "bases"):
        return [mutate_block, mutate_safetensors]
    by_suffix: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
        ".json": [mutate_json], ".jsonl": [mutate_lines], ".csv": [mutate_csv], ".safetensors": [mutate_safetensors],
        ".pt": [mutate_torch], ".parquet": [mutate_parquet],
    }  # fmt: skip
    return by_suffix.get(path.suffix, [])
