"""Factorisations on a device: all matrices of a batch of layers, as many at once as the workspace holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from mergekern.kernels.device_backend import DeviceBackend
from mergekern.kernels.spectrum import DeviceSpectra, Estimates, Spectrum, Stack
from mergekern.statistics import Bases

Key = TypeVar("Key", bound=Hashable)
# The spectra of some models of a layer, and the estimates of their errors; None for exact ones.
Part = tuple[DeviceSpectra, "Estimates | None"]


class Factorised(NamedTuple):
    """Spectra of all models of a layer, and the overlaps (N, N) of each kind of their subspaces, on the device.

    Kinds of which there are no vectors are missing. Estimates of errors, of all models, are on the host; None where the
    errors are rounding alone. `interference` is (N, N); None where it is not wanted.
    """

    spectra: DeviceSpectra
    overlaps: dict[str, torch.Tensor]
    estimates: Estimates | None
    interference: torch.Tensor | None

    def spectrum(self, on_host: DeviceSpectra, model: int) -> Spectrum:
        """Return the spectrum of one model, given these spectra on the host."""
        estimates = None if self.estimates is None else Estimates(*(each[model] for each in self.estimates))
        return on_host.spectrum(model)._replace(estimates=estimates)


@dataclass(frozen=True)
class Factorisation(Generic[Key]):
    """How the matrices of layers are factorised.

    Attributes:
        backend: the kernels.
        top_k, spectrum_k, tolerance: see `Measurement`; a tolerance of None is an exact factorisation.
        workspace: bytes of the device that a launch may take beside the weights.
        with_interference: whether the interference of leading singular triplets is wanted.
    """

    backend: DeviceBackend
    top_k: int
    spectrum_k: int
    tolerance: float | None
    workspace: int
    with_interference: bool = False

    def factorise(self, matrices: Mapping[Key, Stack], names: Mapping[Key, str]) -> dict[Key, Factorised]:
        """Return the factorisations of the matrices of layers, with the names of their tensors."""
        parts: dict[Key, list[Part]] = {key: [] for key in matrices}
        for together in self._packed(matrices):
            stacks = [stack for _, stack in together]
            found = self.parts(stacks, [names[key] for key, _ in together])
            for (key, _), part in zip(together, found, strict=True):
                parts[key].append(part)
        return self._with_overlaps({key: _joined(part) for key, part in parts.items()})

    def joined(self, key: Key, parts: Sequence[Part]) -> Factorised:
        """Return the factorisation of one layer, from parts of its models in their order."""
        return self._with_overlaps({key: _joined(parts)})[key]

    def parts(self, stacks: Sequence[Stack], names: Sequence[str]) -> Sequence[Part]:
        """Return the spectra of stacks of one short side, and the estimates of their errors."""
        if self.tolerance is None:
            return [(found, None) for found in self.backend.spectra(stacks, self.top_k, self.spectrum_k)]
        return self.backend.randomized_spectra(stacks, names, self.top_k, self.spectrum_k, self.tolerance)

    def _bytes_of(self, shape: tuple[int, int]) -> int:
        if self.tolerance is None:
            return self.backend.spectrum_workspace(shape, self.top_k)
        return self.backend.randomized_spectrum_workspace(shape, self.top_k, self.spectrum_k)

    def _packed(self, matrices: Mapping[Key, Stack]) -> Iterator[list[tuple[Key, Stack]]]:
        """Yield stacks of one short side that the workspace holds together; a stack may come in several parts."""
        by_side: dict[int, list[tuple[Key, Stack]]] = {}
        for key, stack in matrices.items():
            by_side.setdefault(min(stack.base.shape), []).append((key, stack))
        for stacks in by_side.values():
            together: list[tuple[Key, Stack]] = []
            free = self.workspace
            for key, (base, tuned) in stacks:
                each = self._bytes_of((base.shape[0], base.shape[1]))
                first = 0
                while first < len(tuned):
                    count = min(len(tuned) - first, free // each)
                    if count == 0 and not together:
                        count = 1  # whether it fits is for the device to say
                    if count > 0:
                        together.append((key, Stack(base, tuned[first : first + count])))
                        free -= count * each
                        first += count
                    if first < len(tuned):
                        yield together
                        together, free = [], self.workspace
            if together:
                yield together

    def _with_overlaps(self, spectra: Mapping[Key, Part]) -> dict[Key, Factorised]:
        """Return spectra with the overlaps of their subspaces; vectors of one length go in one launch."""
        by_shape: dict[torch.Size, list[tuple[Key, str]]] = {}
        for key, (each, _) in spectra.items():
            for side in Bases._fields:
                vectors = getattr(each, side)
                if vectors.shape[2]:
                    by_shape.setdefault(vectors.shape, []).append((key, side))
        found: dict[tuple[Key, str], torch.Tensor] = {}
        for same in by_shape.values():
            vectors = torch.stack([getattr(spectra[key][0], side) for key, side in same])
            found.update(zip(same, self.backend.overlap(vectors), strict=True))
        return {
            key: Factorised(
                each,
                {side: found[key, side] for side in Bases._fields if (key, side) in found},
                estimates,
                self._interference(each) if self.with_interference else None,
            )
            for key, (each, estimates) in spectra.items()
        }

    def _interference(self, spectra: DeviceSpectra) -> torch.Tensor:
        k = min(spectra.values.shape[1], spectra.left_top.shape[2])
        return self.backend.interference(spectra.values[:, :k], spectra.left_top[..., :k], spectra.right_top[..., :k])


def _joined(parts: Sequence[Part]) -> Part:
    """Return the spectra of all models of a layer, from those of some each."""
    spectra, estimates = zip(*parts, strict=True)
    errors = [each for each in estimates if each is not None]
    joined = Estimates(*map(np.concatenate, zip(*errors, strict=True))) if errors else None
    return DeviceSpectra(*map(torch.cat, zip(*spectra, strict=True))), joined
