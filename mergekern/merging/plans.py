"""Plans of the results of merges, one for each checkpoint whose heads results have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mergekern.checkpoints import Zoo
from mergekern.merging.output import InMemory, OutputPlan, Several, StateDict
from mergekern.merging.owners import EACH, owners_of
from mergekern.merging.request import Request


class Plans:
    """What is written of a zoo's merges: one result each, or one for each model with its own head.

    Args:
        zoo: the models.
        heads: "each", "base", the name of a model, or None for the base without telling heads apart.
        dtype: dtype of all float tensors of the results; None for the base's.

    Attributes:
        are_of_each: whether every merge has a result for each of its models.
    """

    def __init__(self, zoo: Zoo, heads: str | None, dtype: torch.dtype | None) -> None:
        self._zoo, self._heads, self._dtype = zoo, heads, dtype
        self.are_of_each = heads == EACH
        self._plans: dict[int, OutputPlan] = {}
        for owner in owners_of(heads, zoo, range(len(zoo.models))):
            self[owner]  # so that what cannot be written is found first

    def __getitem__(self, owner: int) -> OutputPlan:
        """Return the plan of the results of an owner, by its position in `Zoo.checkpoints`."""
        if owner not in self._plans:
            self._plans[owner] = OutputPlan.like(self._zoo, owner, self._dtype)
        return self._plans[owner]

    def owners(self, models: Sequence[int]) -> list[int]:
        """Return the positions of the owners of the results of a merge of some models."""
        return owners_of(self._heads, self._zoo, models)

    def results(self, requests: Sequence[Request]) -> list[tuple[Request, int]]:
        """Return every merge with the owner of each of its results."""
        return [(request, owner) for request in requests for owner in self.owners(request.models)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of a result, the largest; of two, where each model of a pair has one."""
        return max(plan.nbytes for plan in self._plans.values()) * (2 if self.are_of_each else 1)

    def in_memory_of(self, models: Sequence[int]) -> InMemory | EachInMemory:
        """Return a sink that collects the results of a merge of some models."""
        sinks = {self._zoo.checkpoints[owner].name: self[owner].in_memory() for owner in self.owners(models)}
        return EachInMemory(sinks) if self.are_of_each else next(iter(sinks.values()))


class EachInMemory(Several):
    """A `Sink` that collects one merge for each of its models, by their names."""

    def __init__(self, sinks: Mapping[str, InMemory]) -> None:
        super().__init__(list(sinks.values()))
        self._by_name = sinks

    def finished(self) -> dict[str, StateDict]:
        """Return the state dicts, by the names of the models."""
        return {name: sink.finished() for name, sink in self._by_name.items()}
