"""Statistics on disk: a folder of blocks, one for each tensor, and a manifest.

A block is a safetensors file named by what it was computed from (content hashes of the tensor in the base and in
every model, and the options), so that one that is there need not be computed again, and a changed input never meets
a stale one. Files are written under a temporary name, flushed and renamed: a run killed at any moment leaves whole
blocks and continues from them. Each block carries a checksum of its arrays.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash

from mergekern.errors import StatisticsError
from mergekern.files import write_atomically
from mergekern.statistics import LayerStatistics, SpectrumStatistics, ZooStatistics

FORMAT = 1
MANIFEST = "manifest.json"
BLOCKS = "blocks"

logger = logging.getLogger(__name__)


class Store:
    """The blocks of one folder, as a run reads and writes them.

    Raises:
        StatisticsError: the path is something else than a statistics folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_new = not path.exists()
        self._written: list[Path] = []
        if not self._is_new and not path.is_dir():
            raise StatisticsError(f"{path}: is a file; statistics are kept in a folder")
        if not self._is_new and any(path.iterdir()) and not (path / BLOCKS).is_dir():
            raise StatisticsError(f"{path}: a folder with other things in it; give a new or empty one for statistics")

    def key(self, name: str, shape: Sequence[int], hashes: Sequence[str], top_k: int, spectrum_k: int) -> str:
        """Return the name of the block of one tensor."""
        content = json.dumps([FORMAT, name, list(shape), list(hashes), top_k, spectrum_k])
        return xxhash.xxh3_128(content.encode()).hexdigest()

    def get(self, key: str, with_spectrum: bool) -> LayerStatistics | None:
        """Return a block if it is there, whole, and holds what is needed."""
        path = self._block(key)
        if not path.exists():
            return None
        try:
            layer = _read_block(path)
        except StatisticsError as error:
            logger.warning("%s; computing it again", error)
            return None
        return None if with_spectrum and layer.is_matrix and layer.spectrum is None else layer

    def put(self, key: str, layer: LayerStatistics) -> None:
        """Write a block."""
        (self.path / BLOCKS).mkdir(parents=True, exist_ok=True)
        write_atomically(self._block(key), _block_bytes(layer))
        self._written.append(self._block(key))

    def finish(self, statistics: ZooStatistics, keys: Sequence[str]) -> None:
        """Write the manifest and remove the blocks that it does not name."""
        manifest = {
            "format": FORMAT,
            "models": statistics.models,
            "top_k": statistics.top_k,
            "spectrum_k": statistics.spectrum_k,
            "skipped": statistics.skipped,
            "provenance": statistics.provenance,
            "blocks": list(keys),
        }
        (self.path / BLOCKS).mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / MANIFEST, json.dumps(manifest, indent=1).encode())
        keep = {f"{key}.safetensors" for key in keys}
        for path in (self.path / BLOCKS).iterdir():
            if path.name not in keep:
                path.unlink()

    def undo(self) -> None:
        """Remove what this run wrote: its input turned out to be bad."""
        for path in self._written:
            path.unlink(missing_ok=True)
        if self._is_new and self.path.exists():
            shutil.rmtree(self.path)

    def _block(self, key: str) -> Path:
        return self.path / BLOCKS / f"{key}.safetensors"


def save(statistics: ZooStatistics, path: Path) -> None:
    """Write statistics to a folder."""
    store = Store(path)
    keys = []
    for layer in statistics.layers:
        # Without the inputs at hand a block is named by its own content.
        key = store.key(layer.name, layer.shape, [_checksum(_arrays(layer))], statistics.top_k, statistics.spectrum_k)
        store.put(key, layer)
        keys.append(key)
    store.finish(statistics, keys)


def load(path: Path) -> ZooStatistics:
    """Read statistics from a folder; every block is checked."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise StatisticsError(f"{path}: format {manifest['format']}, but this version reads {FORMAT}")
        return ZooStatistics(
            tuple(manifest["models"]),
            tuple(_read_block(path / BLOCKS / f"{key}.safetensors") for key in manifest["blocks"]),
            manifest["top_k"],
            manifest["spectrum_k"],
            tuple(manifest["skipped"]),
            manifest["provenance"],
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StatisticsError(
            f"{path}: not a folder of finished statistics ({type(error).__name__}: {error}); "
            "run compute_all(..., statistics=PATH) to make or finish it"
        ) from error


def _arrays(layer: LayerStatistics) -> dict[str, np.ndarray]:
    arrays = {"inner": layer.inner, "squared_distance": layer.squared_distance}
    if layer.spectrum is not None:
        for field in ("values", "rank", "left_top", "right_top", "right_bottom"):
            arrays[f"spectrum.{field}"] = getattr(layer.spectrum, field)
        if layer.spectrum.bases is not None:
            arrays |= {f"bases.{field}": array for field, array in layer.spectrum.bases._asdict().items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    hasher = xxhash.xxh3_128()
    for name, array in sorted(arrays.items()):
        hasher.update(f"{name}{array.dtype}{array.shape}".encode())
        hasher.update(array)
    return hasher.hexdigest()


def _block_bytes(layer: LayerStatistics) -> bytes:
    arrays = _arrays(layer)
    description: dict[str, Any] = {"name": layer.name, "shape": layer.shape, "checksum": _checksum(arrays)}
    if layer.spectrum is not None:
        description["k"] = layer.spectrum.k
    return safetensors.numpy.save(arrays, metadata={"mergekern": json.dumps(description)})


def _read_block(path: Path) -> LayerStatistics:
    """Return the statistics in a block, without its singular vectors."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            description = json.loads((file.metadata() or {})["mergekern"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _checksum(arrays) != description["checksum"]:
            raise ValueError("checksum differs")
        spectrum = None
        if "k" in description:
            parts = {name.split(".")[1]: array for name, array in arrays.items() if name.startswith("spectrum.")}
            spectrum = SpectrumStatistics(**parts, k=description["k"])
        return LayerStatistics(
            description["name"], tuple(description["shape"]), arrays["inner"], arrays["squared_distance"], spectrum
        )
    except Exception as error:
        raise StatisticsError(f"{path}: a damaged block of statistics ({type(error).__name__}: {error})") from error
