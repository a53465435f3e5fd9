"""P3: the tests that need a GPU, each recorded as it ends; after a crash or a hang the others go on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.card.card import Card
from bench.card.per_test import BEGUN
from bench.records import ROOT

LIMIT = 60.0  # seconds of one test
TESTS = ("tests/test_gpu.py", "tests/kernels", "tests")  # what tells most first; pytest collects the rest for long
OPTIONS = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
PASSED = (0, 5)  # exit codes of pytest: all passed, there was none left


def run(card: Card, tests: Sequence[str] = TESTS) -> None:
    """Run them, one folder after another."""
    for which in card.pick(tests, tests[:1]):
        while card.left() > 0.0:
            code = once(card, which)
            begun = card.out / BEGUN
            if not begun.exists():
                card.put(f"pytest {which}", code in PASSED, exit=code)
                break
            card.put(begun.read_text(), False, error=f"it took too long, or ended the process (exit code {code})")
            begun.unlink()


def once(card: Card, which: str) -> int:
    """Run pytest in a process of its own; return its exit code."""
    script = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("per_test.py"))]
    words = [str(card.out), card.phase, str(min(LIMIT, max(1.0, card.left()))), str(card.dry).lower()]
    report = f"--junitxml={card.out / f'junit-{Path(which).stem}.xml'}"
    try:
        limit = max(1.0, card.left()) + 5.0
        return subprocess.run([*script, *words, *OPTIONS, report, which], cwd=ROOT, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return -9
