"""This user's cache: folders that nobody else can write, what is read from them, and how much is kept.

Compiled code is run when it is read, so a folder or a file that another user owns or can write is refused, wherever on
the way from the root it lies. What is kept can be made again, and the whole folder may be deleted at any time.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from fastscore.files import TEMPORARY, atomic, cache_folder

HOUR = 3600.0  # what was used within one may be in use
LEFT = re.compile(rf"\.(build|probe)-.*|{TEMPORARY.pattern}")  # of builds, probes and atomic writes that never ended
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

Say = Callable[[str], None]


class Unsafe(OSError):
    """A folder or file that another user could have written."""


def private(name: str, make: bool = True) -> Path:
    """Return a folder of the cache, which this user alone can write; its new folders have mode 0700.

    Args:
        name: of the folder, one level below ``cache_folder()``; "" is that itself.
        make: whether to make it if it is not there.

    Raises:
        Unsafe: it, or a folder above it, is another user's or can be written by others.
        OSError: it cannot be made, or there is no home to make it in.
    """
    try:
        root = cache_folder()
    except RuntimeError as error:  # no home
        raise FileNotFoundError(f"no cache: {error}") from None
    root = root.parent.resolve() / root.name
    ours = [root, root / checked_name(name)] if name else [root]
    if make:
        root.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (*reversed(root.parents), *ours):
        if folder in ours and make:
            folder.mkdir(exist_ok=True, mode=0o700)
        info = folder.lstat()
        if not stat.S_ISDIR(info.st_mode):
            raise Unsafe(f"{folder} is a link or no folder")
        _refuse(folder, info, shared=folder not in ours)
        if folder in ours and info.st_mode & 0o077:
            folder.chmod(0o700)
    return ours[-1]


def read(file: Path) -> bytes:
    """Return the bytes of a file of a folder that ``private`` returned.

    Raises:
        Unsafe: a link, no plain file, or one that another user owns or can write.
        OSError: it cannot be read.
    """
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
        info = os.fstat(stream.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise Unsafe(f"{file} is no plain file")
        _refuse(file, info, shared=False)
        return stream.read()


def write(file: Path, data: bytes) -> None:
    """Write a file that its owner alone can read, whole or not at all."""
    with atomic(file) as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(data)


def checked_name(name: object) -> str:
    """Return the name of a file if it stays in its folder: letters, digits, ``_ - .``, not a dot first.

    Raises:
        ValueError: another one.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{str(name)[:60]!r} is no file of this cache")
    return name


def whole(note: Path, entry: Any) -> tuple[Path, bytes]:
    """Return the file of this cache that a note tells of, and its bytes.

    Args:
        note: beside it; its stem is the key, with which the file's name begins.
        entry: what the note holds: "file" and the digest of its bytes, "sha256".

    Raises:
        ValueError, KeyError, TypeError: another file, or other bytes than were written.
        OSError: as for ``read``.
    """
    name = checked_name(entry["file"])
    if not name.startswith(note.stem):
        raise ValueError("it is not of this network")
    data = read(note.with_name(name))
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError("its bytes are not those that were written")
    return note.with_name(name), data


def used(file: Path) -> None:
    """Note that a file is used now, which keeps it from being pruned."""
    try:
        os.utime(file)
    except OSError:
        pass


def prune(files: Iterable[Path], count: int, size: int) -> list[Path]:
    """Delete the files that were used longest ago, until few and small enough; return which.

    Args:
        files: of which a time of modification says when they were last used.
        count, size: that may stay, in files and bytes. What was used within the hour stays whatever it takes.
    """
    entries = []
    for file in files:
        try:
            info = file.lstat()
        except OSError:  # gone already
            continue
        entries.append((info.st_mtime, info.st_size, file))
    entries.sort(key=lambda entry: entry[0], reverse=True)
    gone, taken, recent = [], 0, time.time() - HOUR
    for k, (used_at, length, file) in enumerate(entries):
        taken += length
        if (k >= count or taken > size) and used_at < recent:
            try:
                file.unlink()
            except OSError:
                continue
            gone.append(file)
    return gone


def sweep(folder: Path) -> None:
    """Delete what builds of processes that died a day ago have left."""
    for entry in folder.iterdir():
        try:
            if LEFT.fullmatch(entry.name) and entry.lstat().st_mtime < time.time() - 24 * HOUR:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        except OSError:  # another process sweeps too
            continue


def inductor(say: Say) -> None:
    """Give torch's compiler a cache below ours, unless the user has chosen one.

    Its own default, which it writes into the environment when it is first used, has a name that can be guessed, in a
    folder that all users share: whoever makes it first decides what code is read from it. Compilers split their command
    lines at spaces, so a path with one is no place for it; then, and where ours is not safe, it is this process's own.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen and not (
        Path(chosen).parent == Path(tempfile.gettempdir()) and Path(chosen).name.startswith("torchinductor_")
    ):
        return
    try:
        folder = private("inductor")
        if re.search(r"\s", str(folder)):
            raise Unsafe(f"{folder} has a space in its name, which compilers cannot take")
        probe(folder)
    except OSError as error:
        say(f"what torch compiles on the way is not kept: {error}")
        folder = _temporary()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def probe(folder: Path) -> None:
    """Raise OSError if a folder takes no files."""
    descriptor, name = tempfile.mkstemp(prefix=".probe-", dir=folder)
    os.close(descriptor)
    os.unlink(name)


def workspace(prefix: str) -> Path:
    """Return a new folder of this user's alone, in a place whose path has no space."""
    for place in (None, "/tmp", "/var/tmp"):
        try:
            folder = tempfile.mkdtemp(prefix=prefix, dir=place)
        except OSError:
            continue
        if not re.search(r"\s", folder):
            return Path(folder)
        os.rmdir(folder)
    raise OSError(f"no folder for temporary files without a space in its name: set TMPDIR, now {tempfile.gettempdir()}")


@cache
def _temporary() -> Path:
    folder = workspace("fastscore-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _refuse(path: Path, info: os.stat_result, shared: bool) -> None:
    """Raise Unsafe for what others can change: a folder on the way may be root's, or sticky as /tmp is."""
    if info.st_uid != os.geteuid() and not (shared and info.st_uid == 0):
        raise Unsafe(f"{path} belongs to user {info.st_uid}, not to {os.geteuid()}: delete it, or set XDG_CACHE_HOME")
    # A group with the user's own number is the user's own, as many systems make it.
    writable = info.st_mode & (0o002 if shared and info.st_gid == os.getegid() == os.geteuid() else 0o022)
    if writable and not (shared and info.st_mode & stat.S_ISVTX):
        raise Unsafe(f"{path} can be written by others: chmod go-w it if what it holds is yours, or delete it")
