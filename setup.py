"""Builds the one thing that pyproject.toml cannot declare: the optional C++ library of the cpp backend."""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
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


class Tagged(bdist_wheel):
    """Tags a wheel by what is in it: one without the library runs on every platform and Python."""

    def run(self) -> None:
        if not self.skip_build:
            self.run_command("build")
            self.skip_build = True
        command = self.get_finalized_command("build_ext")
        if not any(os.path.exists(file) for file in command.get_outputs()):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()


FUSED = Extension(
    "fastscore.kernels.cpu._fused",
    ["kernels/cpu/fused.cpp"],
    depends=["kernels/cpu/noise.hpp"],
    extra_compile_args=list(FLAGS),
    optional=True,
)

setup(
    ext_modules=[FUSED] if os.name == "posix" else [],
    cmdclass={"build_ext": OptionalLibrary, "bdist_wheel": Tagged},
)
