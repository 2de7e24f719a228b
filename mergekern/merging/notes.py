"""Notes of a merge's record on tensors and files that are not merged: the base's, averaged, or left out."""

from __future__ import annotations

from pathlib import Path

from mergekern._internal.text import listed
from mergekern.checkpoints import Zoo
from mergekern.checkpoints.notes import skipped_names
from mergekern.merging.normalisation import averaged_statistics
from mergekern.merging.output import OutputPlan
from mergekern.merging.submodels import SubModels


def lost_in_merges(zoo: Zoo) -> list[str]:
    """Return notes on the weights that do not go into a merge although models have them."""
    of_base, others = skipped_names(zoo)
    notes = [f"tensors that do not match, and are the base's ({len(of_base):,}): {listed(of_base)}"] if of_base else []
    if others:
        notes.append(f"tensors that the base does not have, and are left out ({len(others):,}): {listed(others)}")
    return notes


def notes_of_base(zoo: Zoo, plan: OutputPlan, folder: Path | None) -> list[str]:
    """Return notes on what is the base's in merges, and on what of its folder is not copied.

    Args:
        zoo: the models.
        plan: what is written.
        folder: the base's folder where the result is a folder.
    """
    notes = []
    buffers = sorted(name for name in plan.copied if name in zoo.base.buffers)
    if buffers:
        notes.append(f"integer tensors, which are the base's ({len(buffers):,}): {listed(buffers)}")
    if averaged := averaged_statistics(zoo):
        notes.append(f"statistics of normalisation layers, which are averaged ({len(averaged):,}): {listed(averaged)}")
    if folder is not None and (left := plan.beside(folder).left):
        notes.append(f"not copied from the base's folder ({len(left):,}): {listed(left)}")
    return notes


def notes_of_submodels(submodels: SubModels) -> list[str]:
    """Return notes on the weights in sub-folders."""
    notes = []
    if merged := sorted(submodels.zoos):
        notes.append(f"sub-folders with weights, each merged by itself: {listed(merged)}")
    if submodels.of_base:
        notes.append(
            f"sub-folders with weights that not all models have, and are the base's: {listed(submodels.of_base)}"
        )
    if submodels.left_out:
        notes.append(f"sub-folders with weights, which are left out: {listed(submodels.left_out)}")
    return notes
