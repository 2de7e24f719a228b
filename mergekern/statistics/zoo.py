"""The statistics of a zoo, in memory and in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from mergekern._internal.files import not_written
from mergekern.errors import OptionError, StatisticsError, did_you_mean
from mergekern.statistics.assembly import assemble
from mergekern.statistics.functional import FUNCTIONAL, FunctionalStatistics
from mergekern.statistics.keys import BLOCKS, SAVED, BlockKey, block_path
from mergekern.statistics.layer_block import LayerBlock
from mergekern.statistics.layers import LayerStatistics, LayerSums
from mergekern.statistics.manifest import LayerEntry, Manifest, provenance_of


@dataclass(frozen=True)
class ZooStatistics(LayerSums):
    """Statistics of every tensor of a zoo.

    Attributes:
        models: names of the models, in the order of every (N, N) matrix.
        layers: statistics of each tensor, in file order.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        skipped: tensors left out because the checkpoints do not match in them.
        provenance: versions, backend, dtypes, content hashes.
        functional: functional statistics; empty where the models were not run.

    >>> import mergekern, numpy as np
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

    @property
    def has_spectra(self) -> bool:
        """Whether every matrix has a spectrum, which the subspace metrics need."""
        return all(layer.spectrum is not None for layer in self.layers if layer.is_matrix)

    @property
    def has_coordinates(self) -> bool:
        """Whether every tensor has the statistics of its coordinates."""
        return all(layer.coordinates is not None for layer in self.layers)

    @property
    def has_interference(self) -> bool:
        """Whether every matrix has the singular task interference of its models."""
        spectra = [layer.spectrum for layer in self.layers if layer.is_matrix]
        return all(spectrum is not None and spectrum.interference is not None for spectrum in spectra)

    @property
    def is_randomized(self) -> bool:
        """Whether a matrix was factorised by a randomised SVD: without bottom vectors, with estimated errors."""
        is_said = "svd" in (self.provenance or {})
        return is_said or any(layer.spectrum is not None and layer.spectrum.errors is not None for layer in self.layers)

    def only(self, layer: LayerStatistics) -> ZooStatistics:
        """Return the statistics of a zoo of the same models that has this one tensor."""
        return ZooStatistics(self.models, (layer,), self.top_k, self.spectrum_k)

    def select(self, models: Sequence[str]) -> ZooStatistics:
        """Return the statistics of some of the models, in this order, as a zoo of these models alone would have them.

        Functional statistics are still of the samples of all tasks.

        Raises:
            OptionError: a model is unknown or is given twice.
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
        """Write the statistics to a folder, without singular vectors: models cannot be added to them.

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
            # Content hashes of single tensors are not known here; those of whole models stand in for them.
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
        """Read statistics from a folder that `save` or `compute_all(statistics=...)` wrote, and check them.

        Args:
            path: the folder.
            models: names of the models to read, in this order; by default all. Only blocks that have pairs of these
                models are read, and memory is needed for these models alone.

        Raises:
            StatisticsError: files are missing, damaged or not statistics.
            OptionError: a model is unknown or is given twice.
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
        return ZooStatistics(
            manifest.models,
            tuple(_read_layer(folder, entry, models is not None) for entry in manifest.layers),
            manifest.top_k,
            manifest.spectrum_k,
            manifest.skipped,
            manifest.provenance,
            _read_functional(folder, manifest),
        )


def _read_layer(folder: Path, entry: LayerEntry, is_selection: bool) -> LayerStatistics:
    """Read one tensor; of a selection of models, not all blocks may be needed."""
    blocks, models = entry.blocks, entry.hashes[1:]
    try:
        if is_selection and len(blocks) > 1:
            wanted = set(models)
            blocks = tuple(name for name in blocks if BlockKey.read(folder, name).has_pairs_of(wanted))
        return assemble(entry.name, entry.shape, (LayerBlock.read(folder, name) for name in blocks), models)
    except StatisticsError as error:
        raise StatisticsError(f"{folder}: tensor {entry.name!r}: {error}") from error


def _read_functional(folder: Path, manifest: Manifest) -> FunctionalStatistics:
    """Read the functional statistics, if they are of all models."""
    if not set(manifest.models) <= set(manifest.functional_models):
        return FunctionalStatistics()
    found = {kind: FUNCTIONAL[kind].read(block_path(folder, name)) for kind, name in manifest.functional.items()}
    for kind, part in found.items():
        if part.count != (models := len(manifest.functional_models)):
            raise StatisticsError(f"{folder}: {kind} of {part.count} models, but the manifest names {models}")
    return FunctionalStatistics(**found).select(positions(manifest.functional_models, manifest.models))


def positions(known: Sequence[str], models: Sequence[str]) -> list[int]:
    """Return the positions of models among the known models.

    Raises:
        OptionError: a model is unknown or is given twice.
    """
    at = {name: position for position, name in enumerate(known)}
    if unknown := [name for name in models if name not in at]:
        raise OptionError(f"no model {unknown[0]!r} in these statistics{did_you_mean(unknown[0], at)}")
    if len(set(models)) < len(models):
        raise OptionError(f"a model is given twice: {', '.join(sorted(n for n in at if list(models).count(n) > 1))}")
    return [at[name] for name in models]
