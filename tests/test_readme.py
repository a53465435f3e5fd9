"""Every code block of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastscore.cli import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language == "bash"]


def test_there_are_no_other_blocks():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert len(PYTHON) >= 2


@pytest.mark.parametrize("k", range(len(PYTHON)))
def test_python_block(k, tmp_path):
    done = subprocess.run([sys.executable, "-c", PYTHON[k]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands(tmp_path, monkeypatch, capsys):
    """The lines that begin with fastscore, in order, in one folder; without a compiler, since compiling takes long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = [line for code in SHELL for line in code.splitlines() if line.startswith("fastscore")]
    assert len(lines) >= 7
    needs_images = Path("/usr/share/datasets/fashion-mnist").is_dir() or os.environ.get("FASHION_MNIST")
    for line in lines:
        if line.startswith("fastscore evaluate") and not needs_images:
            continue  # the reference images are a Debian package
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line)[1:])
        assert end.value.code == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_first_two_commands_are_what_the_gate_runs():
    assert SHELL[0].startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert SHELL[1].rstrip().endswith(".venv/bin/pytest")
    assert "README.md" in (ROOT / ".ci/run").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
