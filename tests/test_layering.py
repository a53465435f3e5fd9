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
    "cli",
    "__main__",
)
LEVEL = {room: k for k, rooms in enumerate(FLOORS) for room in rooms.split()}


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


@pytest.mark.parametrize(
    "name", ["process.grid", "process.discrete", "plan", "solvers", "output.store.export", "output.store.runs"]
)
def test_plans_and_stores_need_no_torch(name):
    code = f"import sys, fastscore.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_fastscore_imports_nothing_heavy():
    code = "import sys, fastscore; sys.exit(bool({'torch', 'numpy', 'triton', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_imports_no_torch():
    code = (
        "import sys, fastscore.cli\n"
        "try: fastscore.cli.main(['sample', '--help'])\n"
        "except SystemExit: sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


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
            assert banned not in text or allowed, f"{path}: {banned}"


def test_the_command_plan_imports_no_torch():
    code = (
        "import sys; from fastscore.cli import main\n"
        "try: main(['plan', '--steps', '5', '--solver', 'heun', '--schedule', 'flow'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
