"""The house: imports point down, files stay short, packages are the ones that are declared."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastscore"
FILES = sorted(PACKAGE.rglob("*.py"))
# Rooms by floor, the lowest first. A room imports from the floors below its own.
FLOORS = (
    "errors",
    "files testing kernels process data",
    "ops plan",
    "solvers model execution output",
    "guidance network report",
    "engine training",
    "sampler joint flow chains launch",
    "adapters conformance",
    "cli",
    "__main__",
)
LEVEL = {room: k for k, rooms in enumerate(FLOORS) for room in rooms.split()}


# Files of others are pickles. They are read with weights_only, or by an unpickler that makes containers, numbers and
# tensors and looks nothing else up; the test below holds these files to that, and tests/adapters tries to break them.
READERS = {"edm_pickle.py": ("import pickle",), "weights.py": ("torch.load(",)}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of every import, whether at the top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastscore":
            found |= set(node.module.split(".")[1:2] or [alias.name for alias in node.names])
    return found - {"__version__"}


def test_imports_point_down():
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in FILES
        if room(path) not in ("__init__", "_aliases")
        for other in imported(path) - {room(path)}
        if LEVEL.get(other, 99) >= LEVEL[room(path)]
    ]
    assert not wrong


def test_the_root_is_small_and_files_are_short():
    assert len([path for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__")]) < 10
    files = [*FILES, *(ROOT / "kernels").rglob("*.py")]
    too_long = [f"{p.relative_to(ROOT)}: {n}" for p in files if (n := len(p.read_text().splitlines())) > 300]
    assert not too_long


def test_kernels_are_a_leaf():
    assert not any(imported(path) for path in (ROOT / "kernels").rglob("*.py"))


# What must load without, in one process: once a library is there, it is there for all that follow.
LIGHT = """
import sys
def seen(*heavy):
    return sorted({*heavy} & set(sys.modules))
import fastscore
found = [("fastscore", seen("torch", "numpy", "triton", "click"))]
from fastscore.cli import main
for argv in (["sample", "--help"], []):
    try:
        main(argv)
    except SystemExit:
        found.append((argv, seen("torch", "numpy")))
for name in ("process.grid", "process.discrete", "plan", "solvers", "output.store.export", "output.store.runs"):
    __import__(f"fastscore.{name}")
    found.append((name, seen("torch")))
try:
    main(["plan", "--steps", "5", "--solver", "heun", "--schedule", "flow"])
except SystemExit:
    found.append(("plan", seen("torch")))
print([(what, heavy) for what, heavy in found if heavy] or "light", len(found), file=sys.stderr)
"""


def test_plans_stores_and_help_need_no_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1:] == ["light 10"], done.stderr


def test_public_names_exist():
    import fastscore

    assert {n for n in fastscore.__all__ if getattr(fastscore, n) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        assert fastscore.nothing


def test_every_package_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    folders = {p.parent for p in (ROOT / "fastscore").rglob("__init__.py")}
    for folder in folders:
        assert f'"{".".join(folder.relative_to(ROOT).parts)}"' in text


def test_noise_comes_from_one_place_and_no_pickles():
    for path in [*FILES, *(ROOT / "kernels").rglob("*.py")]:
        text = path.read_text()
        for banned in (
            "torch.randn",
            "randn_like",
            "torch.load(",
            "import pickle",
            "allow_pickle=True",
            "eval(",
            "exec(",
        ):
            allowed = banned == "eval(" and text.count("eval(") == text.count(".eval(")
            allowed |= path.parent == PACKAGE / "adapters" and banned in READERS.get(path.name, ())
            assert banned not in text or allowed, f"{path}: {banned}"


def test_readers_of_pickles_execute_nothing():
    for name in READERS:
        tree = ast.parse((PACKAGE / "adapters" / name).read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        loads = [node for node in calls if ast.unparse(node.func) == "torch.load"]
        assert bool(loads) == (name == "weights.py") and all(
            "weights_only=True" in map(ast.unparse, node.keywords) for node in loads
        )
        names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used = {name for name in names if name.split(".")[0] == "pickle"}
        assert used <= {"pickle._Unpickler", "pickle._Unpickler.dispatch", "pickle.UnpicklingError", "pickle.BUILD"}
