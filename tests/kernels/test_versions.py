"""The kernels under every version of Triton that torch brings: executed, read in machine code, or refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import triton

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

COMPILE = ("3.6.0", "3.7.0", "3.7.1", "3.8.0", "3.9.0")  # of torch 2.10 to 2.13, and what follows
REFUSED = ("3.3.1", "3.4.0", "3.5.1")  # of torch 2.7 to 2.9


@pytest.fixture(scope="module")
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of a process that imports the version asked for, which compiles into a cache of its own."""
    version, folder = request.param, tmp_path_factory.mktemp("triton")
    get = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), f"triton=={version}"]
    got = subprocess.run(get, env={**os.environ, "PIP_CONSTRAINT": ""}, **TEXT)
    if got.returncode:
        pytest.skip(f"pip cannot get triton {version}: {got.stderr.strip().splitlines()[-1:]}")
    env = {**os.environ, "PYTHONPATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    assert python("import triton; print(triton.__version__)", env).stdout.strip() == version
    yield env
    shutil.rmtree(folder)  # of half a gigabyte


OTHERS = pytest.mark.parametrize("environment", [v for v in COMPILE if v != triton.__version__], indirect=True)


@OTHERS
def test_the_ptx_of_every_launch_gives_the_same_bits(environment):
    """Each is emulated, and holds no fused or approximate operation; of the one that is installed the gate sees that.

    Registers and instructions are asserted of the installed one only.
    """
    passed(70, "sm_90 and not machine_code and not nightly", environment)


@OTHERS
def test_machine_code_keeps_every_rounding_or_the_version_is_refused_there(environment):
    passed(4, "test_ladder", environment)


@pytest.mark.parametrize("environment", REFUSED, indirect=True)
def test_a_version_that_cannot_compile_the_kernels_is_refused(environment):
    said = python("from fastscore.ops.backend import triton_lack; print(triton_lack())", environment).stdout
    assert re.fullmatch(r"triton 3\.[345]\.\d cannot compile the kernels, which need 3\.6 \(torch 2\.10\)\n", said)
    # And does not do so in vain: of the normals it knows no word.
    compiled = python(NORMALS, environment)
    assert compiled.returncode and "Error" in compiled.stderr


NORMALS = """
from types import SimpleNamespace
import torch
from fastscore.kernels import noise
from fastscore.kernels.inspect import aot
with aot.capture() as launches:
    noise.normal_triton(SimpleNamespace(seed=torch.zeros(1, dtype=torch.int64), ids=torch.arange(3)), 0, 64)
launches[0].compile(aot.TARGETS["sm_90"])
"""
TEXT = {"capture_output": True, "text": True}


def python(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=env, **TEXT)


def passed(least: int, chosen: str, env: dict[str, str]) -> None:
    """Run tests of this folder in that environment, all of which pass."""
    tests = ["-m", "slow or not slow", "-k", chosen, str(Path(__file__).parent)]
    run = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(run, env=env, **TEXT)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least


@pytest.mark.parametrize("scale", [2.0**-82, 1.0])  # the smallest below a normal's root is 2^-82
def test_the_root_that_triton_3_6_makes_on_amd_is_the_nearest(scale):
    """Of every float32 in [1, 4), from a reciprocal root that is off by one unit or none: so its bits are those of all.

    The instructions are those of 3.6 for gfx942; later versions take LLVM's own.
    """
    for first in range(1 << 23, 1 << 24, 1 << 21):
        x = np.concatenate([np.arange(first, first + (1 << 21), dtype=np.float32) * f for f in np.float32([1, 2])])
        x *= np.float32(2.0**-23 * scale)
        near = (1.0 / np.sqrt(x.astype(np.float64))).astype(np.float32).view(np.int32)
        for off in (-1, 0, 1):
            r = (near + np.int32(off)).view(np.float32)
            s, h = x * r, r * np.float32(0.5)
            e = fma(-h, s, np.float32(0.5))
            h, s = fma(h, e, h), fma(s, e, s)
            assert np.array_equal(fma(fma(-s, s, x), h, s), np.sqrt(x))


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray | np.float32) -> np.ndarray:
    """a b + c rounded once: to odd in float64, where a product is exact, and then to float32."""
    p, c = a.astype(np.float64) * b, np.float64(c)
    s = p + c
    t = s - p
    lost = (p - (s - t)) + (c - t)
    odd = (lost != 0) & (s.view(np.int64) & 1 == 0)
    return np.where(odd, np.nextafter(s, np.copysign(np.inf, lost)), s).astype(np.float32)
