"""How far a run is: a bar on a terminal, lines in a log, and whatever else looks on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

EVERY = 10.0  # seconds between two lines of a log
BAR = "{l_bar}{bar}| {n:,.0f} of {total:,}{unit} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

Told = bool | Callable[[float], None]


class Progress:
    """The progress of a run, told on stderr: on a terminal or in a notebook by a bar; elsewhere by a line each 10 s and
    one at the end, or none if that comes earlier.

    Args:
        shown: whether to tell it; what looks on is called anyway.
        unit: what is counted, in the plural.
        watch: called with this after each change, and at the end; it decides itself when it does something.

    Attributes:
        total, there: what the run has of the unit, and how many of them were there at the start.
        done: how many there are now, parts of one included.
        shards, shards_done: the same of shards, where they are not what is counted.
        note: more to say, such as "loss=0.1".
        ended: whether there is nothing more to come.
    """

    def __init__(
        self, shown: bool = True, unit: str = "samples", watch: Callable[[Progress], None] | None = None
    ) -> None:
        self.unit, self._watch, self._shown = unit, watch or (lambda progress: None), shown
        self.total, self.there, self.done, self.shards, self.shards_done, self.ended = 0, 0, 0.0, 0, 0, False
        self.note = ""
        self._bar: tqdm | None = None
        self._begun = self._told = time.monotonic()

    def begin(self, total: int, there: int = 0, shards: int = 0, shards_there: int = 0) -> Progress:
        """Start the clock: so many are to be done in all, and so many of them are there; return this."""
        self.total, self.there, self.done = total, there, float(there)
        self.shards, self.shards_done = shards, shards_there
        self._begun = self._told = time.monotonic()
        if self._shown and _rewrites(sys.stderr):
            self._bar = tqdm(total=total, initial=there, unit=f" {self.unit}", bar_format=BAR, file=sys.stderr)
        self._watch(self)
        return self

    def reach(self, done: float) -> None:
        """Say how many are done by now; fewer than before are no news."""
        self.advance(done - self.done)

    def advance(self, count: float, shards: int = 0) -> None:
        """Say how many more are done, and how many shards were completed."""
        self.done, self.shards_done = self.done + max(0.0, count), self.shards_done + shards
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(min(self.done, self.total) - self._bar.n)
        elif self._shown and time.monotonic() - self._told >= EVERY:
            self._tell()
        self._watch(self)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float:
        """How many were done in a second, without those that were there."""
        return (self.done - self.there) / max(self.seconds, 1e-9)

    @property
    def line(self) -> str:
        """It in words: "1,280 of 3,000 samples, 345.1/s, 5 s left"."""
        count, rate = int(self.done + 1e-6), self.rate
        words = [f"{count:,} of {self.total:,} {self.unit}", f"{rate:,.1f}/s", self.note]
        if self.ended:
            words.insert(2, duration(self.seconds))
        elif rate > 0:
            words.insert(2, f"{duration((self.total - self.done) / rate)} left")
        return ", ".join(filter(None, words))

    def end(self) -> None:
        """Say that nothing more comes."""
        self.ended = True
        if self._bar is not None:
            self._bar.close()
        elif self._shown and self.seconds >= EVERY:
            self._tell()
        self._watch(self)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _tell(self) -> None:
        self._told = time.monotonic()
        with suppress(OSError, ValueError, AttributeError):  # that nobody hears it is no reason to end
            sys.stderr.write(f"fastscore: {self.line}\n")
            sys.stderr.flush()


@contextmanager
def followed(progress: Told, total: int, unit: str = "samples") -> Iterator[Callable[[float], None] | None]:
    """Give what is to be called with how many are done by now, parts of one included; None if nobody wants to know.

    Args:
        progress: whether to show it; or what is called.
    """
    if callable(progress) or not progress:
        yield progress if callable(progress) else None
        return
    with Progress(unit=unit).begin(total) as shown:
        yield shown.reach


def together(*watches: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Return a watch that calls several, those that there are."""

    def watch(progress: Progress) -> None:
        for each in watches:
            if each is not None:
                each(progress)

    return watch


def within(reach: Callable[[float], None] | None, first: int, count: int) -> Callable[[float], None] | None:
    """Return what is to be called with the share that is done of ``count`` samples, those before them being done."""
    return None if reach is None else lambda share: reach(first + share * count)


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 5 s, 3 min 20 s, 2 h 5 min, 4 d 7 h."""
    left = round(seconds)
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if parts or count or size == 1:
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if len(parts) == 1 or not part.startswith("0 "))


def _rewrites(stream: TextIO | None) -> bool:
    """Return whether a stream shows a line that is written over: a terminal, or the output of a notebook's cell."""
    if type(stream).__module__.startswith("ipykernel"):
        return True
    try:
        return stream is not None and stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # it is closed, or a terminal of no known width, in which no bar fits
        return False
