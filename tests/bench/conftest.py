"""Shared by the tests of the benches: a quick setting and an environment of no machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.common import Setting


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny work on several threads waits for the slowest of them, which takes long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def quick() -> Setting:
    return Setting(torch.device("cpu"), quick=True)


@pytest.fixture(scope="session")
def env() -> dict[str, Any]:
    return {
        "device": "CPU (Fixture)", "type": "cpu", "cpu": "Fixture", "threads": 2, "load": 0.1, "power_limit_w": None,
        "cuda": None, "torch": "2.9", "triton": None, "tf32": {}, "git": "abc", "dirty": True,
        "date": "2026-01-02T03:04:05",
    }  # fmt: skip
