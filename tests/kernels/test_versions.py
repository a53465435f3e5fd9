"""The kernels under the other versions of Triton that torch brings: their PTX, executed, to the same bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

VERSIONS = ("3.6.0", "3.7.1", "3.8.0")  # of torch 2.10 to 2.13; older ones cannot compile them, and are said to


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("version", VERSIONS)
def test_the_ptx_of_every_launch_gives_the_same_bits(version, tmp_path):
    """Each is emulated, and holds no fused or approximate operation; of the one that is installed the gate sees that.

    Registers and instructions are asserted of the installed one only. What is compiled goes to a cache of its own.
    """
    if version == triton.__version__:
        pytest.skip("the installed one, whose PTX the other tests execute")
    place = tmp_path / "triton"
    get = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), f"triton=={version}"]
    got = subprocess.run(get, capture_output=True, text=True, env={**os.environ, "PIP_CONSTRAINT": ""})
    if got.returncode:
        pytest.skip(f"pip cannot get triton {version}: {got.stderr.strip().splitlines()[-1:]}")
    env = {**os.environ, "PYTHONPATH": str(place), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    tests = ["-m", "slow or not slow", "-k", "sm_90 and not machine_code and not nightly", str(Path(__file__).parent)]
    run = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    said = subprocess.run([sys.executable, "-c", "import triton; print(triton.__version__)"], env=env, **_TEXT).stdout
    assert said.strip() == version
    done = subprocess.run(run, env=env, **_TEXT)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 70


_TEXT = {"capture_output": True, "text": True}
