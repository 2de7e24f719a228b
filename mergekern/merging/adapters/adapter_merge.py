"""One merge of adapters, planned: module by module from factors into a sink, and its record."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from mergekern._internal.notes import bounded
from mergekern._internal.versions import package_version
from mergekern.checkpoints.layout import Entry
from mergekern.errors import OptionError
from mergekern.kernels import lapack
from mergekern.merging.adapters import combinations
from mergekern.merging.adapters.plan import ModuleOutput, WholeOutput
from mergekern.merging.adapters.products import Merged, Update
from mergekern.merging.adapters.reading import Adapters, Contents
from mergekern.merging.adapters.truncation import Truncation
from mergekern.progress import Progress


class Sink(Protocol):
    """Takes the tensors of the result."""

    def write(self, name: str, values: torch.Tensor) -> None:
        """Take a whole tensor, flattened, in its dtype."""


@dataclass(frozen=True)
class AdapterMerge:
    """A merge that is asked for, checked and planned: nothing has been computed yet.

    Attributes:
        adapters: what is merged.
        name: the combination's name.
        options: those that it takes, checked.
        weights: what each adapter weighs.
        modules: the modules of the result.
        whole: its tensors that are held whole.
        config: its configuration.
        contents: hashes of what the adapters hold.
        notes: what took no part, and what could not be kept.
    """

    adapters: Adapters
    name: str
    options: Mapping[str, Any]
    weights: Sequence[float]
    modules: Sequence[ModuleOutput]
    whole: Sequence[WholeOutput]
    config: Mapping[str, Any]
    contents: Contents
    notes: Sequence[str]

    @property
    def entries(self) -> list[Entry]:
        """The tensors of the result."""
        return [*(e for output in self.modules for e in output.entries), *(output.entry for output in self.whole)]

    def merged(self, output: ModuleOutput) -> Merged:
        """Return the merged factors of a module; of a bias its values as B, beside a one."""
        updates = self._updates(output)
        if not updates:
            return Merged(np.zeros((output.b.shape[0], 1)), np.ones((1, 1)))
        if output.module.is_bias:
            total = combinations.cat(updates)
            return Merged(total.b @ total.a, np.ones((1, 1)))
        options = dict(self.options)
        if "svd_rank" in options:
            options["svd_rank"] = output.rank
        # What overflows is refused here, or where it is rounded.
        with np.errstate(over="ignore", invalid="ignore"), contextlib.suppress(np.linalg.LinAlgError):
            merged: Merged = getattr(combinations, self.name)(updates, **options)
            if math.isfinite(merged.square):
                return merged
        raise OptionError(f"{output.module.name!r}: the sum of its products is too large for float64")

    def mean(self, output: WholeOutput) -> torch.Tensor:
        """Return a tensor that is held whole, in float64 where it is a mean."""
        held = sorted(output.held.items(), key=lambda item: (self.contents.of_adapters[item[0]], self.weights[item[0]]))
        if not output.is_mean:
            index, stored = held[0]
            return self.adapters.adapters[index].read_stored(stored)
        total = torch.zeros(output.entry.shape, dtype=torch.float64, device="cpu")
        for index, stored in held:
            total += self.adapters.adapters[index].read_stored(stored).double() * self.weights[index]
        return total / math.fsum(self.weights[index] for index in output.held)

    def record(self, truncation: Truncation) -> dict[str, Any]:
        """Return the record that lies beside the result: the same for every order of the adapters.

        Args:
            truncation: as `run` returns it; before that an empty one, which changes no length.
        """
        models = [
            {"name": name, "hash": f"xxh3_128:{digest}", "weight": weight}
            for name, digest, weight in zip(self.adapters.names, self.contents.of_adapters, self.weights, strict=True)
        ]
        return {
            "version": package_version("mergekern"),
            "method": self.name,
            "kind": "LoRA adapters",
            "options": dict(self.options),
            "base": self.config["base_model_name_or_path"],
            "models": sorted(models, key=lambda model: (model["name"], model["hash"])),
            "truncation_error": truncation.record() if "svd_rank" in self.options else {},
            "notes": bounded(self.notes),
        }

    def run(self, sink: Sink, progress: Callable[[Progress], None] | None) -> Truncation:
        """Merge every module and write it; return how far the result is from what it approximates.

        Raises:
            OptionError: merged values are beyond the range of the dtype of the result.
        """
        truncation = Truncation()
        sizes = [output.module.nbytes for output in self.modules]
        start, threads = time.perf_counter(), torch.get_num_threads()
        waiting: deque[tuple[ModuleOutput, Future[Merged]]] = deque()

        def report(module: str, done: int) -> None:
            if progress is not None:
                seconds = time.perf_counter() - start
                progress(Progress(module, done, len(sizes), sum(sizes[:done]), sum(sizes), seconds))

        with lapack.single_threaded_pool(threads) as pool:
            left = iter(self.modules)
            for done in range(len(self.modules)):
                for output in left:
                    waiting.append((output, pool.submit(self.merged, output)))
                    if len(waiting) > threads:
                        break
                output, future = waiting.popleft()
                report(output.module.name, done)
                merged = future.result()
                _write_module(sink, output, merged)
                truncation.add(output.module.name, merged)
        for whole in self.whole:
            sink.write(whole.entry.name, _as_stored(self.mean(whole), whole.entry))
        for adapter in self.adapters.adapters:
            adapter.check_unchanged()
        report("", len(sizes))
        return truncation

    def _updates(self, output: ModuleOutput) -> list[Update]:
        """Return what the adapters add to a module, in an order that does not depend on the one they are given in."""
        module, updates = output.module, []
        for index, held in module.held.items():
            b, a = self.adapters.factors(module, index)
            updates.append(Update(b, a, held.scale, self.weights[index], self.contents.of(module, index)))
        return sorted(updates, key=lambda update: (update.content, update.weight))


def _write_module(sink: Sink, output: ModuleOutput, merged: Merged) -> None:
    for entry, values in ((output.b, merged.b), (output.a, merged.a)):
        if entry is not None:
            sink.write(entry.name, _as_stored(torch.from_numpy(np.ascontiguousarray(values)), entry))


def _as_stored(values: torch.Tensor, entry: Entry) -> torch.Tensor:
    """Return values in the dtype that is written, by float32 where that is narrower, as merges of models are rounded.

    Raises:
        OptionError: they are beyond its range.
    """
    flat = values.reshape(-1)
    out = flat if entry.dtype == flat.dtype else flat.to(torch.float32).to(entry.dtype)
    if not torch.isfinite(out).all():
        raise OptionError(
            f"{entry.name!r}: merged values are beyond the range of {str(entry.dtype).removeprefix('torch.')}; pass a "
            "wider dtype (--dtype)"
        )
    return out
