"""mergekit's own command, to compare against, from a virtual environment of its own.

python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5
MERGEKERN_MERGEKIT=mergekit python -m pytest benchmarks/test_merging.py
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from mergekern.merging.mergekit import mergekit_config

VARIABLE = "MERGEKERN_MERGEKIT"


def command() -> Path | None:
    """Return `mergekit-pytorch` of the environment that is named, if one is."""
    folder = os.environ.get(VARIABLE)
    return Path(folder, "bin", "mergekit-pytorch") if folder else None


def merge(models: Iterable[Path], base: Path, method: str, output: Path) -> None:
    """Merge checkpoints into the folder `output`, by a method with the defaults of this package."""
    program = command()
    assert program is not None
    config = output.with_suffix(".yaml")
    config.write_text(mergekit_config([str(path) for path in models], str(base), method))
    subprocess.run([program, config, output, "--quiet"], check=True, capture_output=True)
