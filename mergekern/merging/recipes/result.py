"""The result of a recipe: which tensors it has, what its folder holds, and its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash

from mergekern._internal.notes import bounded, notes_of_checkpoints
from mergekern._internal.text import listed
from mergekern._internal.versions import package_version
from mergekern.checkpoints.configuration import CONFIG, configuration_of_result
from mergekern.checkpoints.folder_files import FolderFiles, folder_files
from mergekern.checkpoints.layout import Entry, Layout, layout, layout_by_size
from mergekern.checkpoints.tying import tying_of
from mergekern.merging.arguments import resolve_dtype
from mergekern.merging.notes import lost_in_merges, notes_of_owner
from mergekern.merging.output import OutputPlan
from mergekern.merging.recipes.configuration import with_vocabulary
from mergekern.merging.recipes.plan import Plan
from mergekern.merging.recipes.schema import is_idle

# Bytes of a shard of results that are not laid out like one of the models.
SHARD_BYTES = 5_000_000_000


class Result:
    """The result of a recipe, yet to be made.

    Args:
        plan: what the recipe asks for.
        content: the recipe as it was given, for the record.

    Attributes:
        parts: what is written of each slice.
    """

    def __init__(self, plan: Plan, content: dict[str, Any]) -> None:
        self.plan, self._content = plan, content
        recipe = plan.recipe
        named = recipe.out_dtype or recipe.dtype
        self._dtype: torch.dtype | None = resolve_dtype(named.removeprefix("torch.")) if named else None
        self.parts = [OutputPlan.like_base(planned.slice.zoo, self._dtype) for planned in plan.slices]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The tensors that are stored, by name."""
        return {name: entry for part in self.parts for name, entry in part.entries.items()}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        return {alias: name for part in self.parts for alias, name in part.aliases.items()}

    def folder_at(self, path: Path) -> Path | None:
        """Return the folder whose other files are copied to a result at a path; None where the result is a file."""
        folder = self.plan.donor.folder
        is_folder = path.suffix != ".safetensors" and folder is not None and (folder / CONFIG).is_file()
        return folder if is_folder else None

    def layout_at(self, path: Path) -> Layout:
        """Return how the tensors are spread over files at a path, and the other files of a folder."""
        folder = self.folder_at(path)
        others: dict[str, Path | bytes] | None = None
        if folder is not None:
            others = self.plan.tokenizer.files(self._beside(folder).copied)
            others[CONFIG] = (json.dumps(self.configuration(), indent=2, ensure_ascii=False) + "\n").encode()
        donor = self.plan.donor
        if self.plan.recipe.slices or self.plan.recipe.modules or len(donor.files) > 1:
            return layout_by_size(self.entries, self._aliases, others, SHARD_BYTES)
        return layout(donor.checkpoint, self.entries, self._aliases, others)

    def configuration(self) -> dict[str, Any]:
        """Return config.json of the result."""
        config = dict(self.plan.donor.checkpoint.config)
        slices = [planned.slice for planned in self.plan.slices]
        for module in {each.module.name: each.module for each in slices if each.count}.values():
            layers = [
                (each.base.model.checkpoint.config, each.base.first + layer)
                for each in slices
                if each.module is module
                for layer in range(each.count)
            ]
            config = module.with_layers(config, layers)
        if self.plan.tokenizer.embeddings is not None:
            config = with_vocabulary(config, self.plan.tokenizer.embeddings.count)
        found = {entry.dtype for entry in self.entries.values() if entry.dtype.is_floating_point}
        widest = max(found, key=lambda each: each.itemsize, default=None)
        dtype = str(self._dtype or widest).removeprefix("torch.") if self._dtype or widest else None
        is_tied = tying_of(self.plan.donor.checkpoint, self.entries)
        return configuration_of_result(config, dtype=dtype, is_tied=is_tied)

    def notes(self, folder: Path | None) -> tuple[list[str], list[str]]:
        """Return notes on what is lost, and the other notes.

        Args:
            folder: whose other files are copied, where the result is a folder.
        """
        plan = self.plan
        idle = sorted(_idle_keys(self._content))
        lost: dict[str, None] = dict.fromkeys(f"the key {key!r} has no effect" for key in idle)
        lost |= dict.fromkeys((*plan.notes, *plan.tokenizer.assumed))
        others: dict[str, None] = dict.fromkeys(plan.tokenizer.notes)
        for planned, part in zip(plan.slices, self.parts, strict=True):
            lost |= dict.fromkeys(lost_in_merges(planned.slice.zoo))
            others |= dict.fromkeys(notes_of_owner(planned.slice.zoo, part, None))
        if folder is not None:
            beside = self._beside(folder)
            if left := (*beside.left, *beside.submodels):
                others[f"not copied from the folder of {plan.donor.text} ({len(left):,}): {listed(left)}"] = None
        spoken_of = {model.text: model.checkpoint.notes for model in plan.models}
        return list(lost), [*others, *notes_of_checkpoints(spoken_of, list(spoken_of))]

    def record(self, device: str, notes: Sequence[str], hashes: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
        """Return the record that is written beside the result.

        Args:
            device: what merges.
            notes: what took no part.
            hashes: content hashes of the base and of each model, for each slice; empty until they are known, which
                changes no length.
        """
        texts = {source.model.text for planned in self.plan.slices for source in planned.slice.sources}
        base, found = xxhash.xxh3_128(), {text: xxhash.xxh3_128() for text in sorted(texts)}
        for planned, (of_base, *of_models) in zip(self.plan.slices, hashes, strict=bool(hashes)):
            base.update(of_base.encode())
            for source, digest in zip(planned.slice.sources, of_models, strict=True):
                found[source.model.text].update(digest.encode())
        return {
            "version": package_version("mergekern"),
            "method": self.plan.recipe.merge_method,
            "recipe": self._content,
            "device": device,
            "base": f"xxh3_128:{base.hexdigest()}",
            "models": [{"name": text, "hash": f"xxh3_128:{hasher.hexdigest()}"} for text, hasher in found.items()],
            "notes": bounded(notes),
        }

    def _beside(self, folder: Path) -> FolderFiles:
        own = {path.name for path in self.plan.donor.checkpoint.files}
        return folder_files(folder, {Path(self.plan.donor.checkpoint.source).name, *own})


def _idle_keys(content: Any) -> set[str]:
    """Return the keys of a recipe that change nothing, in all its parts."""
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    own = {str(key) for key in content if is_idle(key)} if isinstance(content, dict) else set()
    return own.union(*map(_idle_keys, parts))
