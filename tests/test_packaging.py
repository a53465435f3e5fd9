"""What is built of this checkout: the sdist holds all of it, a wheel's tag says what is in it, tests run from both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
setuptools = pytest.importorskip("setuptools", "77.0.3", reason="building needs setuptools 77.0.3")
pytestmark = [pytest.mark.slow, pytest.mark.nightly]

# Made by tools and tests beside what belongs to the checkout.
LEFT_OUT = ("__pycache__", "build", "dist", "out", "run", ".git", ".venv", "venv")
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def files() -> list[str]:
    """The files of the checkout: those that git knows, or without it all that no tool made."""
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if run.returncode == 0 and run.stdout:
        return run.stdout.split("\n")[:-1]
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
    made = ("PKG-INFO", "setup.cfg")
    return [
        str(p)
        for p in found
        if not {*p.parts} & {*LEFT_OUT} and p.suffix != ".so" and p.name not in made and "egg-info" not in str(p)
        and not any(part.endswith("_cache") or part in (".hypothesis", ".benchmarks") for part in p.parts)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A clean copy: a build writes beside what it builds."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(checkout: Path, what: str, **environment: str) -> Path:
    dist = checkout.with_name(f"{checkout.name}-dist-{len(environment)}")
    dist.mkdir(exist_ok=True)
    shutil.rmtree(checkout / "build", ignore_errors=True)
    run = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{what}", str(dist)],
        cwd=checkout, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return dist / run.stdout.split("\n")[-2]


@pytest.fixture(scope="module")
def unpacked(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(checkout, "sdist")) as archive:
        archive.extractall(folder, filter="data")
    (only,) = folder.iterdir()
    return only


def test_the_sdist_holds_the_whole_checkout(checkout, unpacked):
    held = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    assert set(files()) - held == set()
    assert {name for name in held - set(files()) if "egg-info" not in name} == {"PKG-INFO", "setup.cfg"}


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_a_wheel_without_the_library_is_for_every_platform_and_python(checkout):
    wheel = build(checkout, "wheel", CC="/nowhere/gcc", CXX="/nowhere/g++")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names(wheel) if name.endswith(".so")]
    assert "fastscore/kernels/update.py" in names(wheel)
    with zipfile.ZipFile(wheel) as archive:
        (text,) = [archive.read(name).decode() for name in names(wheel) if name.endswith("dist-info/WHEEL")]
    assert "Root-Is-Purelib: true" in text


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="the library needs a C++ compiler")
def test_a_wheel_with_the_library_is_for_this_platform(checkout):
    wheel = build(checkout, "wheel")
    assert not wheel.name.endswith("any.whl")
    assert f"cp{sys.version_info[0]}{sys.version_info[1]}" in wheel.name
    assert [name for name in names(wheel) if name.startswith("fastscore/kernels/cpu/_fused.")]


@pytest.mark.parametrize("compiler", [True, False], ids=["with a compiler", "without"])
def test_tests_run_from_the_unpacked_sdist(unpacked, tmp_path, compiler):
    """Installed as a user would, into an environment that has the requirements already."""
    no_compiler = {} if compiler else {"PATH": "/nowhere", "CC": "/nowhere/gcc", "CXX": "/nowhere/g++"}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "PIP_", "PYTHONPATH"))}
    clean |= no_compiler | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    Path(site, "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--ignore-installed"]  # fmt: skip
    shutil.rmtree(unpacked / "build", ignore_errors=True)  # of an install before
    subprocess.run([*install, str(unpacked)], check=True, env=clean)
    assert bool(list(Path(site).glob("fastscore/kernels/cpu/_fused*.so"))) == compiler
    subset = ["tests/plan", "tests/process", "tests/engine/test_loop.py", "tests/ops/test_ops.py", "tests/output",
              "tests/network/test_cache.py", "tests/bench/test_telemetry.py"]  # fmt: skip
    runner = tmp_path / "run.py"  # unlike -m it does not put the sources before what is installed
    runner.write_text("import sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))\n")
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "t")]
    run = subprocess.run([python, runner, *options, *subset], cwd=unpacked, env=clean, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
    told = subprocess.run(
        [python, "-m", "fastscore", "sample", "fashion", "-n", "2", "--steps", "2", "--batch", "2", "--out", "o"],
        cwd=tmp_path, env=clean | {"FASTSCORE_BACKEND": "auto"}, capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert ("installed where there was no C++ compiler" in told.stderr) == (not compiler)
    assert ("no C++ compiler (g++ or clang++)" in told.stderr) == (not compiler)
    assert (tmp_path / "o" / "samples.npz").exists()
