"""Build of the C++ extension; everything else about the package is in pyproject.toml."""

import os
import shutil
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCudaSources(build_py):
    """Puts the sources of the CUDA kernels, which are compiled where they run, into the package."""

    def run(self):
        super().run()
        if self.editable_mode:  # they are read from the checkout
            return
        folder = os.path.join(self.build_lib, "mergekern", "csrc_cuda")
        shutil.rmtree(folder, ignore_errors=True)  # all that is in there would be compiled, old files too
        self.mkpath(folder)
        for path in sorted(glob("csrc/cuda/*.cu") + glob("csrc/cuda/*.cuh")):
            self.copy_file(path, folder)


ParallelCompile(max=8).install()  # a file a core: 25 s on two cores in place of 47

# The kernels choose their instruction set at run time, so no flag here ties the wheel to a processor.
flags = [] if os.name == "nt" else ["-O3", "-fopenmp", "-fno-math-errno", "-Wall"]

setup(
    cmdclass={"build_py": BuildWithCudaSources},
    ext_modules=[
        Pybind11Extension(
            "mergekern._native",
            sorted(glob("csrc/cpu/*.cpp")),
            depends=sorted(glob("csrc/cpu/*.hpp")),
            cxx_std=17,
            extra_compile_args=flags,
            extra_link_args=flags,
            # Without a compiler the package still installs: its NumPy and SciPy path runs, more
            # slowly, and every table records which backend ran.
            optional=True,
        )
    ],
)
