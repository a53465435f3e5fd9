"""Items of a phase, each in a process of its own: a crash, a hang or a poisoned device ends one and not the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module

from bench.card.card import Card, Facts


def each(card: Card, items: Mapping[str, Callable[[], Facts | None]], at_once: int, limit: float) -> None:
    """Do every item in a process forked from this one, which must not have touched the device.

    Args:
        card: what a phase is handed.
        items: by name; each runs, and records, in its process.
        at_once: how many processes there are at a time.
        limit: seconds after which one is killed.
    """
    warm_imports()
    waiting = [item for item in items if not card.only or item in card.only]
    running: dict[int, tuple[str, float]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            item = waiting.pop(0)
            if card.left() <= 0.0:
                card.put(item, skipped="no time left")
                continue
            running[_fork(card, item, items[item])] = (item, time.monotonic())
        for pid, (item, start) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                code = os.waitstatus_to_exitcode(status)
                if code:
                    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                    card.put(item, False, error=f"its process ended: {how}")
            elif time.monotonic() - start > limit or card.left() < -2.0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                del running[pid]
                card.put(item, False, error=f"hung: killed after {time.monotonic() - start:.0f} s")
        time.sleep(0.01)


def warm_imports() -> None:
    """Import once what every item would; none of it touches the device."""
    for name in ("fastscore.sampler", "fastscore.ops.torch_library", "torch._dynamo"):
        with suppress(ImportError):
            import_module(name)


def _fork(card: Card, item: str, work: Callable[[], Facts | None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        card.do(item, work)
        code = 0
    finally:
        os._exit(code)  # not this process's handlers, nor its buffers
