"""Read a zoo one tensor at a time, in file order, under a byte budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
import xxhash

from mergekern._internal.validation import positive_bytes
from mergekern.checkpoints.checkpoint import Factors
from mergekern.checkpoints.rounding import Source, equals_rounded, is_finite, may_round, rounding_energy, same_values
from mergekern.checkpoints.zoo import Zoo, ZooTensor
from mergekern.errors import NonFiniteError, OptionError

DEFAULT_MAX_MEMORY = 1 << 30
# Elements over which the kernels of the processor sum at a time (kSegment of csrc/cpu): sums over ranges that end at
# multiples of it are those over the whole tensor, to the last bit.
SEGMENT = 1 << 17


class Layer:
    """One tensor of the base and of all N models.

    A tensor that fits the budget is read once, at first use, and held until it is released; every read is a view of it.
    A larger one is read in blocks, again for every pass.

    Of a model whose tensor is the base's, rounded to a narrower dtype, every read and hash is that of the base:
    rounding is not training, and its task vector is exactly zero (`checkpoints.rounding`).

    Attributes:
        zoo, tensor: all models, and the tensor in them.
        is_split: whether it is larger than the budget and comes in blocks.
        nbytes: bytes of weights that reading it holds at a time.
    """

    def __init__(self, zoo: Zoo, tensor: ZooTensor, max_memory: int) -> None:
        self.zoo, self.tensor = zoo, tensor
        self._max_memory = max_memory
        self._given = [Source(*each) for each in zip(zoo.checkpoints, tensor.names, strict=True)]
        size = sum(source.stored.nbytes for source in self._given)
        self.is_split = size > max_memory
        self.nbytes = min(size, max_memory)
        self._held: list[torch.Tensor] | None = None

    def release(self) -> None:
        """Let go of the tensors: the next layer is read while this object may still be referred to."""
        self._held = None

    @cached_property
    def _sources(self) -> list[Source]:
        """Where the tensor of the base and of each model is read: the base's own where rounding is all that differs."""
        base, *tuned = self._given
        return [base, *(base if may_round(base, own) and equals_rounded(base, own) else own for own in tuned)]

    def _read(self, read: Callable[[Source], torch.Tensor]) -> list[torch.Tensor]:
        """Return what is read of every source, the base once for all that are the base."""
        base, *tuned = self._sources
        of_base = read(base)
        return [of_base, *(of_base if source is base else read(source) for source in tuned)]

    def _whole(self) -> list[torch.Tensor]:
        if self._held is None:
            self._held = self._read(lambda source: source.checkpoint.read(source.name))
        return self._held

    def tensors(self, device: torch.device) -> list[torch.Tensor]:
        """Return the whole tensors of the base and of all models, on the device if they lie there, else on the CPU."""
        resident = [source.checkpoint.resident(source.name, device) for source in self._sources]
        if all(tensor is None for tensor in resident):
            return self._whole()
        return [
            source.checkpoint.read(source.name) if tensor is None else tensor
            for tensor, source in zip(resident, self._sources, strict=True)
        ]

    def blocks(self) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Yield (base, [tuned_0, ...]) over ranges of the flattened tensor, all models at a time.

        Each is 1-D and contiguous, in its own storage dtype; all of one block together stay in the budget. Where it
        holds `SEGMENT` elements of every model, ranges end at multiples of that, so that statistics do not depend on
        the budget; under a smaller one their last bits may.

        Raises:
            OptionError: the budget does not hold even one element of every model.
        """
        if not self.is_split:
            flat = [whole.reshape(-1) for whole in self._whole()]
            yield flat[0], flat[1:]
            return
        count = self._given[0].stored.count
        step = self._max_memory // sum(_element_bytes(self._sources))
        if step == 0:
            models = len(self._sources)
            raise OptionError(f"max_memory={self._max_memory} bytes does not hold one element of {models} checkpoints")
        if step >= SEGMENT:
            step -= step % SEGMENT
        for start in range(0, count, step):
            # No name here refers to a block, so that it is gone before the next one is read if its user lets it go.
            yield self._block(start, min(start + step, count))

    def ranges(self, step: int) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Yield (base, [tuned_0, ...]) over ranges of `step` elements, whatever the budget; see `blocks`."""
        count = self._given[0].stored.count
        if not self.is_split:
            base, *tuned = (whole.reshape(-1) for whole in self._whole())
            for start in range(0, count, step):
                yield base[start : start + step], [own[start : start + step] for own in tuned]
            return
        for start in range(0, count, step):
            yield self._block(start, min(start + step, count))

    def _block(self, start: int, stop: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        base, *tuned = self._read(lambda source: source.read(start, stop))
        return base, tuned

    def blocks_of(self, model: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (base, tuned) of one model over ranges of the flattened tensor; no other model is read."""
        if self._held is not None:
            yield self._held[0].reshape(-1), self._held[1 + model].reshape(-1)
            return
        pair = [self._sources[0], self._sources[1 + model]]
        count = self._given[0].stored.count
        step = max(1, self._max_memory // sum(_element_bytes(pair)))
        for start in range(0, count, step):
            base, tuned = (source.read(start, min(start + step, count)) for source in pair)
            yield base, tuned
            del base, tuned

    def matrix_blocks(self, model: int, axis: int, step: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield (start, base, tuned) for one model: `step` rows (axis 0) or columns (axis 1) of a matrix at a time.

        Of tensors that are no matrices, rows are all that lies under one index of the first dimension.
        """
        size, width = self.tensor.shape[axis], math.prod(self.tensor.shape[1:])
        for start in range(0, size, step):
            stop = min(start + step, size)
            pair = []
            for index in (0, 1 + model):
                checkpoint, name = self._sources[index]
                if not self.is_split:
                    rows = self._whole()[index].reshape(-1, width)
                    pair.append(rows.narrow(axis, start, stop - start))
                elif axis == 0:
                    pair.append(checkpoint.read_range(name, start * width, stop * width).view(-1, width))
                else:
                    pair.append(checkpoint.read_columns(name, start, stop))
            yield start, pair[0], pair[1]

    def content_hashes(
        self, models: Sequence[int] | None = None, map: Callable[..., Iterable[None]] = map
    ) -> list[str]:
        """Return a hash of dtype, shape and bytes of the tensor: of the base, then of each model, or of some.

        `map` may be that of a pool of threads, which then hash the checkpoints side by side.

        XXH3 (128 bits), which tells changed files from unchanged ones at memory speed (8.9 GB/s on one core,
        BLAKE2b 0.35); it is no protection against someone who forges a collision.
        """
        if models is not None and len(models) < len(self.zoo.models):
            part = self.zoo.select(models, self.tensor)
            return Layer(part, part.tensors[0], self._max_memory).content_hashes(map=map)
        hashers = []
        for source in self._sources:
            hashers.append(xxhash.xxh3_128(f"{source.stored.read_dtype}{source.stored.shape}".encode()))

        def update(hasher: xxhash.xxh3_128, block: torch.Tensor) -> None:
            hasher.update(block.view(torch.uint8).numpy())

        for base, tuned in self.blocks():
            list(map(update, hashers, (base, *tuned)))
            del base, tuned
        return [hasher.hexdigest() for hasher in hashers]

    def rounding(self) -> np.ndarray | None:
        """Return how much of the squared length of each task vector can be rounding, (N,); None where nothing can be.

        Of a model in a narrower dtype than the base that is what rounding takes from the base. Of one that rounds to
        a base in a narrower dtype it is all, infinity; of others 0. It is not known of tensors with scales: what
        is kept must be a function of the content hashes, which see their values alone.
        """
        base, *tuned = self._sources
        found, of_dtypes = np.zeros(len(tuned)), dict[torch.dtype, float]()
        for model, own in enumerate(tuned):
            if own is base or own.stored.scale or base.stored.scale:
                continue
            if may_round(base, own):
                dtype = own.stored.dtype
                of_dtypes[dtype] = of_dtypes[dtype] if dtype in of_dtypes else rounding_energy(base, own)
                found[model] = of_dtypes[dtype]
            elif may_round(own, base) and equals_rounded(own, base):
                found[model] = np.inf
        return found if found.any() else None

    def has_finite_base(self) -> bool:
        """Tell whether all values of the base are finite; no model is read."""
        return is_finite(self._given[0])

    def equal_to_base(self) -> list[bool]:
        """Return of each model whether all of its values are the base's, infinities and NaN too; the tensor is read."""
        equal = [True] * len(self.zoo.models)
        for base, tuned in self.blocks():
            equal = [so_far and same_values(base, own) for so_far, own in zip(equal, tuned, strict=True)]
            del base, tuned
        return equal


def _element_bytes(sources: Sequence[Source]) -> list[int]:
    return [source.stored.read_dtype.itemsize for source in sources]


class FactoredLayer:
    """One tensor of N models of which at least one does not hold it whole.

    The base is read only if some model holds the tensor whole.

    Attributes:
        zoo, tensor: all models, and the tensor in them.
        whole, factored: positions of the models that hold it whole, or as factors; the others have it as the base has.
        stored: the tensor in the base and in the models that hold it whole, if there are any.
        nbytes: bytes of weights that reading it holds at a time.
    """

    def __init__(self, zoo: Zoo, tensor: ZooTensor, max_memory: int) -> None:
        self.zoo, self.tensor = zoo, tensor
        changes = zoo.changes(tensor)
        self.whole = tuple(i for i, change in enumerate(changes) if change == "whole")
        self.factored = tuple(i for i, change in enumerate(changes) if change == "factors")
        self._max_memory = max_memory
        self.nbytes = sum(zoo.models[i].bytes_of(tensor.names[1 + i]) for i in self.factored)
        self.nbytes = min(max_memory, self.nbytes + (0 if self.stored is None else self.stored.nbytes))

    @cached_property
    def stored_zoo(self) -> Zoo:
        """The zoo of the models that hold the tensor whole."""
        return self.zoo.select(self.whole, self.tensor)

    @cached_property
    def stored(self) -> Layer | None:
        """See the class."""
        if not self.whole:
            return None
        return Layer(self.stored_zoo, self.stored_zoo.tensors[0], self._max_memory)

    def release(self) -> None:
        """Let go of tensors that are held."""
        if self.stored is not None:
            self.stored.release()

    def rounding(self) -> np.ndarray | None:
        """Return how much of each squared length can be rounding; see `Layer`."""
        of_whole = None if self.stored is None else self.stored.rounding()
        if of_whole is None:
            return None
        found = np.zeros(len(self.zoo.models))
        found[list(self.whole)] = of_whole
        return found

    def factors(self, model: int) -> Factors:
        """Return the factors of one of the models in `factored`."""
        return self.zoo.models[model].factors(self.tensor.names[1 + model])

    def content_hashes(
        self, models: Sequence[int] | None = None, map: Callable[..., Iterable[None]] = map
    ) -> list[str]:
        """Return a hash of what the task vectors depend on: of the base, then of each model, or of some; see `Layer`.

        Where no model holds the tensor whole, none depends on the base.
        """
        models = range(len(self.zoo.models)) if models is None else models
        hashes = dict.fromkeys((-1, *models), xxhash.xxh3_128(b"as the base").hexdigest())
        if self.stored is not None:
            whole = [model for model in models if model in self.whole]
            at = [self.whole.index(model) for model in whole]
            hashes |= zip((-1, *whole), self.stored.content_hashes(at, map), strict=True)
        for model in models:
            if model not in self.factored:
                continue
            left, right, scale = self.factors(model)
            hasher = xxhash.xxh3_128(f"{left.dtype}{left.shape}{right.dtype}{right.shape}{scale!r}".encode())
            for part in (left, right):
                hasher.update(part.contiguous().view(torch.uint8).numpy())
            hashes[model] = hasher.hexdigest()
        return list(hashes.values())

    def non_finite(self, model: int) -> NonFiniteError:
        """Return the error that says what is wrong with the factors of a model."""
        left, right, _ = self.factors(model)
        count = sum(int((~part.double().isfinite()).sum()) for part in (left, right))
        what = (
            f"{count} values of its LoRA factors are NaN or infinite" if count else "its LoRA product overflows float64"
        )
        return NonFiniteError(
            f"tensor {self.tensor.name!r} of {self.zoo.models[model].name!r}: {what}. "
            "Repair or leave out that checkpoint."
        )


class LayerStream:
    """Iterate over the tensors of a zoo, each of the base and all models together.

    Args:
        zoo: from `open_zoo`.
        max_memory: bytes of weights handed out at a time; larger tensors are split. Default 1 GiB.

    >>> from mergekern.checkpoints import open_zoo
    >>> models = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}
    >>> for layer in LayerStream(open_zoo(models, base={"w": torch.zeros(2)})):
    ...     for base, tuned in layer.blocks():
    ...         print(layer.tensor.name, base.shape, len(tuned))
    w torch.Size([2]) 2
    """

    def __init__(self, zoo: Zoo, max_memory: int | None = None) -> None:
        self.zoo = zoo
        self.max_memory = DEFAULT_MAX_MEMORY if max_memory is None else positive_bytes("max_memory", max_memory)

    def __len__(self) -> int:
        return len(self.zoo.tensors)

    def hold_together(self, layers: Sequence[Layer | FactoredLayer], most: int) -> bool:
        """Tell whether the budget allows these layers, and `most` their number, to be read at the same time."""
        return len(layers) <= most and sum(layer.nbytes for layer in layers) <= self.max_memory

    def __iter__(self) -> Iterator[Layer]:
        for tensor in self.zoo.tensors:
            yield Layer(self.zoo, tensor, self.max_memory)

    def with_factors(self) -> Iterator[Layer | FactoredLayer]:
        """Iterate likewise, but with factors as they are, where reads of a `Layer` would multiply them."""
        for tensor in self.zoo.tensors:
            yield self._layer(self.zoo, tensor)

    def select(self, models: Sequence[int], tensor: ZooTensor) -> Layer | FactoredLayer:
        """Return a tensor of some of the models, with factors as they are."""
        zoo = self.zoo.select(models, tensor)
        return self._layer(zoo, zoo.tensors[0])

    def _layer(self, zoo: Zoo, tensor: ZooTensor) -> Layer | FactoredLayer:
        is_whole = set(zoo.changes(tensor)) == {"whole"}
        return (Layer if is_whole else FactoredLayer)(zoo, tensor, self.max_memory)


def non_finite(layer: Layer, zoo: Zoo) -> NonFiniteError:
    """Return the error that says which checkpoints hold how many NaN or infinite values in a tensor."""
    counts = [0] * len(zoo.checkpoints)
    for base, tuned in layer.blocks():
        for index, values in enumerate((base, *tuned)):
            counts[index] += int((~values.double().isfinite()).sum())
    found = "; ".join(f"{count} in {c.name!r}" for c, count in zip(zoo.checkpoints, counts, strict=True) if count)
    return NonFiniteError(
        f"tensor {layer.tensor.name!r} holds NaN or infinite values: {found or 'its task vectors overflow float64'}. "
        "Repair or leave out those checkpoints."
    )
