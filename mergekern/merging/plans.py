"""Plans of the results of merges, one for each checkpoint whose heads results have."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergekern.checkpoints import Zoo
from mergekern.merging.output import OutputPlan
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

    def owners(self, request: Request) -> list[int]:
        """Return the positions of the owners of a merge's results."""
        return owners_of(self._heads, self._zoo, request.models)

    def results(self, requests: Sequence[Request]) -> list[tuple[Request, int]]:
        """Return every merge with the owner of each of its results."""
        return [(request, owner) for request in requests for owner in self.owners(request)]

    def nbytes(self, request: Request) -> int:
        """Return the bytes of all tensors of a merge's results."""
        return sum(self[owner].nbytes for owner in self.owners(request))
