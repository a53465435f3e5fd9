"""What the command line is to the system: its streams, and the signals that end it in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Ended(KeyboardInterrupt):
    """A signal asks the process to end: as Ctrl-C does, so that what is half written goes."""

    def __init__(self, number: int) -> None:
        words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
        self.code, self.word = 128 + number, words.get(signal.Signals(number), "hung up")


def complete_streams() -> None:
    """Give stdin, stdout and stderr that are closed to os.devnull, and say what a terminal cannot in escapes.

    A file that is opened where one is closed gets its number, and whatever is then printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def orderly(last: bool = False) -> Iterator[None]:
    """Let SIGTERM, SIGHUP and Ctrl-C raise Ended, where nobody has said what they are to do.

    Only the first of them does, so that it can be tidied up behind it. A thread that is not the main one hears no
    signals, and changes none.

    Args:
        last: this is all that the process does: once one was heard none is any more, while Python itself ends.
    """
    heard = False
    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP", "SIGINT")]
    before = {k: signal.getsignal(k) for k in numbers if k is not None}
    ours = [k for k, does in before.items() if does in (signal.SIG_DFL, signal.default_int_handler)]

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        for k in ours:
            signal.signal(k, signal.SIG_IGN)
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for k in ours:
        signal.signal(k, end)
    try:
        yield
    finally:
        for k in [] if heard and last else ours:
            signal.signal(k, before[k])


def flush() -> None:
    """Write out what was printed, while an error of that can still be told.

    Raises:
        OSError: it cannot be written; it is given up, so that Python does not try again, and complain, at its end.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise
