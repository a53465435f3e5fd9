"""Imports point down, files stay short, packages are the ones that are declared."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"kernels"},
    {"beta", "schedule", "tables", "grid", "parametrization", "noise"},
    {"plan"},
    {"solvers"},
    {"presets"},
    {"ops"},
    {"backend"},
    {"nets"},
    {
        "data",
        "files",
        "package",
        "mixed",
        "model",
        "analytic",
        "matrix",
        "losses",
        "metrics",
        "conditions",
        "guidance",
        "operators",
        "basis",
    },
    {"engine"},
    {"network"},
    {"sampler", "joint", "likelihood", "mcmc", "guides", "sinks", "train", "classify", "testing", "probe"},
    {"cli", "__main__"},
]
LEVEL = {name: k for k, names in enumerate(LAYERS) for name in names}
FILES = sorted(
    p for p in (ROOT / "fastscore").rglob("*.py") if p.parent != ROOT / "fastscore" or p.name != "__init__.py"
)


def part(path: Path) -> str:
    return path.relative_to(ROOT / "fastscore").parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """First component below fastscore of every import, whether at the top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastscore":
            names = node.module.split(".")[1:2] or [a.name for a in node.names if a.name != "__version__"]
            found |= set(names)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    above = {name for name in imports(path) if LEVEL[name] > LEVEL[part(path)]}
    assert not above


def test_kernels_are_a_leaf():
    assert not any(imports(path) - {"kernels"} for path in (ROOT / "kernels").rglob("*.py"))


@pytest.mark.parametrize("name", ["beta", "schedule", "tables", "grid", "parametrization", "plan", "solvers"])
def test_plans_need_no_torch(name):
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
