"""Imports point one way; a stranger can rely on it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mergekern"
# A module imports only from its own layer and the layers before it.
LAYERS = [
    ["errors"],
    ["files", "locks", "options", "progress", "versions", "work"],
    ["checkpoints", "kernels", "blocks", "calibration", "regularizers"],
    ["statistics", "merge_statistics"],
    ["measurement", "store", "metrics", "merging"],
    ["notes"],
    ["table", "probes"],
    ["run"],
    ["engine", "merge_probing", "prediction", "fingerprints", "groups"],
    ["incremental", "shards", "screening"],
    ["report", "cluster"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part(module):
    return module.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    relative = path.relative_to(PACKAGE)
    here = relative.parts[0].removesuffix(".py")
    if here == "__init__":
        return
    for node in ast.parse(path.read_text()).body:
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mergekern."):
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.startswith("mergekern.")]
        for module in modules:
            there = part(module)
            if there != here:
                assert LEVEL[there] < LEVEL[here], f"{relative} imports {module}"


def test_every_module_has_a_layer():
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__"} <= set(LEVEL)
