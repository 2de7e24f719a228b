"""What running the models of a zoo gives: taken from a store where it has it, measured where not."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Sequence

import torch

from mergekern.functional.binding import Binding
from mergekern.functional.model_runs import ModelRuns
from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.dispatch import Backend
from mergekern.statistics import FUNCTIONAL, FunctionalStatistics
from mergekern.statistics.store import Store


def measure_functional(
    binding: Binding,
    backend: Backend | DeviceBackend,
    threads: int,
    max_memory: int,
    store: Store | None = None,
    how: Sequence[object] = (),
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[FunctionalStatistics, dict[str, str]]:
    """Run every model, or take what a store has for the same inputs.

    Args:
        binding: the model, its checkpoints and calibration, and the kinds of statistics that are wanted.
        backend: its device runs the models, and its `gram` kernel compares what they give.
        threads: how many the kernel may use.
        max_memory: bytes of gradients held at a time, beside those of the model that is running.
        store: keeps the statistics; None keeps nothing.
        how: what else the values depend on, such as versions.
        progress: called before a model is run, with words for it.

    Returns:
        The statistics, and the keys of their blocks in the store, by kind.

    Raises:
        CalibrationError: the loss is NaN or no scalar, a label is outside the classes of the logits, the head does not
            fit the features, a named layer does not run exactly once.
        NonFiniteError: NaN or infinite activations or gradients.
        MismatchError: tensors that the model ties differ in a checkpoint.
        OptionError: no room on the disk for the gradients.
    """
    found, keys = (FunctionalStatistics(), {}) if store is None else _stored(binding, backend, store, how)
    lacking = binding.wanted - found.kinds.keys()
    if lacking:
        folder = None if store is None else store.path
        measured = ModelRuns(binding, lacking, backend, threads, max_memory, folder, progress).measure()
        binding.zoo.check_unchanged()  # or what was run is not what was hashed
        if store is not None:
            store.put_functional(measured, keys)
        found = dataclasses.replace(found, **measured.kinds)
    return found, {kind: keys[kind] for kind in found.kinds if kind in keys}


def _stored(
    binding: Binding, backend: Backend | DeviceBackend, store: Store, how: Sequence[object]
) -> tuple[FunctionalStatistics, dict[str, str]]:
    """Return what the store has for these inputs, and the keys under which it keeps every kind."""
    # Where the content cannot be known, the statistics are kept to be loaded, but not used for another run.
    calibration = binding.calibration.content_hash(binding.model) or uuid.uuid4().hex
    hashes = [checkpoint.content_hash() for checkpoint in binding.zoo.models]
    how = [*how, torch.__version__, backend.name, calibration, list(binding.zoo.model_names)]
    keys = {kind: store.functional_file_name(kind, hashes, how) for kind in FUNCTIONAL}
    return store.get_functional(keys), keys
