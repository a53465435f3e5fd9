"""Room on the disk, taken before it is needed, so that a run does not end for lack of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = "draw fewer samples at a time, write to another disk, or free some"


class Reserve:
    """A file that holds the room of others: it shrinks as they are written.

    Args:
        file: its path.
        parts: bytes that will be written, by what they are.

    Raises:
        OSError: there is not that much; the message says needed, free and the remedy.
    """

    def __init__(self, file: Path, parts: Mapping[str, int]) -> None:
        self.file, self.left, self._lock = file, sum(parts.values()), threading.Lock()
        free = free_bytes(file.parent)
        if self.left > free:
            raise full(file.parent, parts, free)
        with file.open("wb") as opened:
            allocate(opened.fileno(), self.left, file.parent, parts)

    def spend(self, count: int) -> None:
        """Give back the room of something that is about to be written."""
        with self._lock:
            self.left = max(0, self.left - count)
            os.truncate(self.file, self.left)


def allocate(handle: int, count: int, folder: Path, parts: Mapping[str, int]) -> None:
    """Take the blocks of a file, where the system can: a full disk, or quota, is an error now.

    Raises:
        OSError: as for Reserve.
    """
    if not count or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, count)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full(folder, parts, free_bytes(folder), error) from None


def full(folder: Path, parts: Mapping[str, int], free: int, error: OSError | None = None) -> OSError:
    """Return the error of a disk without room for all parts."""
    listed = ", ".join(f"{what} {size(count)}" for what, count in parts.items() if count)
    limit = f" ({error.strerror})" if error is not None else ""
    place = folder.parent if folder.name.startswith(".run") else folder
    raised = OSError(
        f"{place} needs {size(sum(parts.values()))} of disk ({listed}) and has {size(free)} free{limit}; {ADVICE}"
    )
    raised.errno = error.errno if error is not None else errno.ENOSPC
    return raised


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user can still write there."""
    if not hasattr(os, "statvfs"):
        import shutil

        return shutil.disk_usage(folder).free
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def size(count: int) -> str:
    """Write a number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000  # pyright: ignore[reportAssignmentType]
    raise AssertionError
