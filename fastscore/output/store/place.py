"""A place of files: a folder or a bucket in which each file is whole or absent, whoever is killed while writing.

Files are made under their final names in one atomic step that fails if the name exists, so that of many writers one
wins and the others learn of it. Nothing here asks who is writing: no lock, and no clock, decides what a file holds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

HOUR = 3600.0  # no file takes this long to write
SCHEMES = ("s3", "gs", "az")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<second>/?)(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a place: its name, its size in bytes, and the seconds since it last changed, by the place's clock."""

    name: str
    size: int
    age: float


class Place(Protocol):
    """Files by their names, relative and with slashes: parts of letters, digits, "_", "-" and "." (not first).

    Every method raises ValueError for another name and OSError if the storage fails. Any number of threads and
    processes may use a place at a time.
    """

    url: str

    def create(self, name: str, data: bytes) -> bool:
        """Make a file, atomically and durable on return; return False, with nothing changed, if the name exists."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Make a file, or put it in place of the one that is there, atomically."""
        ...

    def read(self, name: str) -> bytes:
        """Return what a file holds; raises FileNotFoundError."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the files below a prefix such as "shards/", at any depth and in any order, or the one of that name."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def tidy(self) -> int:
        """Remove temporary files that dead writers have left; return how many."""
        ...


def place_of(where: Path | str) -> Place:
    """Return the place at a path, or at s3://bucket/prefix, gs://bucket/prefix, az://container/prefix; make nothing.

    Raises:
        ValueError: no place is named so; or a symbolic link or a file stands there.
        ImportError: a bucket without the extra "objects".
    """
    from fastscore.output.store.folder import Folder

    text = os.fspath(where)
    match = _URL.fullmatch(text)
    if match is None or (os.name == "nt" and len(match["scheme"]) == 1):
        return Folder(where)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        if match["second"] and not rest.startswith("/"):
            raise ValueError(f"{text} names another host; write file:///path for a folder of this one")
        return Folder(f"/{rest.lstrip('/')}")
    if not match["second"]:  # one slash, as pathlib makes of two
        if scheme not in SCHEMES:
            return Folder(where)
        raise ValueError(f"{text} names a folder {scheme}: here; write {scheme}://{rest}, as text and no Path")
    if scheme not in SCHEMES:
        raise ValueError(f"{text}: {scheme}:// is no place to write to; give a folder or s3://, gs:// or az://")
    from fastscore.output.store.objects import bucket

    return bucket(scheme, rest)


def valid(name: str) -> str:
    """Return a file's name; raises ValueError if it is none."""
    if not name or len(name) > 1000 or not all(map(_PART.fullmatch, name.split("/"))):
        raise ValueError(
            f"{name[:200]!r} is no name of a file in a run: its parts, between slashes, are of letters, digits, _, - "
            "and ., which none begins with"
        )
    return name


class Clock:
    """A store's clock: the last time that the store gave a file, carried on by this process's own count of seconds.

    So it does not jump when somebody sets this machine's clock, nor disagree with other machines on one store. Until
    the store has dated something it is this machine's.
    """

    def __init__(self) -> None:
        self.set(time.time())

    def set(self, dated: float) -> None:
        """Take over the time, in seconds, that the store has just given."""
        self._ahead = dated - time.monotonic()

    def age(self, dated: float) -> float:
        """Return how many seconds ago a time of the store was; 0 if it is still to come."""
        return max(0.0, time.monotonic() + self._ahead - dated)
