"""The tree: rooms of the package, one above the other, with imports that point down; and what tests may import."""

import ast
import graphlib
from pathlib import Path

import pytest

import mergekern

PACKAGE = Path(mergekern.__file__).parent
# From the top down. A module imports from its own room and from rooms below, never from above: not in functions, and
# not for types either.
ROOMS = [
    "cli", "study", "evaluation", "distributed", "api", "report", "measurement", "functional", "prediction", "sketches",
    "tables", "merging", "metrics", "statistics", "kernels", "checkpoints", "training", "progress", "_internal",
    "errors",
]  # fmt: skip
HEIGHT = {name: len(ROOMS) - place for place, name in enumerate(ROOMS)}
# The door of the package: what `import mergekern` offers, the command line as a module, and the compiled kernels.
DOORS = {"__init__", "__main__", "_native"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("mergekern", *(part for part in parts if part != "__init__")))


NAMES = {module_name(path) for path in MODULES} | {"mergekern._native"}


def imported(path, package="mergekern", names=frozenset(NAMES)):
    """Return the modules of a package that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules & names or {node.module}
            # `from package import module, name` imports both.
            if not submodules <= names:
                found.add(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_module":
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            found |= {str(text).rstrip(".") for text in texts}
    return {name for name in found if name == package or name.startswith(f"{package}.")}


IMPORTS = {module_name(path): imported(path) for path in MODULES}


def room(module):
    return module.split(".")[1]


def test_the_top_has_the_rooms_of_the_tree_and_no_other():
    found = {path.stem.partition(".")[0] for path in PACKAGE.iterdir() if path.suffix in (".py", ".pyi", ".so")}
    found |= {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found - DOORS == set(ROOMS)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_point_down(module):
    if module in ("mergekern", "mergekern.__main__"):
        return
    for other in IMPORTS[module]:
        if other == "mergekern":
            assert room(module) == "cli", f"{module} imports the door, which imports everything"
        elif room(other) not in ("_native", room(module)):
            assert HEIGHT[room(other)] < HEIGHT[room(module)], f"{module} imports {other}"


@pytest.mark.parametrize("name", [name for name in ROOMS if (PACKAGE / name).is_dir()])
def test_no_circle_inside_a_room(name):
    inside = {module: others for module, others in IMPORTS.items() if module.split(".")[1:2] == [name]}
    graph = {module: {other for other in others if other in inside} for module, others in inside.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_compiled_module_is_imported_where_its_kernels_and_its_guard_are_wrapped():
    users = {module for module, others in IMPORTS.items() if "mergekern._native" in others}
    assert users == {"mergekern.kernels.native", "mergekern._internal.mapping", "mergekern.cli.versions"}


# --- tests, what they share, and benchmarks

TESTS = Path(__file__).parent
TEST_FILES = sorted(TESTS.rglob("*.py"))
TEST_NAMES = frozenset(".".join(path.relative_to(TESTS.parent).with_suffix("").parts) for path in TEST_FILES)
SHARED_FOLDERS = [TESTS / "support", TESTS / "reference"]


def test_only_the_tests_of_benchmarks_import_benchmarks():
    others = [path for path in TEST_FILES if TESTS / "benchmarks" not in path.parents]
    assert len(others) > 100
    assert not [path for path in others if imported(path, "benchmarks", frozenset())]


def test_benchmarks_import_from_tests_only_what_is_shared():
    files = sorted((TESTS.parent / "benchmarks").glob("*.py"))
    found = {name for path in files for name in imported(path, "tests", TEST_NAMES)}
    assert "tests.reference.pairs" in found
    assert {".".join(name.split(".")[:2]) for name in found} == {"tests.support", "tests.reference"}


@pytest.mark.parametrize("folder", SHARED_FOLDERS, ids=lambda folder: folder.name)
def test_what_tests_share_imports_no_test(folder):
    files = [path for path in sorted(folder.rglob("*.py")) if not path.name.startswith("test_")]
    assert files
    for path in files:
        for name in imported(path, "tests", TEST_NAMES):
            assert not name.rpartition(".")[2].startswith(("test_", "conftest")), f"{path} imports {name}"


def test_references_do_not_import_the_package():
    """A reference that used the code it checks would agree with it for that reason."""
    files = sorted((TESTS / "reference").glob("*.py"))
    assert not [path for path in files if imported(path)]
