"""Functional statistics: activations and gradients of N models that were run on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergekern.errors import StatisticsError
from mergekern.statistics.blocks import read_block, write_block
from mergekern.statistics.contents import check_arrays, check_gram
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

    @property
    def count(self) -> int:
        """Number of models, N."""
        return len(self.mean)

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
        with _block(path, "ActivationDescription") as (arrays, said):
            models = _models(arrays, "mean", dimensions=2)
            check_arrays(arrays, {"mean": (models, arrays["mean"].shape[1])} | _pairs(models))
            check_gram(arrays["inner"], arrays["squared_distance"], is_diagonal=True)
            return ActivationStatistics(arrays["mean"], arrays["inner"], arrays["squared_distance"], said.samples)


@dataclass(frozen=True)
class ActivationKernelStatistics:
    """Geometry of the centred kernels of N models over the same samples, which linear CKA compares.

    The kernel of a model has the inner products of its activations for all pairs of samples; it is centred along both
    sides, and taken as one vector.

    Attributes:
        inner, squared_distance: (N, N) float64 inner products of the kernels, and squared distances between them.
        samples: number of samples.
    """

    inner: np.ndarray
    squared_distance: np.ndarray
    samples: int

    @property
    def count(self) -> int:
        """Number of models, N."""
        return len(self.inner)

    def select(self, models: Sequence[int]) -> ActivationKernelStatistics:
        """Return the statistics of some of the models, in this order."""
        pairs = np.ix_(models, models)
        return ActivationKernelStatistics(self.inner[pairs], self.squared_distance[pairs], self.samples)

    def write(self, path: Path) -> None:
        """Write the statistics to a file."""
        arrays = {"inner": self.inner, "squared_distance": self.squared_distance}
        write_block(path, arrays, {"samples": self.samples})

    @staticmethod
    def read(path: Path) -> ActivationKernelStatistics:
        """Read the statistics from a file.

        Raises:
            StatisticsError: the file is missing, is damaged or holds something else.
        """
        with _block(path, "ActivationDescription") as (arrays, said):
            check_arrays(arrays, _pairs(_models(arrays, "inner", dimensions=2)))
            check_gram(arrays["inner"], arrays["squared_distance"], is_diagonal=True)
            return ActivationKernelStatistics(arrays["inner"], arrays["squared_distance"], said.samples)


@dataclass(frozen=True)
class EncoderGradientStatistics(LayerSums):
    """Geometry of the gradients of N models with respect to their parameters, each model on its own task.

    Attributes:
        layers: inner products of the gradients of each parameter, and squared distances between them.
    """

    layers: tuple[LayerStatistics, ...]

    @property
    def count(self) -> int:
        """Number of models, N; 0 without a parameter."""
        return len(self.layers[0].inner) if self.layers else 0

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
        with _block(path, "EncoderGradientDescription") as (arrays, said):
            models = arrays["inner"].shape[-1] if _models(arrays, "inner", dimensions=3) else 0
            shape = len(said.parameters), models, models
            check_arrays(arrays, {"inner": shape, "squared_distance": shape})
            every = list(zip(said.parameters, arrays["inner"], arrays["squared_distance"], strict=True))
            for _, inner, squared_distance in every:
                check_gram(inner, squared_distance, is_diagonal=True)
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

    @property
    def count(self) -> int:
        """Number of models, N."""
        return len(self.shapes)

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
        with _block(path, "InputGradientDescription") as (arrays, said):
            shapes = tuple(tuple(shape) for shape in said.shapes)
            # Gradients of different shapes have no products: NaN.
            known = {name: np.nan_to_num(arrays[name], nan=0.0) for name in _pairs(0) if name in arrays}
            check_arrays(known, _pairs(len(shapes)))
            check_gram(known["inner"], known["squared_distance"], is_diagonal=True)
            return InputGradientStatistics(arrays["inner"], arrays["squared_distance"], shapes)


@dataclass(frozen=True)
class FunctionalStatistics:
    """Functional statistics of N models, each None where no metric needs it.

    Attributes:
        activations: statistics of the mean activations.
        encoder_gradients: statistics of the gradients with respect to the parameters.
        input_gradients: statistics of the gradients with respect to the inputs.
        activation_kernels: statistics of the kernels of the activations.
    """

    activations: ActivationStatistics | None = None
    encoder_gradients: EncoderGradientStatistics | None = None
    input_gradients: InputGradientStatistics | None = None
    activation_kernels: ActivationKernelStatistics | None = None

    @property
    def kinds(self) -> dict[str, Any]:
        """The statistics that are not None, by the names of their attributes."""
        return {name: part for name in FUNCTIONAL if (part := getattr(self, name)) is not None}

    def select(self, models: Sequence[int]) -> FunctionalStatistics:
        """Return the statistics of some of the models; means are still over the samples of all tasks."""
        return FunctionalStatistics(**{kind: part.select(models) for kind, part in self.kinds.items()})


# Class of each attribute of FunctionalStatistics.
FUNCTIONAL: dict[str, Any] = {
    "activations": ActivationStatistics,
    "encoder_gradients": EncoderGradientStatistics,
    "input_gradients": InputGradientStatistics,
    "activation_kernels": ActivationKernelStatistics,
}


@contextmanager
def _block(path: Path, schema: str) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """Give the arrays and the checked description of a block; StatisticsError if the reader finds them wrong."""
    from mergekern._internal.documents import checked
    from mergekern.statistics import schemas

    arrays, description = read_block(path)
    try:
        yield arrays, checked(getattr(schemas, schema), description)
    except (KeyError, TypeError, ValueError) as error:
        raise StatisticsError(f"{path}: not a block of these statistics ({error})") from error


def _pairs(models: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(("inner", "squared_distance"), (models, models))


def _models(arrays: Mapping[str, np.ndarray], name: str, dimensions: int) -> int:
    """Return the first size of an array of so many dimensions, which must be there."""
    if name not in arrays or arrays[name].ndim != dimensions:
        raise ValueError(f"no array {name!r} of {dimensions} dimensions")
    return arrays[name].shape[0]
