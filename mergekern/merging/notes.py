"""Notes of a merge's record on tensors and files that are not merged: the base's, averaged, or left out."""

from __future__ import annotations

import json
from pathlib import Path

from mergekern._internal.text import listed
from mergekern.checkpoints import Zoo
from mergekern.checkpoints.heads import named_heads
from mergekern.checkpoints.notes import skipped_names
from mergekern.merging.normalisation import averaged_statistics
from mergekern.merging.output import OutputPlan
from mergekern.merging.owners import BASE, files_of_owner
from mergekern.merging.submodels import SubModels


def lost_in_merges(zoo: Zoo, owner: int = BASE) -> list[str]:
    """Return notes on the weights that do not go into a merge although models have them.

    Args:
        zoo: the models.
        owner: position of the checkpoint whose tensors a result has where they are not merged.
    """
    of_base, others = skipped_names(zoo)
    if owner == BASE:
        whose = "the base's"
        notes = [f"tensors that do not match, and are {whose} ({len(of_base):,}): {listed(of_base)}"] if of_base else []
        if others:
            notes.append(f"tensors that the base does not have, and are left out ({len(others):,}): {listed(others)}")
        return notes
    name, known = zoo.checkpoints[owner].name, zoo.checkpoints[owner].tensors
    own = [each for each in (*of_base, *others) if each in known]
    lost = [each for each in (*of_base, *others) if each not in known]
    notes = [f"tensors that do not match, and are those of {name!r} ({len(own):,}): {listed(own)}"] if own else []
    if lost:
        notes.append(f"tensors that {name!r} does not have, and are left out ({len(lost):,}): {listed(lost)}")
    return notes


def notes_of_heads(zoo: Zoo, plan: OutputPlan) -> list[str]:
    """Return notes on whose heads, and whose files that say what inputs are, a result has."""
    if not zoo.heads:
        return []
    own, whose = sorted(zoo.heads.intersection(plan.entries)), "the base's"
    if plan.owner is not zoo.base:
        whose = f"those of {plan.owner.name!r}"
    notes = [f"heads, which are {whose} ({len(own):,}): {listed(own)}" if own else f"no head: {whose} are none"]
    if plan.folder is not None:
        files, of = files_of_owner(plan.owner, plan.base, plan.beside(plan.folder).copied)
        notes += [f"files that are {of} ({len(files):,}): {listed(sorted(files))}"] if files else []
    if plan.owner.config != plan.config and plan.config and not plan.owner.config:
        notes.append(
            f"config.json is the base's with the task of the adapter {plan.owner.name!r}: "
            f"{plan.config.get('architectures')}, {len(plan.config.get('id2label') or ())} labels"
        )
    return notes


def notes_on_labels(zoo: Zoo) -> list[str]:
    """Return a note on heads that are merged although their configurations give their rows other labels."""
    heads, owners = heads_of_other_labels(zoo)
    if not heads:
        return []
    return [
        f"heads that are merged although the labels of {' and '.join(map(repr, owners[:2]))} differ "
        f'({len(heads):,}): {listed(heads)}; heads="each" (--heads each) gives each model\'s own to the merged body'
    ]


def heads_of_other_labels(zoo: Zoo) -> tuple[list[str], list[str]]:
    """Return the heads among a zoo's tensors, and models whose labels differ; nothing where no two models' do."""
    labels: dict[str, str] = {}
    for model in zoo.models:
        if isinstance(said := model.config.get("id2label"), dict):
            labels.setdefault(json.dumps(said, sort_keys=True), model.name)
    merged = {tensor.name for tensor in zoo.tensors}
    heads = sorted(merged & named_heads(zoo.checkpoints)) if len(labels) > 1 else []
    return (heads, list(labels.values())) if heads else ([], [])


def notes_of_owner(zoo: Zoo, plan: OutputPlan, folder: Path | None) -> list[str]:
    """Return notes on what is the owner's in merges, and on what of its folder is not copied.

    Args:
        zoo: the models.
        plan: what is written.
        folder: the owner's folder where the result is a folder.
    """
    notes = []
    whose = "the base's" if plan.like_whom is zoo.base else f"those of {plan.owner.name!r}"
    buffers = sorted(name for name in plan.copied if name in plan.owner.buffers)
    if buffers:
        notes.append(f"integer tensors, which are {whose} ({len(buffers):,}): {listed(buffers)}")
    if averaged := averaged_statistics(zoo):
        notes.append(f"statistics of normalisation layers, which are averaged ({len(averaged):,}): {listed(averaged)}")
    if folder is not None and (left := plan.beside(folder).left):
        of = "the base's folder" if plan.like_whom is zoo.base else f"the folder of {plan.owner.name!r}"
        notes.append(f"not copied from {of} ({len(left):,}): {listed(left)}")
    return notes


def notes_of_submodels(submodels: SubModels, zoo: Zoo, owner: int | None) -> list[str]:
    """Return notes on the weights in sub-folders of a result with an owner, or of one that is no folder."""
    notes = []
    if merged := sorted(submodels.zoos):
        notes.append(f"sub-folders with weights, each merged by itself: {listed(merged)}")
    own = () if owner is None else submodels.others[owner]
    if own:
        whose = "the base's" if owner == BASE else f"those of {zoo.checkpoints[owner or BASE].name!r}"
        notes.append(f"sub-folders with weights that not all models have, and are {whose}: {listed(own)}")
    if left := submodels.left_out(owner):
        notes.append(f"sub-folders with weights, which are left out: {listed(left)}")
    return notes
