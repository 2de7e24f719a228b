"""What merges need that weights alone do not tell, gathered by running each model on samples of its task.

Running models is the part of a `Calibration`; merges only ask it for what they need, and read what it gathered a tensor
at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, Literal, NamedTuple

import torch

from mergekern._internal.text import listed
from mergekern.checkpoints import Checkpoint, Zoo
from mergekern.errors import OptionError
from mergekern.merging.method import Method
from mergekern.merging.normalisation import is_statistic
from mergekern.merging.of_tensor import OfTensor
from mergekern.progress import Progress

# Inner products of the inputs of linear layers, or the diagonal of the Fisher information.
Need = Literal["inputs", "fisher"]


class OfModel(NamedTuple):
    """What was gathered of one model and one need.

    Attributes:
        tensors: by the names of the zoo's tensors.
        norm: Euclidean length of all of them together.
    """

    tensors: Checkpoint
    norm: float


@dataclass(frozen=True, eq=False)
class Gathered:
    """What was gathered of the models of a zoo.

    Attributes:
        models: need -> name of a model -> what was gathered of it.
        of_rows: names of the tensors whose inputs belong to their rows.
        identity: what it depends on beside the models, for the record of a merge.
        notes: what was not gathered as its definition says.
        keep: is alive as long as this object, such as a folder of files.
    """

    models: Mapping[Need, Mapping[str, OfModel]]
    of_rows: frozenset[str] = frozenset()
    identity: Any = None
    notes: tuple[str, ...] = ()
    keep: Any = field(default=None, repr=False)

    def of(self, need: Need, name: str, models: Sequence[str]) -> OfTensor | None:
        """Return what was gathered of a tensor, of some models in their order; None if nothing was."""
        found = [self.models[need][model] for model in models]
        if any(name not in each.tensors.tensors for each in found):
            return None
        return OfTensor(
            [each.tensors.read(name) for each in found], [each.norm for each in found], name in self.of_rows
        )

    def note(self, method: Method, zoo: Zoo) -> list[str]:
        """Return what a method does not merge by what was gathered, as notes."""
        need = method.needs
        assert need is not None
        of_some = [model.tensors.tensors for model in self.models[need].values()]
        names = [tensor.name for tensor in zoo.tensors if not is_statistic(tensor.name)]
        left = sorted(name for name in names if any(name not in tensors for tensors in of_some))
        what = {"inputs": "are no weights of linear layers alone, or of none that ran", "fisher": "have no gradient"}
        notes = [f"{method.name} averages tensors that {what[need]} ({len(left):,}): {listed(left)}"] if left else []
        return [*notes, *(f"{method.name}: {note}" for note in self.notes)]


@singledispatch
def run_for(
    samples: object, zoo: Zoo, needs: frozenset[Need], device: str | torch.device,
    progress: Callable[[Progress], None] | None,
) -> Gathered:  # fmt: skip
    """Run every model of a zoo on samples of its own task; `mergekern.functional.gathering` does for a `Calibration`.

    Raises:
        OptionError: nothing runs models on samples of this kind.
    """
    raise OptionError(f"calibration must be a mergekern.Calibration, not a {type(samples).__name__}")


def check_samples(methods: Iterable[Method], samples: Any) -> None:
    """Raise OptionError where samples are needed and not given, or given and not needed."""
    methods = list(methods)
    needing = [method.name for method in methods if method.needs is not None]
    if needing and samples is None:
        raise OptionError(
            f"{needing[0]} needs samples of each model's task; give calibration= (--calibration FOLDER, which "
            "`mergekern calibrate` writes)"
        )
    if samples is not None and not needing:
        raise OptionError(
            f"{', '.join(method.name for method in methods)}: takes weights alone; give no calibration, or a method "
            "that runs the models, such as regmean"
        )


def gather(
    methods: Iterable[Method], zoo: Zoo, samples: Any, device: str | torch.device,
    progress: Callable[[Progress], None] | None = None,
) -> Gathered | None:  # fmt: skip
    """Return what methods need of the models of a zoo; None where they need nothing but weights.

    Raises:
        OptionError: as `check_samples`.
    """
    methods = list(methods)
    check_samples(methods, samples)
    needs = frozenset(method.needs for method in methods if method.needs is not None)
    return run_for(samples, zoo, needs, device, progress) if needs else None


def with_notes(zoo: Zoo, methods: Iterable[Method], gathered: Gathered | None) -> Zoo:
    """Return a zoo that notes what its methods do not merge by what was gathered."""
    if gathered is None:
        return zoo
    notes = [note for method in methods if method.needs for note in gathered.note(method, zoo)]
    return dataclasses.replace(zoo, left_out=(*zoo.left_out, *notes))
