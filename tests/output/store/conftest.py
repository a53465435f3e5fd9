"""What tests of drawn runs share."""

from __future__ import annotations

import pytest
from drawn import FAULTS


@pytest.fixture
def no_faults(monkeypatch):
    """A test begins with a network that works; and what is synced is not in question."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    FAULTS.clear()
    yield
    FAULTS.clear()
