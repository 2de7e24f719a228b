"""Weights that are stored as codes: refused by what their names, dtypes and configuration say.

Integer codes mean nothing without their scales, and every tool packs them in another way. One rule holds for all tools:
an integer tensor is taken for codes if a tensor that is named after it, or after its module, holds scales, zero points
or a codebook. Names are those of GPTQ, AWQ, bitsandbytes, compressed-tensors, MLX, HQQ, quanto, torchao, AQLM and
others; none of them is listed here as such.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from mergekern.checkpoints.dtypes import FLOAT8
from mergekern.checkpoints.stored import StoredTensor
from mergekern.errors import CheckpointError

REMEDY = "give the floating-point checkpoint they were made from, or a dequantised copy"

# Words of names. What a tensor of scales is called, and what may stand beside such a word:
SCALES = frozenset({
    "scale", "scales", "scaling", "scaler", "scalers", "absmax", "amax", "scb", "zero", "zeros", "zp", "zps",
    "codebook", "codebooks", "centroid", "centroids", "lut",
})  # fmt: skip
_QUALIFIERS = frozenset({
    "inv", "point", "points", "factor", "factors", "and", "global", "nested", "dequant", "deq",
})  # fmt: skip
# What a layer's one weight is called, and what a tensor of codes is called:
WEIGHTS = frozenset({
    "weight", "weights", "kernel", "w",
})  # fmt: skip
_CODES = frozenset({
    "q", "packed", "quantized", "quantised", "quant", "code", "codes", "data", "block", "blocks", "int", "uint",
    "idxs", "indices", "compressed", "nf", "fp",
})  # fmt: skip
# Integers that are no codes of weights, whatever lies beside them.
_ORDINARY = frozenset({
    "id", "ids", "index", "idx", "mask", "masks", "position", "positions", "pos", "tracked", "offset", "offsets",
    "table", "length", "lengths", "ptr", "perm", "order", "bins", "bucket", "buckets", "step", "steps", "shape",
    "extra", "state", "version",
})  # fmt: skip
# No other tensors are called so.
_UNMISTAKABLE = (("GPTQ or AWQ", ".qweight"), ("bitsandbytes", ".absmax"), ("bitsandbytes", ".SCB"))

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_FP8 = re.compile(r"fp8|float8|float-quantized|e4m3|e5m2")
_CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")


@lru_cache(maxsize=1 << 14)
def words_of(part: str) -> tuple[str, ...]:
    """Return the words of a part of a name, in lower case; q and w before a known word are words of their own.

    >>> words_of("qzeros"), words_of("W_q"), words_of("gate_up_proj_scale_inv")
    (('q', 'zeros'), ('w', 'q'), ('gate', 'up', 'proj', 'scale', 'inv'))
    """
    words: list[str] = []
    for word in _WORD.findall(part):
        word = word.lower()
        is_joined = word[:1] in ("q", "w") and word[1:] in SCALES | WEIGHTS | _CODES and len(word) > 2
        words += [word[0], word[1:]] if is_joined else [word]
    return tuple(words)


def leaf_of(name: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the parts of a name that lead to a tensor's module, and the words of the last part."""
    *module, leaf = re.split(r"[.:/]", name)
    return module, words_of(leaf)


def says_scale(name: str) -> bool:
    """Tell whether a name is that of scales, zero points or a codebook.

    >>> [says_scale(name) for name in ("l.weight_scale", "l.SCB", "l.scale.weight", "l.scaled")]
    [True, True, False, False]
    """
    return not SCALES.isdisjoint(leaf_of(name)[1])


def owner_of(name: str, codes: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Return what a tensor is of, as the words of a name without those for weight, scale and (if given) codes.

    >>> owner_of("l.fc.weight"), owner_of("l.fc.scale_weight"), owner_of("l.fc_scale"), owner_of("l.fc.weight._scale")
    (('l', 'fc'), ('l', 'fc'), ('l', 'fc'), ('l', 'fc'))
    >>> owner_of("attn.logit_scale"), owner_of("attn.relative_position_index")
    (('attn', 'logit'), ('attn', 'relative', 'position', 'index'))
    """
    module, words = leaf_of(name)
    dropped = SCALES | _QUALIFIERS if says_scale(name) else frozenset()
    if len(words) > 1 or "q" not in words:
        dropped |= codes
    rest = [word for word in words if word not in dropped]
    if set(rest) <= WEIGHTS:
        rest = []
        if len(module) > 1 and set(words_of(module[-1])) <= WEIGHTS - {"w"}:
            module = module[:-1]
    return (*(word for part in module for word in words_of(part)), *rest)


class Quantisation(NamedTuple):
    """How weights are stored, from a configuration.

    Attributes:
        method: what errors call it.
        is_float8: whether it speaks of weights of 8-bit floats.
        is_transformed: whether the weights are rotated, or changed in other ways, before they are stored.
        blocks: rows and columns of the blocks that share a scale; usually none or one.
    """

    method: str
    is_float8: bool
    is_transformed: bool
    blocks: tuple[tuple[int, int], ...]

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Quantisation | None:
        """Return what config.json says: for transformers and tools that follow it, and for MLX. None if nothing.

        >>> Quantisation.from_config({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 32]}})
        Quantisation(method='fp8', is_float8=True, is_transformed=False, blocks=((64, 32),))
        """
        inner = (value for value in config.values() if isinstance(value, Mapping))
        for part in (config, *inner):
            for key in _CONFIG_KEYS:
                found = part.get(key)
                if isinstance(found, str) and found.lower() not in ("", "none"):
                    found = {"quant_method": found}
                if isinstance(found, Mapping) and found:
                    return Quantisation._from_entry(key, found)
        return None

    @staticmethod
    def _from_entry(key: str, entry: Mapping[str, Any]) -> Quantisation:
        method = str(entry.get("quant_method") or ("MLX" if key == "quantization" else key))[:40]
        details = [str(entry[name])[:40] for name in ("format", "quant_algo") if entry.get(name)]
        details += [f"{entry['bits']} bits"[:20]] if entry.get("bits") else []
        parts = list(_mappings_in(entry))
        is_float8 = _FP8.search(json.dumps(entry, default=str).lower()) is not None or any(
            part.get("type") == "float" and part.get("num_bits") == 8 for part in parts
        )
        sizes = (part.get(name) for part in parts for name in ("weight_block_size", "block_structure"))
        return Quantisation(
            f"{method} ({', '.join(details)})" if details else method,
            is_float8,
            bool(entry.get("transform_config")),
            tuple(dict.fromkeys(block for size in sizes if (block := _block(size)))),
        )


def _mappings_in(entry: Any, depth: int = 6) -> Iterable[Mapping[str, Any]]:
    if isinstance(entry, Mapping) and depth:
        yield entry
        for value in entry.values():
            yield from _mappings_in(value, depth - 1)


def _block(size: Any) -> tuple[int, int] | None:
    if isinstance(size, str):
        size = [int(number) for number in re.findall(r"\d{1,9}", size)]
    if isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    return None


def refuse_codes(
    source: str,
    floats: Mapping[str, StoredTensor],
    others: Mapping[str, StoredTensor],
    quantisation: Quantisation | None,
) -> None:
    """Raise CheckpointError if weights are stored as codes other than float8.

    Args:
        source: what errors call the checkpoint.
        floats: the floating-point tensors.
        others: the others.
        quantisation: what the configuration says.
    """
    for kind, ending in _UNMISTAKABLE:
        if named := next((name for name in (*floats, *others) if name.endswith(ending)), None):
            raise CheckpointError(
                f"{source}: {named!r} shows {kind} quantised weights; mergekern needs the floating-point "
                "checkpoint they were made from (or a dequantised copy)"
            )
    integers = [t for t in others.values() if not t.dtype.is_complex and t.dtype != torch.bool and t.count > 1]
    if quantisation is not None:
        _refuse_by_configuration(source, floats, integers, quantisation)
    if not integers:
        return
    scales = [t for t in (*floats.values(), *others.values()) if says_scale(t.name)]
    by_owner = {owner_of(scale.name, _CODES): scale for scale in scales}
    by_module: dict[str, list[StoredTensor]] = {}
    for scale in scales:
        by_module.setdefault(_module_of(scale.name), []).append(scale)
    for codes in integers:
        if says_scale(codes.name):
            continue
        near = by_module.get(_module_of(codes.name), ())
        found = by_owner.get(owner_of(codes.name, _CODES)) if _may_be_codes(codes) else None
        found = found or next((scale for scale in near if _fits(scale, codes)), None)
        if found is not None:
            raise CheckpointError(
                f"{source}: {codes.name!r} holds codes ({_dtype(codes)}) with scales in {found.name!r}: quantised "
                f"weights are not read; {REMEDY}"
            )


def _refuse_by_configuration(
    source: str, floats: Mapping[str, StoredTensor], integers: Iterable[StoredTensor], said: Quantisation
) -> None:
    codes = next((t for t in integers if _ORDINARY.isdisjoint(leaf_of(t.name)[1]) and not _is_text(t)), None)
    float8 = next((t for t in floats.values() if t.dtype in FLOAT8), None)
    if codes is None and (float8 is None or said.is_float8):
        if said.is_transformed:
            raise CheckpointError(
                f"{source}: config.json says that weights are transformed before they are stored "
                f"(transform_config of {said.method}), which is not undone here; {REMEDY}"
            )
        return
    found = codes or float8
    assert found is not None
    raise CheckpointError(
        f"{source}: config.json says that weights are quantised by {said.method}, and {found.name!r} is "
        f"{_dtype(found)}: such weights are not read; {REMEDY}"
    )


def _may_be_codes(tensor: StoredTensor) -> bool:
    """Tell whether names may bind scales to it. Integers of 64 bits are indices unless they are called weights."""
    words = set(leaf_of(tensor.name)[1])
    return tensor.dtype != torch.int64 or not words.isdisjoint(WEIGHTS | {"q", "packed"}) or not words <= _CODES


def _fits(scale: StoredTensor, codes: StoredTensor) -> bool:
    """Tell whether a tensor of one module holds a scale for every row of another, which no index or mask has."""
    rows = codes.shape[0]
    return (
        len(codes.shape) > 1
        and codes.dtype.itemsize <= 4
        and _ORDINARY.isdisjoint(leaf_of(codes.name)[1])
        and rows > 1
        and (scale.count == rows or scale.shape[:1] == (rows,))
        and scale.count < codes.count
    )


def _is_text(tensor: StoredTensor) -> bool:
    """Tell whether it may be a text or an object in bytes, as ComfyUI's comfy_quant."""
    return tensor.dtype == torch.uint8 and len(tensor.shape) == 1 and tensor.count < 4096


def _module_of(name: str) -> str:
    return re.split(r"[.:/](?=[^.:/]*$)", name)[0] if re.search(r"[.:/]", name) else ""


def _dtype(tensor: StoredTensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def notes_on_contents(
    floats: Mapping[str, StoredTensor],
    others: Mapping[str, StoredTensor],
    markers: Iterable[str],
    quantisation: Quantisation | None,
) -> list[str]:
    """Return what of a checkpoint takes no part in task vectors, a sentence for each kind.

    >>> w, ids = (StoredTensor(n, (3,), d, n) for n, d in (("w", torch.float32), ("ids", torch.int64)))
    >>> notes_on_contents({"w": w}, {"ids": ids}, [], None)
    ['1 integer tensor takes no part (66.7 % of the bytes): ids']
    """
    notes = []
    if others:
        sizes = {
            tensor.storage: tensor.count * tensor.dtype.itemsize for tensor in (*floats.values(), *others.values())
        }
        total = sum(sizes.values()) or 1
        for kind, is_complex in (("integer", False), ("complex", True)):
            found = [tensor for tensor in others.values() if tensor.dtype.is_complex == is_complex]
            share = 100 * sum(tensor.count * tensor.dtype.itemsize for tensor in found) / total
            shown = f"{share:.1f}" if share >= 0.05 or not share else "under 0.1"
            if found:
                notes.append(_without_part(f"{kind} tensor", [t.name for t in found], f" ({shown} % of the bytes)"))
    if names := list(markers):
        notes.append(_without_part("scale or marker of float8 layers", names))
    if quantisation is not None and not any(tensor.dtype in FLOAT8 for tensor in floats.values()):
        notes.append(
            f"config.json says that weights are quantised by {quantisation.method}, but they are stored as ordinary "
            "floats, and are read as these"
        )
    return notes


def _without_part(what: str, names: Sequence[str], share: str = "") -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(names) == 1:
        return f"1 {what} takes no part{share}: {shown}"
    plural = what.replace("tensor", "tensors").replace("scale or marker", "scales and markers")
    return f"{len(names)} {plural} take no part{share}: {shown}"
