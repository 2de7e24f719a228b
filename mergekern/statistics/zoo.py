"""The statistics of a zoo, in memory and in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mergekern._internal.files import not_written
from mergekern.errors import OptionError, StatisticsError, did_you_mean
from mergekern.statistics.assembly import assemble
from mergekern.statistics.functional import FUNCTIONAL, FunctionalStatistics, read_only
from mergekern.statistics.keys import BLOCKS, SAVED, BlockKey, block_path
from mergekern.statistics.layer_block import LayerBlock
from mergekern.statistics.layers import LayerStatistics
from mergekern.statistics.manifest import LayerEntry, Manifest, provenance_of


@dataclass(frozen=True)
class ZooStatistics:
    """Statistics of every tensor of a zoo.

    Attributes:
        models: their names, in the order of every (N, N) matrix here.
        layers: one for each tensor, in file order.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        skipped: tensors left out because the checkpoints do not match in them.
        provenance: versions, backend, dtypes, content hashes.
        functional: what running the models on calibration data gave, if they were.

    >>> import mergekern
    >>> models = {"a": {"w": np.ones((2, 2))}, "b": {"w": np.eye(2)}}
    >>> statistics = mergekern.measure(models, base={"w": np.zeros((2, 2))})
    >>> statistics.layers[0].inner
    array([[4., 2.],
           [2., 2.]])
    """

    models: tuple[str, ...]
    layers: tuple[LayerStatistics, ...]
    top_k: int
    spectrum_k: int
    skipped: tuple[str, ...] = ()
    provenance: dict[str, Any] | None = None
    functional: FunctionalStatistics = field(default_factory=FunctionalStatistics)

    @cached_property
    def inner(self) -> np.ndarray:
        """(N, N) inner products of the whole task vectors: the sum over all tensors."""
        return read_only(reduce(np.add, (layer.inner for layer in self.layers)))

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(N, N) squared distances between the whole task vectors."""
        return read_only(reduce(np.add, (layer.squared_distance for layer in self.layers)))

    @property
    def has_spectra(self) -> bool:
        """Whether every matrix has its spectrum, which the subspace metrics need."""
        return all(layer.spectrum is not None for layer in self.layers if layer.is_matrix)

    def only(self, layer: LayerStatistics) -> ZooStatistics:
        """Return the statistics of a zoo of the same models with this one tensor."""
        return ZooStatistics(self.models, (layer,), self.top_k, self.spectrum_k)

    def select(self, models: Sequence[str]) -> ZooStatistics:
        """Return the statistics of some of the models, in this order: those that a zoo of them alone would have.

        What running the models gave is of the samples of all tasks, and stays so.

        Raises:
            OptionError: an unknown model, or one given twice.
        """
        at = positions(self.models, models)
        return ZooStatistics(
            tuple(models),
            tuple(layer.select(at) for layer in self.layers),
            self.top_k,
            self.spectrum_k,
            self.skipped,
            provenance_of(self.provenance, models),
            self.functional.select(at),
        )

    def save(self, path: str | Path) -> None:
        """Write the statistics to a folder (without singular vectors, so that no models can be added to them).

        Raises:
            OutputError: the folder cannot be written to.
        """
        try:
            self._write(Path(path))
        except OSError as error:
            raise not_written(Path(path), error, "give a folder that can be, with more room") from error

    def _write(self, folder: Path) -> None:
        entries = []
        (folder / BLOCKS).mkdir(parents=True, exist_ok=True)
        contents = (self.provenance or {}).get("content_hashes", {})
        for layer in self.layers:
            # The content of single tensors is not known here: told by that of the models.
            base, *hashes = (
                xxhash.xxh3_128_hexdigest(f"{layer.name}\0{name}\0{contents.get(name)}".encode())
                for name in ("base", *self.models)
            )
            key = BlockKey(layer.name, layer.shape, SAVED, base, tuple(hashes), ())
            LayerBlock.from_layer(key, layer.without_bases()).write(folder)
            entries.append(LayerEntry(layer.name, layer.shape, (base, *hashes), (key.file_name,)))
        kinds = self.functional.kinds
        for kind, part in kinds.items():
            part.write(block_path(folder, kind))
        Manifest(
            self.models,
            tuple(entries),
            self.top_k,
            self.spectrum_k,
            self.skipped,
            self.provenance,
            {name: None for name in ("base", *self.models)},
            {kind: kind for kind in kinds},
            self.models if kinds else (),
        ).write(folder)

    @staticmethod
    def load(path: str | Path, models: Sequence[str] | None = None) -> ZooStatistics:
        """Read statistics from a folder that `save` or `compute_all(statistics=...)` wrote, checking what is read.

        Args:
            path: the folder.
            models: names of those that are wanted, in this order; by default all. Memory is that of these alone, and
                only blocks that have pairs of them are read.

        Raises:
            StatisticsError: missing, damaged or foreign files.
            OptionError: an unknown model, or one given twice.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        if manifest.part != (1, 1):
            raise StatisticsError(
                f"{folder}: part {manifest.part[0]} of {manifest.part[1]} of the statistics of a zoo; "
                "`mergekern combine` puts the parts together"
            )
        if models is not None:
            positions(manifest.models, models)
            manifest = manifest.select(models)
        layers = []
        for entry in manifest.layers:
            blocks, hashes = list(entry.blocks), set(entry.hashes[1:])
            try:
                if models is not None and len(blocks) > 1:
                    blocks = [name for name in blocks if BlockKey.read(folder, name).has_pairs_of(hashes)]
                layers.append(assemble((LayerBlock.read(folder, name) for name in blocks), entry.hashes[1:]))
            except StatisticsError as error:
                raise StatisticsError(f"{folder}: tensor {entry.name!r}: {error}") from error
        functional = FunctionalStatistics()
        if set(manifest.models) <= set(manifest.functional_models):
            found = {
                kind: FUNCTIONAL[kind].read(block_path(folder, name)) for kind, name in manifest.functional.items()
            }
            functional = FunctionalStatistics(**found).select(positions(manifest.functional_models, manifest.models))
        return ZooStatistics(
            manifest.models,
            tuple(layers),
            manifest.top_k,
            manifest.spectrum_k,
            manifest.skipped,
            manifest.provenance,
            functional,
        )


def positions(known: Sequence[str], models: Sequence[str]) -> list[int]:
    """Return where models are among the known ones.

    Raises:
        OptionError: an unknown model, or one given twice.
    """
    at = {name: position for position, name in enumerate(known)}
    if unknown := [name for name in models if name not in at]:
        raise OptionError(f"no model {unknown[0]!r} in these statistics{did_you_mean(unknown[0], at)}")
    if len(set(models)) < len(models):
        raise OptionError(f"a model is given twice: {', '.join(sorted(n for n in at if list(models).count(n) > 1))}")
    return [at[name] for name in models]
