"""sketch: the sketches of models fine-tuned from one base, reading the weights once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from mergekern._internal.notes import bounded, show
from mergekern._internal.text import listed
from mergekern.checkpoints import FactoredLayer, Layer, LayerStream, Zoo, open_zoo
from mergekern.checkpoints.adapter import ImpliedBase
from mergekern.checkpoints.notes import notes_of_zoo, skipped_names
from mergekern.checkpoints.sources import IO
from mergekern.checkpoints.stream import non_finite
from mergekern.checkpoints.zoo import OnMismatch
from mergekern.errors import OptionError
from mergekern.kernels.count_sketch.on_cpu import LEAST, CountSketch
from mergekern.progress import Progress
from mergekern.sketches.sketches import Sketches
from mergekern.statistics.layers import overflow

# Elements of a task vector that are sketched at a time.
_BLOCK = 1 << 20


def sketch(
    checkpoints: Any,
    base: Any = None,
    *,
    size: int = 4096,
    random_state: int = 0,
    max_memory: int | None = None,
    on_mismatch: OnMismatch = "error",
    progress: Callable[[Progress], None] | None = None,
    io: IO = "mmap",
    rename: Mapping[str, str] | None = None,
) -> Sketches:
    """Compute the sketches of models fine-tuned from one base, reading the weights once.

    Args:
        checkpoints, base, max_memory, on_mismatch, progress, io, rename: as for `compute_all`; one model is enough.
        size: length of one sketch, a power of two, 64 at least. The standard error of a cosine c is
            (1 − c²)/√((1 + c²)·size): 0.016 at most with 4096.
        random_state: decides the random map. Only sketches of one size and random_state can be compared.

    Raises:
        OptionError, CheckpointError, MismatchError, NonFiniteError: as for `compute_all`; CheckpointError also if a
            checkpoint is changed meanwhile.

    >>> models = {"a": {"w": np.ones(3)}, "b": {"w": np.array([1.0, 0.0, 0.0])}}
    >>> found = sketch(models, {"w": np.zeros(3)})
    >>> found
    Sketches(2 models, 4096 numbers each)
    >>> found.table().to_pandas()["task_vector_magnitude_ratio"].round(3).tolist()
    [0.577]
    """
    if not (isinstance(size, int) and size >= LEAST and size & (size - 1) == 0):
        raise OptionError(f"size must be a power of two, {LEAST} at least, not {size!r}")
    if not isinstance(random_state, int) or isinstance(random_state, bool):
        raise OptionError(f"random_state must be an integer, not {random_state!r}")
    zoo = open_zoo(checkpoints, base, on_mismatch=on_mismatch, io=io, rename=rename, needs_base=False, least=1)
    lost = _skipped(zoo)
    notes = notes_of_zoo(zoo)
    show(lost, notes)
    sketches, squares = np.zeros((len(zoo.models), size)), np.zeros(len(zoo.models))
    knows_base = not isinstance(zoo.base, ImpliedBase)
    digests: dict[str, str] = {}
    sizes = [zoo.nbytes(tensor) for tensor in zoo.tensors]
    began = time.perf_counter()

    def report(name: str, done: int) -> None:
        if progress is not None:
            progress(Progress(name, done, len(sizes), sum(sizes[:done]), sum(sizes), time.perf_counter() - began))

    for done, layer in enumerate(LayerStream(zoo, max_memory).with_factors()):
        report(layer.tensor.name, done)
        counted = CountSketch(size, random_state, layer.tensor.name)
        for models, start, deltas in _deltas(layer, len(zoo.models)):
            with np.errstate(over="ignore", invalid="ignore"):
                added = np.einsum("nd,nd->n", deltas, deltas)
            if not np.isfinite(added).all():
                if _is_unchanged(layer):
                    break
                raise _non_finite(layer, zoo, models[int(np.flatnonzero(~np.isfinite(added))[0])])
            part = sketches[models]
            counted.add(part, start, deltas)
            sketches[models] = part
            with np.errstate(over="ignore"):
                squares[models] += added
        if overflowing := [zoo.model_names[model] for model in np.flatnonzero(~np.isfinite(squares))]:
            raise overflow(overflowing)
        if knows_base:
            digests[layer.tensor.name] = _base_hash(zoo, layer)
        layer.release()
    zoo.check_unchanged()  # or some tensors are of one file and some of another
    report("", len(sizes))
    of_base = xxhash.xxh3_128_hexdigest(repr(sorted(digests.items())).encode()) if knows_base else None
    return Sketches(zoo.model_names, sketches, squares, random_state, of_base, tuple(bounded([*lost, *notes])))


def _skipped(zoo: Zoo) -> list[str]:
    """Return a note on the tensors that are left out of the sketches."""
    names = sorted(name for part in skipped_names(zoo) for name in part)
    models = listed(zoo.model_names)
    return [f"tensors left out of the sketches of {models} ({len(names):,}): {listed(names)}"] if names else []


def _deltas(layer: Layer | FactoredLayer, models: int) -> Iterator[tuple[list[int], int, np.ndarray]]:
    """Yield (models, start, (len(models), L) float64) of the task vectors of one tensor, flat; zeros are left out."""
    stored = layer.stored if isinstance(layer, FactoredLayer) else layer
    whole = list(layer.whole if isinstance(layer, FactoredLayer) else range(models))
    if stored is not None:
        start = 0
        for base, tuned in stored.blocks():
            for first in range(0, len(base), step := max(1, _BLOCK // len(tuned))):
                part = slice(first, first + step)
                deltas = np.stack([values[part].double().numpy() for values in tuned])
                with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported by the caller
                    deltas -= base[part].double().numpy()
                yield whole, start + first, deltas
            start += len(base)
            del base, tuned
    if isinstance(layer, FactoredLayer):
        for model in layer.factored:
            left, right, scale = layer.factors(model)
            wide, step = right.double(), max(1, _BLOCK // right.shape[1])
            for row in range(0, left.shape[0], step):
                rows = (left[row : row + step].double() @ wide).mul_(scale)
                yield [model], row * right.shape[1], rows.reshape(1, -1).numpy()


def _is_unchanged(layer: Layer | FactoredLayer) -> bool:
    """Tell whether all models have the tensor as the base, infinities and NaN included."""
    if isinstance(layer, Layer):
        return all(layer.equal_to_base())
    return not layer.factored and layer.stored is not None and all(layer.stored.equal_to_base())


def _non_finite(layer: Layer | FactoredLayer, zoo: Zoo, bad: int) -> Exception:
    if isinstance(layer, Layer):
        return non_finite(layer, zoo)
    if bad in layer.factored:
        return layer.non_finite(bad)
    assert layer.stored is not None
    return non_finite(layer.stored, layer.stored_zoo)


def _base_hash(zoo: Zoo, layer: Layer | FactoredLayer) -> str:
    """Return the hash of one tensor of the base."""
    name = layer.tensor.names[0]
    count = zoo.base.tensors[name].count
    digest = xxhash.xxh3_128(str(layer.tensor.shape).encode())
    for start in range(0, count, _BLOCK):
        # In float64, so that the base in another dtype that holds the same values is the same base.
        digest.update(zoo.base.read_range(name, start, min(start + _BLOCK, count)).double().numpy())
    return digest.hexdigest()
