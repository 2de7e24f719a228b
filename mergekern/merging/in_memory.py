"""Merges, single models and the base of a zoo in memory, each tensor read once for as many as fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mergekern.checkpoints import LayerStream, Zoo
from mergekern.kernels import dispatch
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.merging.merge_pass import MergePass
from mergekern.merging.on_cpu import CpuRoute
from mergekern.merging.on_device import DeviceRoute
from mergekern.merging.output import OutputPlan, StateDict
from mergekern.merging.plans import Plans
from mergekern.merging.registry import find_method
from mergekern.merging.request import Request
from mergekern.merging.route import Route
from mergekern.progress import Progress

# Bytes of merged models that are made in one pass over the zoo.
MERGED_BYTES = 4 << 30


def route_on(device: str | torch.device, max_memory: int | None) -> Route:
    """Return the kernels of a device.

    Raises:
        OptionError: the device is not there.
    """
    backend = dispatch.choose(device)
    return DeviceRoute(backend, max_memory) if isinstance(backend, DeviceBackend) else CpuRoute(max_memory)


def merges_in_memory(
    zoo: Zoo,
    requests: Sequence[Request],
    plan: OutputPlan | Plans,
    route: Route,
    *,
    merged_memory: int = MERGED_BYTES,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[Request, Any]]:
    """Yield each merge with its state dict (or one for each model), in order; a pass reads only the models it needs.

    Args:
        zoo: the base and the models.
        requests: merges of models of the zoo.
        plan: what a result holds.
        route: what merges.
        merged_memory: bytes of results that are held; more merges take more passes.
        progress: called at the start of every tensor of a pass and at its end.
    """
    size = max(1, merged_memory // max(plan.nbytes, 1))
    for start in range(0, len(requests), size):
        together = requests[start : start + size]
        models = sorted({model for request in together for model in request.models})
        part = zoo if len(models) == len(zoo.models) else select_models(zoo, models)
        sinks: list[Any] = [plan.in_memory_of(request.models) for request in together]
        merges = [
            dataclasses.replace(request, models=tuple(map(models.index, request.models))).merge_into(sink, part)
            for request, sink in zip(together, sinks, strict=True)
        ]
        MergePass(LayerStream(part, route.max_memory), merges, route, progress).run()
        del merges
        for request in together:
            yield request, sinks.pop(0).finished()


def as_it_is(model: int) -> Request:
    """Return the merge of one model alone, which is the model, laid out like the base.

    >>> from mergekern.checkpoints import open_zoo
    >>> zoo = open_zoo({"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}, {"w": torch.zeros(2)})
    >>> plan = OutputPlan.like_base(zoo, None)
    >>> [state for _, state in merges_in_memory(zoo, [as_it_is(0)], plan, route_on("cpu", None))]
    [{'w': tensor([1., 1.])}]
    """
    method, options = find_method("weight_average")
    return Request((model,), method, options, (1.0,))


def base_in_memory(zoo: Zoo, plan: OutputPlan) -> StateDict:
    """Return the base as a state dict, as merges are."""
    sink = plan.in_memory()
    for tensor in zoo.tensors:
        sink.write(tensor.name, zoo.base.read(tensor.name).to(sink.dtype(tensor.name)).reshape(-1))
    return sink.finished()


def select_models(zoo: Zoo, models: Sequence[int]) -> Zoo:
    """Return the zoo of some of the models, with the same tensors."""
    tensors = tuple(tensor.select(models) for tensor in zoo.tensors)
    return dataclasses.replace(zoo, models=tuple(zoo.models[model] for model in models), tensors=tensors)
