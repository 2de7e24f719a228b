"""Functional statistics: activations and gradients of N models that were run on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import read_block, write_block
from mergekern.statistics.layers import LayerStatistics, LayerSums


@dataclass(frozen=True)
class ActivationStatistics:
    """Mean activations of N models over the same samples, and their geometry.

    Attributes:
        mean: (N, h) float64 mean activation vectors.
        inner, squared_distance: (N, N) float64 inner products of the means, and squared distances between them.
        samples: number of samples.
    """

    mean: np.ndarray
    inner: np.ndarray
    squared_distance: np.ndarray
    samples: int

    def select(self, models: Sequence[int]) -> ActivationStatistics:
        """Return the statistics of some of the models, in this order."""
        pairs = np.ix_(models, models)
        return ActivationStatistics(self.mean[models], self.inner[pairs], self.squared_distance[pairs], self.samples)

    def write(self, path: Path) -> None:
        """Write the statistics to a file."""
        arrays = {"mean": self.mean, "inner": self.inner, "squared_distance": self.squared_distance}
        write_block(path, arrays, {"samples": self.samples})

    @staticmethod
    def read(path: Path) -> ActivationStatistics:
        """Read the statistics from a file.

        Raises:
            StatisticsError: the file is missing, is damaged or holds something else.
        """
        with _block(path) as (arrays, description):
            return ActivationStatistics(
                arrays["mean"], arrays["inner"], arrays["squared_distance"], description["samples"]
            )


@dataclass(frozen=True)
class EncoderGradientStatistics(LayerSums):
    """Geometry of the gradients of N models with respect to their parameters, each model on its own task.

    Attributes:
        layers: inner products of the gradients of each parameter, and squared distances between them.
    """

    layers: tuple[LayerStatistics, ...]

    def select(self, models: Sequence[int]) -> EncoderGradientStatistics:
        """Return the statistics of some of the models, in this order."""
        return EncoderGradientStatistics(tuple(layer.select(models) for layer in self.layers))

    def write(self, path: Path) -> None:
        """Write the statistics to a file."""
        arrays = {
            "inner": np.stack([layer.inner for layer in self.layers]),
            "squared_distance": np.stack([layer.squared_distance for layer in self.layers]),
        }
        write_block(path, arrays, {"parameters": [[layer.name, layer.shape] for layer in self.layers]})

    @staticmethod
    def read(path: Path) -> EncoderGradientStatistics:
        """Read the statistics from a file.

        Raises:
            StatisticsError: the file is missing, is damaged or holds something else.
        """
        with _block(path) as (arrays, description):
            every = zip(description["parameters"], arrays["inner"], arrays["squared_distance"], strict=True)
            return EncoderGradientStatistics(
                tuple(LayerStatistics(name, tuple(shape), *matrices) for (name, shape), *matrices in every)
            )


@dataclass(frozen=True)
class InputGradientStatistics:
    """Geometry of the gradients of N models with respect to their inputs, each model on its own task.

    Attributes:
        inner, squared_distance: (N, N) float64; NaN for two models whose gradients differ in shape.
        shapes: shape of each model's gradient; the first size is the number of samples.
    """

    inner: np.ndarray
    squared_distance: np.ndarray
    shapes: tuple[tuple[int, ...], ...]

    def select(self, models: Sequence[int]) -> InputGradientStatistics:
        """Return the statistics of some of the models, in this order."""
        pairs = np.ix_(models, models)
        shapes = tuple(self.shapes[model] for model in models)
        return InputGradientStatistics(self.inner[pairs], self.squared_distance[pairs], shapes)

    def write(self, path: Path) -> None:
        """Write the statistics to a file."""
        write_block(path, {"inner": self.inner, "squared_distance": self.squared_distance}, {"shapes": self.shapes})

    @staticmethod
    def read(path: Path) -> InputGradientStatistics:
        """Read the statistics from a file.

        Raises:
            StatisticsError: the file is missing, is damaged or holds something else.
        """
        with _block(path) as (arrays, description):
            shapes = tuple(tuple(shape) for shape in description["shapes"])
            return InputGradientStatistics(arrays["inner"], arrays["squared_distance"], shapes)


@dataclass(frozen=True)
class FunctionalStatistics:
    """Functional statistics of N models, each None where no metric needs it.

    Attributes:
        activations: statistics of the mean activations.
        encoder_gradients: statistics of the gradients with respect to the parameters.
        input_gradients: statistics of the gradients with respect to the inputs.
    """

    activations: ActivationStatistics | None = None
    encoder_gradients: EncoderGradientStatistics | None = None
    input_gradients: InputGradientStatistics | None = None

    @property
    def kinds(self) -> dict[str, ActivationStatistics | EncoderGradientStatistics | InputGradientStatistics]:
        """The statistics that are not None, by the names of their attributes."""
        return {name: part for name in FUNCTIONAL if (part := getattr(self, name)) is not None}

    def select(self, models: Sequence[int]) -> FunctionalStatistics:
        """Return the statistics of some of the models; means are still over the samples of all tasks."""
        return FunctionalStatistics(**{kind: part.select(models) for kind, part in self.kinds.items()})  # type: ignore[arg-type]


# Class of each attribute of FunctionalStatistics.
FUNCTIONAL: dict[str, Any] = {
    "activations": ActivationStatistics,
    "encoder_gradients": EncoderGradientStatistics,
    "input_gradients": InputGradientStatistics,
}


@contextmanager
def _block(path: Path) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Give the arrays and the description of a block; StatisticsError if the reader lacks something in them."""
    arrays, description = read_block(path)
    try:
        yield arrays, description
    except (KeyError, TypeError, ValueError) as error:
        raise StatisticsError(f"{path}: not a block of these statistics ({type(error).__name__}: {error})") from error
