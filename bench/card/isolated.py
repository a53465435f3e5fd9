"""Items of a phase, each in a process of its own: a crash, a hang or a poisoned device ends one and not the others."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.card import lines
from bench.card.card import Card, Facts

POLL = 0.02


def each(
    card: Card, module: str, items: Mapping[str, Callable[[], Facts | None]], at_once: int, limit: float, size: int = 1
) -> None:
    """Do every item in a new process, which runs ``module`` with that item alone.

    Args:
        card: what a phase is handed; if it names items, this is such a process, and does them.
        module: whose ``run`` calls this.
        items: by name.
        at_once: how many processes there are at a time.
        limit: seconds after which one is ended.
        size: how many items share a process.
    """
    if card.only:
        return card.do_all(items)
    names = list(items)
    waiting = [names[k : k + size] for k in range(0, len(names), size)]
    running: dict[subprocess.Popen[bytes], tuple[Sequence[str], float]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            group = waiting.pop(0)
            if card.left() <= 0.0:
                for item in group:
                    card.put(item, skipped="no time left")
                continue
            running[_begin(card, module, group)] = (group, time.monotonic())
        for process, (group, start) in list(running.items()):
            code, took = process.poll(), time.monotonic() - start
            if code is None and took <= limit and card.left() > -1.0:
                continue
            del running[process]
            if code is None:
                process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
                time.sleep(0.2)
                process.kill()
                process.wait()
            if code != 0:
                how = "hung: " if code is None else f"{signal.Signals(-code).name}, " if code < 0 else f"exit {code}, "
                told = {r["item"] for r in lines.load(card.out) if r["phase"] == card.phase}
                for item in group:
                    if item not in told:
                        card.put(item, False, error=f"its process ended: {how}after {took:.0f} s")
        time.sleep(POLL)


def _begin(card: Card, module: str, group: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-X", "faulthandler", str(Path(__file__).parent), module, "--name", card.phase]
    command += ["--out", str(card.out), "--seconds", f"{card.left():.1f}", "--only", ";".join(group)]
    return subprocess.Popen(command + ["--dry"] * card.dry)
