"""What the READMEs say: their Python blocks run, the commands of README.md too, and links lead somewhere."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import warnings
from pathlib import Path

import others
import pytest
import torch

from fastscore.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIALS = ROOT / "fastscore/TUTORIALS.md"
FILES = [
    README,
    TUTORIALS,
    *sorted(ROOT.glob("fastscore/**/README.md")),
    ROOT / "fastscore/solvers/PRESETS.md",
    ROOT / "kernels/README.md",
    ROOT / "bench/README.md",
]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


PYTHON = [
    pytest.param(code, id=f"{path.parent.name}-{k}", marks=[] if path in (README, TUTORIALS) else [pytest.mark.slow])
    for path in FILES
    for k, code in enumerate(blocks(path, "python"))
]
# Blocks that need others' libraries, which stand behind the language: ```python diffusers
FOREIGN = [
    pytest.param(libraries.split(), code, id=f"{path.parent.name}-{libraries}-{k}")
    for path in FILES
    for k, (libraries, code) in enumerate(re.findall(r"```python (\w.*?)\n(.*?)```", path.read_text(), re.DOTALL))
]
SHELL = blocks(README, "bash")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than they give at these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("code", PYTHON)
def test_python_block(code, tmp_path, monkeypatch):
    """Each block by itself, in a namespace of its own; names that are only aliases do not belong into a README."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "fastscore.* is now", DeprecationWarning)
        exec(compile(code, "README", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("libraries", "code"), FOREIGN)
def test_python_block_of_others(libraries, code, tmp_path, monkeypatch):
    for library in libraries:
        others.library(library)
    test_python_block(code, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "path", [path if path == README else pytest.param(path, marks=pytest.mark.slow) for path in FILES[:-2]],
    ids=lambda path: path.parent.name,
)  # fmt: skip
def test_commands(path, tmp_path, monkeypatch, capsys):
    """The lines that begin with fastscore, in order, in one folder; without a compiler, since compiling takes long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = [line for code in blocks(path, "bash") for line in code.splitlines() if line.startswith("fastscore")]
    assert path != README or len(lines) >= 4
    needs_images = Path("/usr/share/datasets/fashion-mnist").is_dir() or os.environ.get("FASHION_MNIST")
    for line in lines:
        if line.startswith("fastscore evaluate") and not needs_images:
            continue  # the reference images are a Debian package
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line)[1:])
        assert end.value.code == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_first_and_the_last_command_are_what_the_gate_runs():
    gated = [line for line in README.read_text().splitlines() if line.startswith("python3 -m venv")]
    assert [gated[0], gated[1]] == [SHELL[0].rstrip(), SHELL[-1].rstrip()]
    assert len(gated) == 2
    assert gated[0].endswith("--out out") and gated[1].endswith(".venv/bin/pytest -n auto")
    assert "grep '^python3 -m venv' README.md" in (ROOT / ".ci/run").read_text()


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    assert lines.index("```python") < 30
    assert {language for language in re.findall(r"```(\w+)", README.read_text())} == {"python", "bash"}
    assert not [line for line in lines if line.startswith("|") and len(line) > 140]


def test_the_readme_names_every_room_in_order_of_its_floor():
    floors = runpy.run_path(str(ROOT / "tests/test_layering.py"))["FLOORS"]
    text = README.read_text().split("## The idea")[1]
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    named = [re.findall(r"`(\w+)`", cell) for cell in table]
    floor = {room: k for k, rooms in enumerate(floors) for room in rooms.split()}
    order = [floor[room] for rooms in named for room in rooms]
    assert order == sorted(order)
    folders = {path.name for path in (ROOT / "fastscore").iterdir() if (path / "__init__.py").exists()}
    assert folders <= {room for rooms in named for room in rooms}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", path.read_text()):
        if target.startswith("http"):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor
