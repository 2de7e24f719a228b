"""A merge that is asked for: which models, how, with which weights; and its record."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergekern._internal.notes import bounded
from mergekern._internal.versions import package_version
from mergekern.checkpoints import Zoo
from mergekern.merging.gathered import Gathered
from mergekern.merging.group_merge import GroupMerge
from mergekern.merging.method import Method
from mergekern.merging.output import Sink
from mergekern.merging.route import Route
from mergekern.merging.settings import Settings
from mergekern.merging.weights_by_tensor import Weight, weights_of_tensors

# Keeps the place of a hash in the record until all tensors have been read.
_UNKNOWN_HASH = "0" * 32


@dataclass(frozen=True, eq=False)
class Request:
    """A merge that is asked for, checked: which models, how, and with which weights."""

    models: tuple[int, ...]
    method: Method
    options: dict[str, Any]
    weights: tuple[Weight, ...]
    gathered: Gathered | None = None

    def merge_into(self, sink: Sink, zoo: Zoo) -> GroupMerge:
        """Return the merge, which has yet to be made."""
        if all(isinstance(weight, float) for weight in self.weights):
            return GroupMerge(zoo, self.models, self.method, self._settings(self.weights), sink, None, self.gathered)  # type: ignore[arg-type]
        chosen = dataclasses.replace(zoo, models=tuple(zoo.models[model] for model in self.models))
        settings = {name: self._settings(each) for name, each in weights_of_tensors(self.weights, chosen).items()}
        means = [sum(each.weights[place] for each in settings.values()) for place in range(len(self.models))]
        return GroupMerge(
            zoo, self.models, self.method, self._settings(means), sink, settings.__getitem__, self.gathered
        )

    def _settings(self, weights: Sequence[float]) -> Settings:
        weigh = self.method.weigh
        return Settings(tuple(weights if weigh is None else weigh(weights, **self.options)), self.options)

    def names(self, zoo: Zoo) -> tuple[str, ...]:
        """Return the names of the models."""
        return tuple(zoo.model_names[model] for model in self.models)

    def record(self, zoo: Zoo, route: Route, notes: Sequence[str], hashes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the record that is written beside a merge: the same for every order of the models.

        Args:
            zoo: the models.
            route: what merges them.
            notes: what took no part, and what was not merged by the method.
            hashes: content hashes of the base, then of each model; empty until they are known, which changes no length.
        """
        hashes = hashes or [_UNKNOWN_HASH] * (1 + len(self.models))
        models = [
            {"name": name, "hash": f"xxh3_128:{digest}", "weight": weight}
            for name, digest, weight in zip(self.names(zoo), hashes[1:], self.weights, strict=True)
        ]
        return {
            "version": package_version("mergekern"),
            "method": self.method.name,
            "options": {
                name: dict(sorted(zip(self.names(zoo), value, strict=True))) if isinstance(value, tuple) else value
                for name, value in self.options.items()
            },
            "device": route.description,
            "base": f"xxh3_128:{hashes[0]}",
            "models": sorted(models, key=lambda model: (model["name"], model["hash"])),
            "notes": bounded(notes),
            **({} if self.gathered is None else {"calibration": self.gathered.identity}),
        }
