"""How busy this machine is: what else runs on the cores that a run wants."""

from __future__ import annotations

import os
from typing import Any


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> dict[str, Any]:
    """Return the mean number of processes that ran or wanted to, in the last minute, beside the cores.

    Keys: ``average``, None where the system does not say; ``cores`` that this process may use; ``busy``, whether there
    were more processes than these.
    """
    try:
        average = round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        average = None
    return {"average": average, "cores": cores(), "busy": average is not None and average > cores()}
