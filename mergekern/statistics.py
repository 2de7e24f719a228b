"""The sufficient statistics of a zoo: everything that the metrics need, and no weights.

Every metric is a function of them. On disk they are a folder with a manifest, a block for each tensor, and, where the
models were run on calibration data, a block for each kind of what that gave.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mergekern.blocks import SUFFIX, read_block, write_block
from mergekern.errors import StatisticsError
from mergekern.files import write_atomically

FORMAT = 1
MANIFEST = "manifest.json"
BLOCKS = "blocks"
_SPECTRUM_ARRAYS = ("values", "rank", "left_top", "right_top", "right_bottom")


class Bases(NamedTuple):
    """Singular vectors of one tensor of all models: (N, m, k), (N, n, k), (N, n, k) float32."""

    left_top: np.ndarray
    right_top: np.ndarray
    right_bottom: np.ndarray


@dataclass(frozen=True)
class SpectrumStatistics:
    """Of one matrix of N models, r = min(m, n), k = min(top_k, r).

    Attributes:
        values: (N, min(spectrum_k, r)) leading singular values, float64, descending.
        rank: (N,) number of singular values above 1e-7·σ₁.
        left_top, right_top, right_bottom: (N, N) squared Frobenius norms of the products of k-dimensional bases.
        k: dimension of the subspaces.
        bases: the singular vectors themselves, kept only in files.
    """

    values: np.ndarray
    rank: np.ndarray
    left_top: np.ndarray
    right_top: np.ndarray
    right_bottom: np.ndarray
    k: int
    bases: Bases | None = None


@dataclass(frozen=True)
class LayerStatistics:
    """Of one tensor of N models.

    Attributes:
        name, shape: of the tensor.
        inner: (N, N) float64 inner products of the task vectors (the Gram matrix).
        squared_distance: (N, N) float64 squared distances between them.
        spectrum: for matrices, where a metric asked for it.
    """

    name: str
    shape: tuple[int, ...]
    inner: np.ndarray
    squared_distance: np.ndarray
    spectrum: SpectrumStatistics | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether singular values and vectors are defined for it."""
        return len(self.shape) == 2

    def without_bases(self) -> LayerStatistics:
        """Return the same without singular vectors, which take N·(m + 2n)·k·4 bytes and no metric reads."""
        if self.spectrum is None:
            return self
        return dataclasses.replace(self, spectrum=dataclasses.replace(self.spectrum, bases=None))

    def write(self, path: Path) -> None:
        """Write to a file, with the singular vectors if they are here."""
        arrays = {"inner": self.inner, "squared_distance": self.squared_distance}
        description: dict[str, Any] = {"name": self.name, "shape": self.shape}
        if self.spectrum is not None:
            description["k"] = self.spectrum.k
            arrays |= {f"spectrum.{name}": getattr(self.spectrum, name) for name in _SPECTRUM_ARRAYS}
            if self.spectrum.bases is not None:
                arrays |= {f"bases.{name}": array for name, array in self.spectrum.bases._asdict().items()}
        _write(path, arrays, description)

    @staticmethod
    def read(path: Path) -> LayerStatistics:
        """Read from a file, without the singular vectors.

        Raises:
            StatisticsError: the file is missing, damaged or something else.
        """
        with _block(path) as (arrays, description):
            spectrum = None
            if "k" in description:
                parts: dict[str, Any] = {name: arrays[f"spectrum.{name}"] for name in _SPECTRUM_ARRAYS}
                spectrum = SpectrumStatistics(**parts, k=description["k"])
            inner, distance = arrays["inner"], arrays["squared_distance"]
            return LayerStatistics(description["name"], tuple(description["shape"]), inner, distance, spectrum)

    @property
    def frozen(self) -> np.ndarray:
        """(N,) bool: the models whose tensor equals that of the base."""
        return np.diagonal(self.inner) == 0.0


@dataclass(frozen=True)
class ActivationStatistics:
    """Of the mean activations of N models over the same samples.

    Attributes:
        mean: (N, h) float64, the means themselves.
        inner, squared_distance: (N, N) float64 inner products of them, and squared distances between them.
        samples: their number.
    """

    mean: np.ndarray
    inner: np.ndarray
    squared_distance: np.ndarray
    samples: int

    def write(self, path: Path) -> None:
        """Write to a file."""
        arrays = {"mean": self.mean, "inner": self.inner, "squared_distance": self.squared_distance}
        _write(path, arrays, {"samples": self.samples})

    @staticmethod
    def read(path: Path) -> ActivationStatistics:
        """Read from a file; StatisticsError if it is missing, damaged or something else."""
        with _block(path) as (arrays, description):
            return ActivationStatistics(
                arrays["mean"], arrays["inner"], arrays["squared_distance"], description["samples"]
            )


@dataclass(frozen=True)
class EncoderGradientStatistics:
    """Of the gradients of N models, each on its own task, with respect to the parameters.

    Attributes:
        layers: inner products and squared distances of each parameter's gradients.
    """

    layers: tuple[LayerStatistics, ...]

    @cached_property
    def inner(self) -> np.ndarray:
        """(N, N) inner products of the whole gradients: the sum over all parameters."""
        return _read_only(reduce(np.add, (layer.inner for layer in self.layers)))

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(N, N) squared distances between the whole gradients."""
        return _read_only(reduce(np.add, (layer.squared_distance for layer in self.layers)))

    def write(self, path: Path) -> None:
        """Write to a file."""
        arrays = {
            "inner": np.stack([layer.inner for layer in self.layers]),
            "squared_distance": np.stack([layer.squared_distance for layer in self.layers]),
        }
        _write(path, arrays, {"parameters": [[layer.name, layer.shape] for layer in self.layers]})

    @staticmethod
    def read(path: Path) -> EncoderGradientStatistics:
        """Read from a file; StatisticsError if it is missing, damaged or something else."""
        with _block(path) as (arrays, description):
            every = zip(description["parameters"], arrays["inner"], arrays["squared_distance"], strict=True)
            return EncoderGradientStatistics(
                tuple(LayerStatistics(name, tuple(shape), *matrices) for (name, shape), *matrices in every)
            )


@dataclass(frozen=True)
class InputGradientStatistics:
    """Of the gradients of N models, each on its own task, with respect to the inputs.

    Attributes:
        inner, squared_distance: (N, N) float64; NaN for two models whose gradients differ in shape.
        shapes: of each model's gradient; the first size is the number of samples.
    """

    inner: np.ndarray
    squared_distance: np.ndarray
    shapes: tuple[tuple[int, ...], ...]

    def write(self, path: Path) -> None:
        """Write to a file."""
        _write(path, {"inner": self.inner, "squared_distance": self.squared_distance}, {"shapes": self.shapes})

    @staticmethod
    def read(path: Path) -> InputGradientStatistics:
        """Read from a file; StatisticsError if it is missing, damaged or something else."""
        with _block(path) as (arrays, description):
            shapes = tuple(tuple(shape) for shape in description["shapes"])
            return InputGradientStatistics(arrays["inner"], arrays["squared_distance"], shapes)


@dataclass(frozen=True)
class FunctionalStatistics:
    """What running N models on calibration data gave; None where no metric asked for it."""

    activations: ActivationStatistics | None = None
    encoder_gradients: EncoderGradientStatistics | None = None
    input_gradients: InputGradientStatistics | None = None

    @property
    def kinds(self) -> dict[str, ActivationStatistics | EncoderGradientStatistics | InputGradientStatistics]:
        """What is here, by the names of the attributes."""
        return {name: part for name in FUNCTIONAL if (part := getattr(self, name)) is not None}

    @staticmethod
    def read(paths: Mapping[str, Path]) -> FunctionalStatistics:
        """Read the kinds from their files; StatisticsError if one is missing, damaged or something else."""
        return FunctionalStatistics(**{kind: FUNCTIONAL[kind].read(path) for kind, path in paths.items()})


# The attributes of FunctionalStatistics, each with its class.
FUNCTIONAL: dict[str, Any] = {
    "activations": ActivationStatistics,
    "encoder_gradients": EncoderGradientStatistics,
    "input_gradients": InputGradientStatistics,
}


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
    provenance: dict[str, object] | None = None
    functional: FunctionalStatistics = FunctionalStatistics()

    @cached_property
    def inner(self) -> np.ndarray:
        """(N, N) inner products of the whole task vectors: the sum over all tensors."""
        return _read_only(reduce(np.add, (layer.inner for layer in self.layers)))

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(N, N) squared distances between the whole task vectors."""
        return _read_only(reduce(np.add, (layer.squared_distance for layer in self.layers)))

    @property
    def has_spectra(self) -> bool:
        """Whether every matrix has its spectrum, which the subspace metrics need."""
        return all(layer.spectrum is not None for layer in self.layers if layer.is_matrix)

    def only(self, layer: LayerStatistics) -> ZooStatistics:
        """Return the statistics of a zoo of the same models with this one tensor."""
        return ZooStatistics(self.models, (layer,), self.top_k, self.spectrum_k)

    def save(self, path: str | Path) -> None:
        """Write the statistics to a folder: a manifest, and a block for each tensor (without singular vectors)."""
        keys = [f"{index:05d}" for index in range(len(self.layers))]
        for key, layer in zip(keys, self.layers, strict=True):
            layer.write(block_path(Path(path), key))
        for kind, part in self.functional.kinds.items():
            part.write(block_path(Path(path), kind))
        self.write_manifest(Path(path), keys, {kind: kind for kind in self.functional.kinds})

    def write_manifest(self, folder: Path, keys: Sequence[str], functional: Mapping[str, str]) -> None:
        """Write what a folder of blocks is about: their keys in the order of the layers, and by functional kind."""
        manifest = {
            "format": FORMAT,
            "models": self.models,
            "top_k": self.top_k,
            "spectrum_k": self.spectrum_k,
            "skipped": self.skipped,
            "provenance": self.provenance,
            "blocks": list(keys),
            "functional": dict(functional),
        }
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    @staticmethod
    def load(path: str | Path) -> ZooStatistics:
        """Read statistics from a folder that `save` or `compute_all(statistics=...)` wrote, checking every block.

        Raises:
            StatisticsError: missing, damaged or foreign files.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text("utf-8"))
            if manifest["format"] != FORMAT:
                raise StatisticsError(f"{path}: format {manifest['format']}, but this version reads {FORMAT}")
            return ZooStatistics(
                tuple(manifest["models"]),
                tuple(LayerStatistics.read(block_path(path, key)) for key in manifest["blocks"]),
                manifest["top_k"],
                manifest["spectrum_k"],
                tuple(manifest["skipped"]),
                manifest["provenance"],
                FunctionalStatistics.read(
                    {kind: block_path(path, key) for kind, key in manifest.get("functional", {}).items()}
                ),
            )
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StatisticsError(
                f"{path}: not a folder of finished statistics ({type(error).__name__}: {error}); "
                "run compute_all(..., statistics=PATH) to make or finish it"
            ) from error


def _write(path: Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_block(path, arrays, description)


@contextmanager
def _block(path: Path) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Give what a block holds; StatisticsError where that is something else than is looked for in it."""
    arrays, description = read_block(path)
    try:
        yield arrays, description
    except (KeyError, TypeError, ValueError) as error:
        raise StatisticsError(f"{path}: not a block of these statistics ({type(error).__name__}: {error})") from error


def _read_only(array: np.ndarray) -> np.ndarray:
    # Kept and handed to every metric: none may change it. A view, since a single layer's own array comes through here.
    view = array.view()
    view.flags.writeable = False
    return view


def block_path(folder: Path, key: str) -> Path:
    """Return where the block of one tensor lies in a folder of statistics."""
    return folder / BLOCKS / f"{key}{SUFFIX}"
