"""Builds the one thing that pyproject.toml cannot declare: the optional C++ library of the cpp backend."""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = (
    # Bits are the contract: every multiply and add rounds on its own, roots and quotients are exact.
    "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fopenmp-simd", "-fvisibility=hidden", "-std=c++17", "-g0",
)  # fmt: skip


class OptionalLibrary(build_ext):
    """Compiles a library that ctypes loads, so it has no PyInit; goes on without it if that fails."""

    def get_export_symbols(self, ext: Extension) -> list:
        return []

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:  # every compiler fails in its own way
            print(
                f"fastscore: no C++ library ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "everything works, noise and updates on the CPU are slower",
                file=sys.stderr,
            )


FUSED = Extension(
    "fastscore.kernels.cpu._fused",
    ["kernels/cpu/fused.cpp"],
    depends=["kernels/cpu/noise.hpp"],
    extra_compile_args=list(FLAGS),
    optional=True,
)

setup(ext_modules=[FUSED] if os.name == "posix" else [], cmdclass={"build_ext": OptionalLibrary})
