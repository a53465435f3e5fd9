"""Names for files where the file system has no hard links: a claim by O_EXCL, and then a rename."""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from fastscore.files import here
from fastscore.output.lock import alive

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EINVAL}
CLAIM = re.compile(r"\.(?P<name>.+)\.(?P<number>\d+)\.claim")
PATIENCE = 60.0  # a rename takes no longer


def claim_and_move(partial: Path, path: Path) -> bool:
    """Give a file its name if nobody else does; return False if the name exists.

    Whoever makes the claim of the lowest number may. If that process is dead, whoever makes the next one; nobody
    removes another's before the name exists, so that two can never hold one number. A claim of another host counts as
    dead after PATIENCE seconds, by this process's count: were its writer only stopped, the later file of two stays.

    Raises:
        OSError: the folder cannot be written.
    """
    number, mine = 0, list[Path]()
    seen = time.monotonic()
    try:
        while True:
            claim = path.with_name(f".{path.name}.{number}.claim")
            if os.path.lexists(path):
                return False
            try:
                handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if not alive(*holder(claim)) or time.monotonic() - seen > PATIENCE:
                    mine.append(claim)
                    number, seen = number + 1, time.monotonic()
                else:
                    time.sleep(0.01)
                continue
            mine.append(claim)
            with os.fdopen(handle, "w") as file:
                file.write(f"{os.getpid()} {here()}\n")
            if os.path.lexists(path):  # by the one whose claim was here before
                return False
            os.replace(partial, path)
            return True
    finally:
        if os.path.lexists(path):
            for claim in mine:
                claim.unlink(missing_ok=True)


def holder(claim: Path) -> tuple[int, str]:
    """Return process and host that a claim names; another host if it names none yet."""
    words = []
    with suppress(OSError):
        words = claim.read_text(errors="replace").split()
    named = len(words) == 2 and re.fullmatch(r"\d{1,10}", words[0])
    return (int(words[0]), words[1]) if named else (0, "?")
