"""How the threads of a command wait: set before torch loads, because OpenMP reads it once.

GNU's OpenMP lets threads spin for milliseconds at the end of each parallel region. On cores that another process needs
too, they take the time of the threads that they wait for: beside busy processes on two cores a run had a half to a
quarter of the speed that it has when they sleep after some microseconds. On idle cores there is no difference.
"""

from __future__ import annotations

import os
import sys

SPINS = "1000"  # turns, of a nanosecond or a few each
POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # either is the user's own word


def wait_briefly() -> None:
    """Let waiting threads sleep soon, in this process and in those that it starts, unless the user has chosen."""
    if "torch" not in sys.modules and not any(name in os.environ for name in POLICIES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
