"""What the tests of files for schedulers share: words that files and shells trip over, and programs that stand in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOSTILE = (
    "it's", 'a "quoted" word', "$(touch hit)", "`touch hit`", "${HOME}", "$HOME", "$(JOB_COMPLETION_INDEX)", "$$(HOME)",
    "$$", "back\\slash\\", "new\nline", "tab\t", "\rreturn", "# no comment", "key: value", "- item", "[1, 2]", "{a: b}",
    "%s %d %%", "!bang!", "*", "~", "&& touch hit", "; touch hit", "| touch hit", "> hit", "é ü 漢字", "\U0001f600",
    "no\u00a0break", "\ufeffbom", "\x7f\x1b[31m", "\u2028line", "\x85", "null", "yes", "1e3", "0x10",
    " lead and trail ", "'", '"', "\\n", "$'\\x41'", "<<EOF", "\\x41'\u00a0", "1\u00a0f", "a" * 5000,
)  # fmt: skip

STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys, time
def told(*_):
    open("told", "a").write("TERM ")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(0.3)
    os._exit(75)
name = os.path.basename(sys.argv[0])
open(name + ".calls", "a").write(json.dumps(sys.argv[1:]) + "\\n")
if name == "fastscore" and os.environ.get("WAITS"):
    signal.signal(signal.SIGTERM, told)
    open("ready", "w").close()
    time.sleep(60)
codes = os.environ.get("CODES", "0").split()
calls = len(open(name + ".calls").readlines())
sys.exit(int(codes[min(calls, len(codes)) - 1]) if name == "fastscore" else 0)
"""


class Shell:
    """Runs a script where fastscore, scontrol and sleep only write down their words; fastscore ends with CODES."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / "bin"
        self.programs.mkdir()
        for name in ("fastscore", "scontrol", "sleep"):
            (self.programs / name).write_text(STAND_IN)
            (self.programs / name).chmod(0o755)

    def start(self, script: str, **environment: str) -> subprocess.Popen:
        (self.folder / "script.sh").write_text(script)
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        clean = {"PATH": path, "LC_ALL": "C", "HOME": "/nowhere"}
        return subprocess.Popen(["bash", "script.sh"], cwd=self.folder, env={**clean, **environment})

    def run(self, script: str, **environment: str) -> int:
        return self.start(script, **environment).wait(30)

    def stop(self, script: str, **environment: str) -> int:
        """Send SIGTERM to the script once fastscore is under way."""
        process = self.start(script, WAITS="1", **environment)
        deadline = time.monotonic() + 30
        while not (self.folder / "ready").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        return process.wait(30)

    def calls(self, name: str) -> list[list[str]]:
        file = self.folder / f"{name}.calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)
