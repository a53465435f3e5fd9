"""The lock of an output: one process writes there at a time, and a dead one holds nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastscore.files import here

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


class BusyError(ValueError):
    """Another process is writing to the same place; the message names both."""


def alive(pid: int, host: str | None = None) -> bool:
    """Return whether a process runs, as far as this one can know: one of another host may."""
    if os.name != "posix" or host not in (None, here()):
        return True
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextmanager
def locked(file: Path, what: Path | str) -> Iterator[None]:
    """Hold a lock file; the system releases it when this process ends, however it ends.

    It is removed at the end. One that a killed process left is taken over. Where the file system has no locks, the
    process named in the file holds it for as long as it lives.

    Raises:
        BusyError: another process holds it.
    """
    handle = _acquire(file, what)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(file)  # still held: nobody can hold this file and another one see it
        os.close(handle)


def refuse_if_locked(file: Path, what: Path | str) -> None:
    """Raise BusyError if another process holds a lock file; make none."""
    if os.path.lexists(file):
        with locked(file, what):
            pass


def holder(file: Path) -> tuple[int, str] | None:
    """Return number and host of the process that a lock file names, if it runs as far as this one can know."""
    try:
        with file.open("rb") as opened:
            pid, host = _holder(opened.fileno())
    except OSError:
        return None
    return (pid, host) if pid and alive(pid, host) else None


def _acquire(file: Path, what: Path | str) -> int:
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    for _ in range(1000):
        made = True
        try:
            handle = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            made = False
            try:
                handle = os.open(file, flags)
            except FileNotFoundError:  # removed by its holder in between
                continue
        try:
            pid, host = _holder(handle)
            free = _flock(handle)
            if free is None:  # whoever made the file holds it
                free = made
                if not made and pid and not alive(pid, host):
                    os.unlink(file)
                    continue
            if not free:
                holder = f" (process {pid} on {host})" if pid else ""
                raise BusyError(
                    f"another process{holder} is writing to {what}; wait until it is done, or choose another place"
                )
            with suppress(FileNotFoundError):  # removed by its holder since it was opened: take the next one
                if os.path.samestat(os.fstat(handle), os.lstat(file)):
                    os.ftruncate(handle, 0)
                    os.lseek(handle, 0, os.SEEK_SET)
                    os.write(handle, f"{os.getpid()} {here()}\n".encode())
                    kept, handle = handle, -1
                    return kept
        finally:
            if handle >= 0:
                os.close(handle)
    raise BusyError(f"other processes keep taking {what}; choose another place")


def _holder(handle: int) -> tuple[int, str]:
    """Return process and host that a lock file names, or 0."""
    words = os.read(handle, 200).decode(errors="replace").split()
    return (int(words[0]), words[1]) if len(words) == 2 and words[0].isdecimal() else (0, "")


def _flock(handle: int) -> bool | None:
    """Return whether the file is locked for this process; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        if error.errno in _HELD:
            return False
        raise
    return True
