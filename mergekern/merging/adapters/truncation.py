"""How far merged adapters are from what they approximate by a lower rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergekern.merging.adapters.products import Merged


@dataclass
class Truncation:
    """Relative Frobenius errors ‖ΔW − B·A‖ / ‖ΔW‖, of all modules together and of the worst one.

    >>> import numpy as np
    >>> truncation = Truncation()
    >>> truncation.add("q_proj", Merged(np.eye(2), np.eye(2), square=4.0, lost=1.0))
    >>> truncation.add("v_proj", Merged(np.eye(2), np.eye(2), square=12.0, lost=0.0))
    >>> truncation.error, truncation.worst, truncation.worst_module
    (0.25, 0.5, 'q_proj')
    """

    square: float = 0.0
    lost: float = 0.0
    worst: float = 0.0
    worst_module: str = ""

    def add(self, module: str, merged: Merged) -> None:
        """Take the factors of one module into account."""
        self.square += merged.square
        self.lost += merged.lost
        if (error := _share(merged.lost, merged.square)) > self.worst:
            self.worst, self.worst_module = error, module

    @property
    def error(self) -> float:
        """Error of all modules together."""
        return _share(self.lost, self.square)

    @property
    def note(self) -> str:
        """The errors in words."""
        worst = f", {self.worst:.3g} in {self.worst_module}" if self.worst_module else ""
        return f"relative Frobenius error of the approximation by a lower rank: {self.error:.3g} in all modules{worst}"

    def record(self) -> dict[str, str]:
        """Return the errors for a record, as texts of one length: it has its place in a file before they are known."""
        return {"all modules": f"{self.error:.9f}", "worst module": f"{self.worst:.9f}"}


def _share(lost: float, square: float) -> float:
    return math.sqrt(lost / square) if square else 0.0
