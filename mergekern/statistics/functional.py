"""Statistics of what running N models on calibration data gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import read_block, write_block
from mergekern.statistics.layers import LayerStatistics


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

    def select(self, models: Sequence[int]) -> ActivationStatistics:
        """Return those of some of the models."""
        pairs = np.ix_(models, models)
        return ActivationStatistics(self.mean[models], self.inner[pairs], self.squared_distance[pairs], self.samples)

    def write(self, path: Path) -> None:
        """Write to a file."""
        arrays = {"mean": self.mean, "inner": self.inner, "squared_distance": self.squared_distance}
        write_block(path, arrays, {"samples": self.samples})

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
        return read_only(reduce(np.add, (layer.inner for layer in self.layers)))

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(N, N) squared distances between the whole gradients."""
        return read_only(reduce(np.add, (layer.squared_distance for layer in self.layers)))

    def select(self, models: Sequence[int]) -> EncoderGradientStatistics:
        """Return those of some of the models."""
        return EncoderGradientStatistics(tuple(layer.select(models) for layer in self.layers))

    def write(self, path: Path) -> None:
        """Write to a file."""
        arrays = {
            "inner": np.stack([layer.inner for layer in self.layers]),
            "squared_distance": np.stack([layer.squared_distance for layer in self.layers]),
        }
        write_block(path, arrays, {"parameters": [[layer.name, layer.shape] for layer in self.layers]})

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

    def select(self, models: Sequence[int]) -> InputGradientStatistics:
        """Return those of some of the models."""
        pairs = np.ix_(models, models)
        shapes = tuple(self.shapes[model] for model in models)
        return InputGradientStatistics(self.inner[pairs], self.squared_distance[pairs], shapes)

    def write(self, path: Path) -> None:
        """Write to a file."""
        write_block(path, {"inner": self.inner, "squared_distance": self.squared_distance}, {"shapes": self.shapes})

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

    def select(self, models: Sequence[int]) -> FunctionalStatistics:
        """Return those of some of the models; what was averaged over the samples of all tasks stays so."""
        return FunctionalStatistics(**{kind: part.select(models) for kind, part in self.kinds.items()})  # type: ignore[arg-type]


# The attributes of FunctionalStatistics, each with its class.
FUNCTIONAL: dict[str, Any] = {
    "activations": ActivationStatistics,
    "encoder_gradients": EncoderGradientStatistics,
    "input_gradients": InputGradientStatistics,
}


@contextmanager
def _block(path: Path) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Give what a block holds; StatisticsError where that is something else than is looked for in it."""
    arrays, description = read_block(path)
    try:
        yield arrays, description
    except (KeyError, TypeError, ValueError) as error:
        raise StatisticsError(f"{path}: not a block of these statistics ({type(error).__name__}: {error})") from error


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that no metric can change."""
    # A view, since a single layer's own array comes through here.
    view = array.view()
    view.flags.writeable = False
    return view
