"""The manifest of a folder of statistics: its models, and the blocks that have their pairs.

manifest.json             the models, the tensors with their content hashes and blocks, options, provenance
blocks/NAME.safetensors   one block of a tensor, or one kind of functional statistics
bases/NAME.safetensors    the singular vectors of the block of the same name
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from mergekern._internal.files import write_atomically
from mergekern._internal.text import shortened
from mergekern.errors import StatisticsError
from mergekern.statistics.functional import FUNCTIONAL
from mergekern.statistics.keys import BLOCKS, FORMAT

MANIFEST = "manifest.json"
# Hidden folders of shards that are put together, on their way out: .combined-0, .combined-1 …
REMOVED = "combined"


@dataclass(frozen=True)
class LayerEntry:
    """Entry of one tensor in a manifest.

    Attributes:
        name, shape: name and shape of the tensor.
        hashes: content hashes of the tensor in the base, then in each model; empty where a shard did not read it.
        blocks: file names, without suffix, of the blocks that have the pairs.
    """

    name: str
    shape: tuple[int, ...]
    hashes: tuple[str, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Manifest of a folder of statistics.

    Attributes:
        models: names of the models, in the order of the hashes.
        layers: entry of each tensor, in file order.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        skipped: tensors left out because the checkpoints do not match in them.
        provenance: versions, backend, dtypes, content hashes.
        sources: where the base and the models were read from, by name; None for a model that was in memory.
        functional: file names, without suffix, of the functional statistics, by kind.
        functional_models: names of the models in the functional statistics, in their order.
        part: number of this part of the work on the zoo, from 1, and the number of parts. The entries of a part lack
            the hashes and blocks that belong to other parts only.
    """

    models: tuple[str, ...]
    layers: tuple[LayerEntry, ...]
    top_k: int
    spectrum_k: int
    skipped: tuple[str, ...]
    provenance: dict[str, Any] | None
    sources: Mapping[str, str | None]
    functional: Mapping[str, str]
    functional_models: tuple[str, ...]
    part: tuple[int, int] = (1, 1)

    @property
    def file_names(self) -> set[str]:
        """File names of all blocks, without suffix."""
        return {file_name for layer in self.layers for file_name in layer.blocks} | set(self.functional.values())

    def select(self, models: Sequence[str]) -> Manifest:
        """Return the manifest of some of the models, in this order, with the same blocks."""
        at = [0, *(1 + self.models.index(model) for model in models)]
        layers = (dataclasses.replace(e, hashes=tuple(e.hashes[i] for i in at)) for e in self.layers)
        return dataclasses.replace(
            self,
            models=tuple(models),
            layers=tuple(layers),
            provenance=provenance_of(self.provenance, models),
            sources={name: source for name, source in self.sources.items() if name in ("base", *models)},
        )

    def write(self, folder: Path) -> None:
        """Write the manifest to a folder of statistics."""
        content: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        # As one string a layer: a list of 500 models has 15 characters of layout for each 32 of content.
        content["layers"] = [{**layer, "hashes": ",".join(layer["hashes"])} for layer in content["layers"]]
        content["checksum"] = _checksum(content)
        write_atomically(folder / MANIFEST, _text(content))

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read the manifest of a folder of statistics.

        Raises:
            StatisticsError: there is none, it is damaged, or it is of another format.
        """
        from mergekern._internal.documents import checked, parse_json
        from mergekern.statistics.schemas import ManifestDocument

        path = folder / MANIFEST
        try:
            text = path.read_bytes()
            content = parse_json(text)
            if content["format"] != FORMAT:
                raise StatisticsError(
                    f"{folder}: statistics of format {content['format']}, but this version reads {FORMAT}; run "
                    "compute_all(..., statistics=PATH) to measure them again"
                )
            is_canonical = text == _text(content)
            if content.pop("checksum") != _checksum(content) or not is_canonical:
                raise ValueError("its checksum differs")
            del content["format"]
            said = checked(ManifestDocument, content)
            if unknown := said.functional.keys() - FUNCTIONAL.keys():
                raise ValueError(f"no statistics of the kind {shortened(sorted(unknown)[0])!r} are known")
            content |= {name: tuple(content[name]) for name in ("models", "skipped", "functional_models", "part")}
            content["layers"] = tuple(
                LayerEntry(e.name, tuple(e.shape), tuple(e.hashes.split(",")), tuple(e.blocks)) for e in said.layers
            )
            return Manifest(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, StatisticsError):
                raise
            if isinstance(error, FileNotFoundError) and shards_in(folder):
                raise StatisticsError(
                    f"{folder}: the shards in it are not combined; `mergekern combine {folder}` puts them together"
                ) from None
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise StatisticsError(
                    f"{folder}: not a folder of finished statistics (no {MANIFEST}); run compute_all(..., "
                    "statistics=PATH) to make or finish it"
                ) from error
            reason = error if isinstance(error, ValueError) else repr(error)
            raise StatisticsError(
                f"{path}: damaged ({reason}); run compute_all(..., statistics=PATH) on the same models to make it again"
            ) from error


def provenance_of(provenance: dict[str, Any] | None, models: Sequence[str]) -> dict[str, Any] | None:
    """Return the provenance of some of the models: entries of other models are left out."""
    if provenance is None:
        return None
    names = {"base", *models}
    of_models = ("dtypes", "origins", "content_hashes", "notes")
    kept = {
        what: {name: value for name, value in said.items() if name in names} if what in of_models else said
        for what, said in provenance.items()
    }
    return {what: said for what, said in kept.items() if said or what not in ("origins", "notes")}


def is_statistics_folder(folder: Path) -> bool:
    """Tell whether a folder has been used for statistics, finished or not."""
    return (folder / BLOCKS).is_dir()


def shards_in(folder: Path) -> list[Path]:
    """Return the folders of shards in a folder of statistics."""
    return sorted(folder.glob("shard-*-of-*"))


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _checksum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
