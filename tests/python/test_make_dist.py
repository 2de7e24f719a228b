"""make_dist.py and what it relies on: the lists of files, the version, and what it notices."""

import doctest
import fnmatch
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click
import pytest

import make_dist
import mergekern

ROOT = Path(__file__).parents[2]
TRACKED = make_dist.tracked_files()
README = (ROOT / "README.md").read_text("utf-8")


def test_examples_in_docstrings():
    assert doctest.testmod(make_dist).failed == 0


def test_the_manifest_names_everything_at_the_top_of_the_repository():
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line[:1] != "#"]
    folders = {name for command, *names in lines if command == "graft" for name in names}
    patterns = [name for command, *names in lines if command == "include" for name in names]
    # setuptools takes these by itself.
    patterns += ["pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE"]
    tops = {name.partition("/")[0] for name in TRACKED}
    assert {top for top in tops if (ROOT / top).is_dir()} == folders
    files = {top for top in tops if (ROOT / top).is_file()}
    assert not [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def test_the_package_data_are_all_files_that_are_no_modules():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["mergekern"]
    names = [name.removeprefix("mergekern/") for name in TRACKED if name.startswith("mergekern/")]
    others = [name for name in names if not name.endswith(".py")]
    assert "py.typed" in others
    assert not [name for name in others if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    # A folder without it is no package, and would be left out of the wheel.
    assert {f"{Path(name).parent}/__init__.py" for name in names if "/" in name and name.endswith(".py")} <= {*names}


def test_the_version_is_in_one_place():
    assert make_dist.citation_version((ROOT / "CITATION.cff").read_text("utf-8")) == mergekern.__version__
    assert f'version = "{mergekern.__version__}"' in (ROOT / "pyproject.toml").read_text()
    modules = [ROOT / name for name in TRACKED if name.startswith("mergekern/") and name.endswith(".py")]
    assert not [path for path in modules if f'"{mergekern.__version__}"' in path.read_text("utf-8")]


@pytest.fixture
def archives(tmp_path):
    """A source distribution and a wheel with the right names in them, and nothing else."""
    source, wheel = (
        tmp_path / "mergekern-0.1.0.tar.gz",
        tmp_path / f"mergekern-{mergekern.__version__}-cp311-manylinux.whl",
    )
    with tarfile.open(source, "w:gz") as archive:
        for name in (*TRACKED, "PKG-INFO", "setup.cfg", "mergekern.egg-info/SOURCES.txt"):
            archive.addfile(tarfile.TarInfo(f"mergekern-0.1.0/{name}"))
    with zipfile.ZipFile(wheel, "w") as archive:
        own = ("mergekern/_native.cpython-311-x86_64-linux-gnu.so", "mergekern-0.1.0.dist-info/METADATA")
        for name in (*make_dist.in_wheel(TRACKED), *own, "mergekern.libs/libgomp.so.1"):
            archive.writestr(name, "")
    return source, wheel


def test_whole_archives_pass(archives, monkeypatch):
    asked = []
    monkeypatch.setattr(make_dist, "run", lambda *command, **how: asked.append(command) or "\0".join(TRACKED))
    make_dist.check(*archives)
    assert asked[-1][2:5] == ("twine", "check", "--strict")


def test_what_an_archive_lacks_or_should_not_hold_is_named(archives):
    source, wheel = archives
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("mergekern/notes.txt", "")
    with tarfile.open(source, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("mergekern-0.1.0/README.md"))
    with pytest.raises(click.ClickException) as found:
        make_dist.check(source, wheel)
    lines = found.value.message.splitlines()
    assert f"{wheel.name} holds mergekern/notes.txt, which is no file of the repository" in lines
    assert f"{source.name} lacks csrc/cuda/trim.cu" in lines
    assert f"{source.name} lacks README.md" not in lines


def test_the_quick_start_is_that_of_the_readme():
    commands, code = make_dist.quick_start(README)
    assert [arguments[0] for arguments in commands] == ["metrics", "merge"]
    assert "metrics.csv" in commands[0]
    assert "mergekern.merge(" in code


def test_a_command_that_fails_is_shown():
    with pytest.raises(click.ClickException, match=r"sys\.exit"):
        make_dist.run(sys.executable, "-c", "import sys; sys.exit('no')")


def test_missing_kernels_are_said_once(tmp_path):
    program = (
        "import sys; sys.modules['mergekern._native'] = None\n"
        "import torch, mergekern\n"
        "zoo = {name: {'w': torch.eye(4) + number} for number, name in enumerate('ab', 1)}\n"
        "mergekern.compute_all(zoo, {'w': torch.zeros(4, 4)}, metrics='task_vector_dot_product')\n"
        "mergekern.compute_all(zoo, {'w': torch.zeros(4, 4)}, metrics='stable_rank')\n"
        "mergekern.merge(zoo, {'w': torch.zeros(4, 4)}, 'ties')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.count(make_dist.MISSING) == 1
    assert len(done.stderr.splitlines()) == 1
