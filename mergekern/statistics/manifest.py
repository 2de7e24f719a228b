"""The manifest of a folder of statistics: which models it is of, and which blocks have their pairs.

manifest.json            the models, the tensors with their content hashes and blocks, options, provenance
blocks/NAME.safetensors   a block each; and one for each kind of what running the models gave
bases/NAME.safetensors    the singular vectors of a block
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
from mergekern.errors import StatisticsError
from mergekern.statistics.keys import BLOCKS, FORMAT

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class LayerEntry:
    """One tensor.

    Attributes:
        name, shape: of the tensor.
        hashes: of its content in the base, then in each model.
        blocks: file names of those that have the pairs, without suffix.
    """

    name: str
    shape: tuple[int, ...]
    hashes: tuple[str, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder of statistics holds.

    Attributes:
        models: names, in the order of the hashes.
        layers: in file order.
        top_k, spectrum_k: sizes of the subspaces and of the spectra.
        skipped: tensors left out because the checkpoints do not match in them.
        provenance: versions, backend, dtypes, content hashes.
        sources: where base and models were read from, by name; None for what was in memory.
        functional: file names of the blocks of what running the models gave, by kind.
        functional_models: the models that these are of.
        part: which of how many parts of the work on the zoo this is, from 1; the tensors of a part have no hashes and
            blocks of what is left to others.
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
        """Return the manifest of some of the models; the blocks are the same."""
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
        """Write to the folder."""
        content: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        # As one string a layer: a list of 500 models has 15 characters of layout for each 32 of content.
        content["layers"] = [{**layer, "hashes": ",".join(layer["hashes"])} for layer in content["layers"]]
        content["checksum"] = _checksum(content)
        write_atomically(folder / MANIFEST, _text(content))

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read from the folder.

        Raises:
            StatisticsError: there is none, or it is damaged, or of another version.
        """
        path = folder / MANIFEST
        try:
            text = path.read_bytes()
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise StatisticsError(
                    f"{folder}: statistics of format {content['format']}, but this version reads {FORMAT}; run "
                    "compute_all(..., statistics=PATH) to measure them again"
                )
            is_canonical = text == _text(content)
            if content.pop("checksum") != _checksum(content) or not is_canonical:
                raise ValueError("its checksum differs")
            del content["format"]
            for name in ("models", "skipped", "functional_models", "part"):
                content[name] = tuple(content[name])
            content["layers"] = tuple(
                LayerEntry(e["name"], tuple(e["shape"]), tuple(e["hashes"].split(",")), tuple(e["blocks"]))
                for e in content["layers"]
            )
            return Manifest(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
            raise StatisticsError(
                f"{path}: damaged ({type(error).__name__}: {error}); run compute_all(..., statistics=PATH) on the same "
                "models to make it again"
            ) from error


def provenance_of(provenance: dict[str, Any] | None, models: Sequence[str]) -> dict[str, Any] | None:
    """Return provenance without what it says of other models."""
    if provenance is None:
        return None
    names = {"base", *models}
    of_models = ("dtypes", "origins", "content_hashes")
    kept = {
        what: {name: value for name, value in said.items() if name in names} if what in of_models else said
        for what, said in provenance.items()
    }
    return {what: said for what, said in kept.items() if said or what != "origins"}


def is_statistics_folder(folder: Path) -> bool:
    """Tell whether a folder has been used for statistics."""
    return (folder / BLOCKS).is_dir()


def shards_in(folder: Path) -> list[Path]:
    """Return the folders of shards in a folder of statistics."""
    return sorted(folder.glob("shard-*-of-*"))


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _checksum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
