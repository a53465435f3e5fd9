"""What the Markdown says: blocks run, commands too, and links lead somewhere; of READMEs and fastscore/docs."""

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
DOCS = sorted((ROOT / "fastscore/docs").glob("*.md"))
FILES = [
    README,
    TUTORIALS,
    *DOCS,
    *sorted(set(ROOT.glob("fastscore/**/README.md")) - set(DOCS)),
    ROOT / "fastscore/solvers/PRESETS.md",
    ROOT / "kernels/README.md",
    ROOT / "bench/README.md",
]
MARKDOWN = [
    *ROOT.glob("*.md"),
    *(path for room in ("fastscore", "kernels", "bench") for path in (ROOT / room).rglob("*.md")),
]


def named(path: Path) -> str:
    return path.parent.name if path.name == "README.md" else path.stem


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def marks(path: Path, code: str) -> list[pytest.MarkDecorator]:
    """When a block is run: of READMEs in the gate, and of fastscore/docs always, or as a comment above it says."""
    if path in (README, TUTORIALS):
        return []
    said = (
        re.search(r"<!-- (slow|nightly) -->\n```python\n" + re.escape(code), path.read_text()) if path in DOCS else None
    )
    slow = [pytest.mark.slow] if said or path not in DOCS else []
    return [*slow, pytest.mark.nightly] if said and said[1] == "nightly" else slow


PYTHON = [
    pytest.param(code, id=f"{named(path)}-{k}", marks=marks(path, code))
    for path in FILES
    for k, code in enumerate(blocks(path, "python"))
]
# Blocks that need others' libraries, which stand behind the language: ```python diffusers
FOREIGN = [
    pytest.param(libraries.split(), code, id=f"{named(path)}-{libraries}-{k}")
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


@pytest.mark.thirds
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
    ids=named,
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


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a file: of equal ones the second has -1 behind."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", prose(path, inline=True), re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        found[f"{slug}-{found[slug]}" if slug in found else slug] = 0
        found[slug] += 1
    return set(found)


def prose(path: Path, inline: bool = False) -> str:
    """Return a file without its blocks, and without code in its lines."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return text if inline else re.sub(r"`[^`\n]*`", "", text)


def test_links_lead_somewhere():
    """Files and anchors, of all Markdown here; an image is a link, too."""
    links, cache = 0, {}
    for path in MARKDOWN:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(path)):
            if target.startswith("http"):
                continue
            file = (path.parent / target).resolve() if target else path
            assert file.exists() and file.is_relative_to(ROOT), f"{path.relative_to(ROOT)}: {target}"
            if anchor:
                cache[file] = cache.get(file) or anchors(file)
                assert anchor in cache[file], f"{path.relative_to(ROOT)}: {target}#{anchor}"
            links += 1
    assert links > 200
