"""Functions in copies of this process, which end without being cleaned up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def begin(child: Callable[[], object]) -> int:
    """Run a function in a copy of this process; return the number of that process."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid


def fork(child: Callable[[], object]) -> int:
    """Run a function in a copy of this process to its end; return how that came, as subprocess says it."""
    return os.waitstatus_to_exitcode(os.waitpid(begin(child), 0)[1])
