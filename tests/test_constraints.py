"""The gate's pins against the public index: what `pip install -c` would find there, on every Python we promise."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
INDEX = "https://pypi.org/simple"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def pins(python: str) -> dict[str, str]:
    """Version of each package that the constraints name for a Python on Linux."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate(environment(python))]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in chosen}


def environment(python: str) -> dict[str, str]:
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    return {"python_version": python, "python_full_version": f"{python}.12", "extra": "", **linux}


def get(url: str, accept: str = "*/*") -> bytes | None:
    try:
        with urlopen(Request(url, headers={"Accept": accept}), timeout=20) as answer:
            return answer.read()
    except (URLError, TimeoutError, ConnectionError):
        return None


def files_of(name: str) -> list[dict]:
    page = get(f"{INDEX}/{name}/", "application/vnd.pypi.simple.v1+json")
    return json.loads(page)["files"] if page else []


def version_of(filename: str) -> str:
    try:
        return str(parse_wheel_filename(filename)[1])
    except InvalidWheelFilename:
        match = re.search(r"-(\d[\w.]*)\.(?:tar\.gz|zip)$", filename)
        return match[1] if match else ""


@pytest.fixture(scope="module")
def index() -> dict[str, list[dict]]:
    """Files of every pinned package; none of a package of this index that is not of the public one."""
    names = sorted({name for python in PYTHONS for name in pins(python)})
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(names, pool.map(files_of, names), strict=True))
    if not any(found.values()):
        pytest.skip(f"no index: {INDEX} cannot be reached from here")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_is_there_for_every_python(index, python):
    missing = []
    for name, version in pins(python).items():
        fitting = [
            file
            for file in index[name]
            if version_of(file["filename"]) == version
            and SpecifierSet(file["requires-python"] or "").contains(f"{python}.12")
        ]
        if not fitting:
            missing.append(f"{name}=={version}")
    assert not missing, f"Python {python} finds none of {', '.join(missing)} on {INDEX}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "python",
    [pytest.param(python, marks=pytest.mark.nightly if python not in PYTHONS[::4] else ()) for python in PYTHONS],
)
def test_pins_satisfy_each_other(index, python):
    """The metadata of each pinned wheel names what it requires; torch names one triton."""
    chosen, clashes, read = pins(python), [], 0
    for name, version in chosen.items():
        wheels = [f for f in index[name] if version_of(f["filename"]) == version and f["filename"].endswith(".whl")]
        tag = f"cp{python.replace('.', '')}"
        wheel = next((f for f in wheels if tag in f["filename"] and "manylinux" in f["filename"]), None) or next(
            (f for f in wheels if "none-any" in f["filename"] or "manylinux" in f["filename"]), None
        )
        metadata = get(wheel["url"] + ".metadata") if wheel else None
        if metadata is None:
            continue
        read += 1
        for line in re.findall(r"^Requires-Dist: (.+)$", metadata.decode(), re.M):
            need = Requirement(line.strip())
            other = chosen.get(canonicalize_name(need.name))
            wanted = need.marker is None or need.marker.evaluate(environment(python))
            if wanted and other and not need.specifier.contains(other, prereleases=True):
                clashes.append(f"{name}=={version} requires {need}, pinned is {other}")
    if not read:
        pytest.skip(f"no metadata: {INDEX} serves none here")
    assert not clashes, "; ".join(clashes)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("extra", ["", "plots", "peers", "diffusers", "sbi", "dev"])
def test_every_install_resolves_for_every_python(index, extra):
    """Asks the index, as pip would; the constraints hold for what they name."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("resolving for other Pythons needs uv: pip install uv")
    options = ["--quiet", "--no-config", "--no-annotate", "--no-header", "--default-index", INDEX]
    options += ["--python-platform", "x86_64-unknown-linux-gnu", "--constraint", ".ci/constraints.txt"]
    options += ["--extra", extra] if extra else []

    def resolved(python: str) -> str:
        command = [uv, "pip", "compile", "pyproject.toml", *options, "--python-version", python]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return "" if run.returncode == 0 and "torch==" in run.stdout else f"Python {python}: {run.stderr[-800:]}"

    with ThreadPoolExecutor(2) as pool:
        refused = list(filter(None, pool.map(resolved, PYTHONS)))
    assert not refused, "\n".join(refused)


def test_pins_satisfy_the_project():
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], project["optional-dependencies"]["dev"]]
    for python in PYTHONS:
        chosen = pins(python)
        for need in map(Requirement, [line for group in groups for line in group]):
            assert need.specifier.contains(chosen[canonicalize_name(need.name)]), f"Python {python}: {need}"
