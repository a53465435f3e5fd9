"""A clock that tests set."""

from __future__ import annotations

import pytest


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock of progress and metrics."""
    clock = Clock()
    for module in ("progress", "metrics"):
        monkeypatch.setattr(f"fastscore.output.{module}.time", clock)
    return clock
