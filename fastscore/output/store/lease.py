"""Leases of shards: who computes which, so that two workers seldom compute the same.

They only save work. A lease that is lost, stolen, damaged, or judged by a clock that jumps makes a shard be computed
twice, to the same bytes, of which the place keeps one.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from fastscore.files import PROCESS, here
from fastscore.output.lock import alive
from fastscore.output.store.place import Entry, Place

FOLDER = "leases/"


@dataclass(frozen=True)
class Held:
    """A lease as it lies there: of which shard, whose, and how many seconds ago it was renewed."""

    shard: int
    owner: str
    host: str
    pid: int
    age: float


class Leases:
    """The leases of one worker.

    Another's is stale, and is taken over, once it is older than patience by the place's clock, or has not changed for
    that long before this worker's eyes, whatever the clocks say; and at once if its process ran on this host and is
    dead.

    Args:
        place: of the run.
        owner: a name of the worker, for people; workers of one process need one each.
        patience: seconds without a sign of life after which a worker is given up, above 0.

    Raises:
        ValueError: patience is not above 0.
    """

    def __init__(self, place: Place, owner: str, patience: float = 60.0) -> None:
        if not 0 < patience < float("inf"):
            raise ValueError(f"patience = {patience} must be a number of seconds above 0")
        self.place, self.owner, self.patience = place, owner, patience
        self._written: dict[int, float] = {}  # the leases held, and when each was last written
        self._seen: dict[int, tuple[bytes, float]] = {}  # others' leases, and since when they have been like that
        self._count = 0

    def take(self, number: int) -> bool:
        """Take the lease of a shard if it is free or stale; return whether it is this worker's now.

        Raises:
            ValueError: the number is negative.
            OSError: the storage fails.
        """
        if number in self._written:
            return True
        name, text = _name(number), self._text()
        if not self.place.create(name, text):
            try:
                found = self.place.read(name)
                entry = next(iter(self.place.entries(name)))
            except (FileNotFoundError, StopIteration):  # given back meanwhile, as a shard that is done
                return False
            if not self._stale(number, found, entry.age):
                return False
            self.place.replace(name, text)
        self._seen.pop(number, None)
        self._written[number] = time.monotonic()
        return True

    def renew(self, number: int) -> None:
        """Say that the work on a shard goes on; cheap, as it writes but every sixth of patience.

        Storage that fails is no error here: then the lease becomes stale, and the shard may be computed twice.
        """
        now = time.monotonic()
        if now - self._written.get(number, now) >= self.patience / 6:
            with suppress(OSError):
                self.place.replace(_name(number), self._text())
            self._written[number] = now

    def release(self, number: int) -> None:
        """Give the lease of a shard back, if it is held; storage that fails is no error."""
        if self._written.pop(number, None) is not None:
            with suppress(OSError):
                self.place.delete(_name(number))

    def release_all(self) -> None:
        """Give back all leases that are held."""
        for number in list(self._written):
            self.release(number)

    def clear(self, there: Container[int]) -> None:
        """Remove the leases of shards that are there, which killed workers have left and nobody needs.

        Raises:
            OSError: the storage fails.
        """
        for number, entry in _entries(self.place):
            if number in there:
                self.place.delete(entry.name)

    def tidy(self) -> int:
        """Remove stale leases of others, whatever became of their shards; return how many.

        Raises:
            OSError: the storage fails.
        """
        removed = 0
        for number, entry in _entries(self.place):
            with suppress(FileNotFoundError):
                if number not in self._written and self._stale(number, self.place.read(entry.name), entry.age):
                    self.place.delete(entry.name)
                    removed += 1
        return removed

    def _stale(self, number: int, found: bytes, age: float) -> bool:
        """Return whether another's lease is one of a worker that is dead or hangs."""
        now = time.monotonic()
        if number not in self._seen or self._seen[number][0] != found:
            self._seen[number] = found, now
        if age > self.patience or now - self._seen[number][1] > self.patience:
            return True
        try:
            holder = json.loads(found)
            pid, host, process = int(holder["pid"]), str(holder["host"]), holder["process"]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # damaged, or somebody else's file
            return False
        if pid == os.getpid() and host == here():
            return process != PROCESS
        return not alive(pid, host)

    def _text(self) -> bytes:
        """Return what this worker's leases hold, each time something new."""
        self._count += 1
        holder = {"owner": self.owner, "host": here(), "pid": os.getpid(), "process": PROCESS, "renewed": self._count}
        return json.dumps(holder).encode()


def held(place: Place, most: int) -> Iterator[Held]:
    """Yield the leases that lie at a place, at most so many; of one that cannot be read, number and age.

    Raises:
        OSError: the storage fails.
    """
    for number, entry in islice(_entries(place), most):
        try:
            said = json.loads(place.read(entry.name))
            yield Held(number, str(said["owner"]), str(said["host"]), int(said["pid"]), entry.age)
        except FileNotFoundError:  # given back meanwhile
            continue
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            yield Held(number, "?", "?", 0, entry.age)


def _entries(place: Place) -> Iterator[tuple[int, Entry]]:
    for entry in place.entries(FOLDER):
        if re.fullmatch(r"\d{7,18}", digits := entry.name.removeprefix(FOLDER)):
            yield int(digits), entry


def _name(number: int) -> str:
    if number < 0:
        raise ValueError(f"shard {number}: numbers begin at 0")
    return f"{FOLDER}{number:07d}"
