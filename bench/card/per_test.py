"""pytest with a record and a limit a test: one that hangs in the driver ends this process, and the next goes on.

    python bench/card/per_test.py OUT PHASE SECONDS [arguments of pytest]

Tests that OUT/records.jsonl names are left out: they were reported, or begun and never ended.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:1] = []  # as the phases do
    sys.path.append(str(Path(__file__).resolve().parents[2]))

import pytest

from bench.card import lines

BEGUN = "begun"  # the file that names the test that runs


class PerTest:
    """The plugin.

    Args:
        out: the folder of the run. phase: its records' name. seconds: limit of one test.
        dry: what records say.
    """

    def __init__(self, out: Path, phase: str, seconds: float, dry: bool) -> None:
        self.out, self.phase, self.seconds, self.dry = out, phase, seconds, dry
        self.done = {r["item"] for r in lines.load(out) if r["phase"] == phase}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what was reported."""
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin the test's time."""
        (self.out / BEGUN).write_text(nodeid)
        faulthandler.dump_traceback_later(self.seconds, exit=True)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record it at once."""
        faulthandler.cancel_dump_traceback_later()
        if report.when == "call" or report.outcome != "passed":
            ok = {"passed": True, "failed": False}.get(report.outcome)
            reason = {} if ok else {"error" if ok is False else "skipped": str(report.longrepr)[-800:]}
            record = {"phase": self.phase, "item": report.nodeid, "ok": ok, "dry": self.dry}
            lines.write(self.out, {**record, "seconds": report.duration, **reason})
        elif report.when == "setup":
            faulthandler.dump_traceback_later(self.seconds, exit=True)

    def pytest_runtest_logfinish(self) -> None:
        """Forget it: what ends this process now was not the test."""
        (self.out / BEGUN).unlink(missing_ok=True)


def main(words: list[str]) -> int:
    """Run pytest; return its exit code."""
    out, phase, seconds, dry, *rest = words
    return pytest.main(rest, plugins=[PerTest(Path(out), phase, float(seconds), json.loads(dry))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
