"""Files of a model directory: weights as safetensors, everything else as JSON; never a pickle."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def cache_folder() -> Path:
    """Return where this user keeps what can be made again: $XDG_CACHE_HOME/fastscore, or ~/.cache/fastscore."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastscore"


def here() -> str:
    """Return this host's name, as it stands in names of files."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())[:32] or "localhost"


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic(path) as file:
        file.write(text.encode())


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write such that others see the old one or the whole new one, whatever happens.

    A kill leaves a temporary file, whose name says of which file, process and host it is.
    """
    name = path.name if len(path.name.encode()) < 160 else hashlib.sha256(path.name.encode()).hexdigest()[:32]
    partial = path.with_name(f".{name}.{os.getpid()}@{here()}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


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
