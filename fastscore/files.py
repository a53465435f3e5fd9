"""Files of a model directory: weights as safetensors, everything else as JSON; never a pickle."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import re
import secrets
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PROCESS = secrets.token_hex(4)  # tells this process from an earlier one of the same number, as in a container
TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.(?P<process>[0-9a-f]{8})-\d+)?\.(?P<pid>\d{1,10})(@(?P<host>[\w-]+))?\.tmp")
FEW = 16  # files of which each is asked for by itself: a whole disk may hold what others write
_count = itertools.count()


def cache_folder() -> Path:
    """Return where this user keeps what can be made again: $XDG_CACHE_HOME/fastscore, or ~/.cache/fastscore."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastscore"


def here() -> str:
    """Return this host's name, as it stands in names of files; long ones, whose ends differ, by a hash of the end."""
    host = socket.gethostname()
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in host) or "localhost"
    return name if len(name) <= 32 else f"{name[:23]}-{hashlib.sha256(host.encode()).hexdigest()[:8]}"


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic(path) as file:
        file.write(text.encode())


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file to write such that others see the old one or the whole new one, whatever happens.

    A kill leaves a temporary file, whose name says of which file, process and host it is. What is not ``durable`` may
    be gone after a power failure, until ``sync_all``: of thousands of small files the waiting is most of the time.
    """
    partial = temporary(path)
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def temporary(path: Path) -> Path:
    """Return a place to write a file before it has its name, beside it and nobody else's; TEMPORARY reads the name."""
    name = path.name if len(path.name.encode()) < 160 else hashlib.sha256(path.name.encode()).hexdigest()[:32]
    return path.with_name(f".{name}.{PROCESS}-{next(_count)}.{os.getpid()}@{here()}.tmp")


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, outlive a power failure, where that can be asked for."""
    if os.name != "posix":
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def sync_all(files: Collection[Path]) -> None:
    """Do the same for files of one disk, with their folders: of many at once, where the system can (Linux)."""
    folders = {file.parent for file in files}
    if len(files) < FEW or not _disk_synced(next(iter(folders))):
        for path in (*files, *folders):
            sync(path)


def _disk_synced(folder: Path) -> bool:
    """Make sure that all that was written to a folder's disk outlives a power failure; return whether that was done."""
    try:
        syncfs, handle = ctypes.CDLL(None).syncfs, os.open(folder, os.O_RDONLY)
    except (AttributeError, TypeError, OSError):  # no such function, no such libraries, a folder that cannot be read
        return False
    try:
        return syncfs(handle) == 0
    finally:
        os.close(handle)


def sync_below(top: Path) -> None:
    """Do the same for a folder with everything in it."""
    for folder, _, files in os.walk(top, topdown=False):
        for file in files:
            sync(Path(folder, file))  # of what is on the disk already it asks nothing
        sync(Path(folder))
