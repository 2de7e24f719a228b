"""Build of the C++ extension; everything else about the package is in pyproject.toml."""

import os
from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# The kernels choose their instruction set at run time, so no flag here ties the wheel to a processor.
flags = [] if os.name == "nt" else ["-O3", "-fopenmp", "-fno-math-errno", "-Wall"]

setup(
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
    ]
)
