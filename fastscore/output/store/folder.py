"""A place on a file system, local or shared."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastscore.files import PROCESS, TEMPORARY, atomic, here, sync, temporary
from fastscore.output.disk import FULL, free_bytes, full
from fastscore.output.lock import alive
from fastscore.output.places import checked
from fastscore.output.store.claim import CLAIM, NO_LINKS, claim_and_move, holder
from fastscore.output.store.place import HOUR, Clock, Entry, valid


def _at(point: str) -> None:
    """Do nothing; tests end the process here, at "written", "synced" and "linked"."""


class Folder:
    """The files below a folder.

    Args:
        path: the folder; it is made by the first file.

    Raises:
        ValueError: it is no folder, or a symbolic link.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = checked(path).absolute()
        self.url = str(self.path)
        self._clock = Clock()
        self._durable: set[Path] = set()  # folders that outlive a power failure

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        if os.path.lexists(path):
            return False
        with _told(path, len(data)):
            self._make(path.parent)
            for attempt in range(3):
                partial = temporary(path)
                try:
                    self._write(partial, data)
                    made = _link(partial, path)
                    _at("linked")
                    break
                except FileNotFoundError:  # swept by a host whose clock is an hour off, or the folder is gone
                    if attempt == 2 or not path.parent.is_dir():
                        raise
                finally:
                    partial.unlink(missing_ok=True)
            sync(path.parent)
        return made

    def replace(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with _told(path, len(data)):
            self._make(path.parent)
            with atomic(path) as file:
                file.write(data)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with _told(path):
            return path.read_bytes()

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        start = self._path(prefix.removesuffix("/")) if prefix else self.path
        if prefix and start.is_file():
            status = start.stat()
            yield Entry(prefix, status.st_size, self._clock.age(status.st_mtime))
            return
        cut = len(self.url.rstrip(os.sep)) + 1
        for file in _files(start):
            if file.name.startswith("."):
                continue
            try:
                status = file.stat(follow_symlinks=False)
            except FileNotFoundError:  # deleted since
                continue
            yield Entry(file.path[cut:].replace(os.sep, "/"), status.st_size, self._clock.age(status.st_mtime))

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _told(path):
            path.unlink(missing_ok=True)

    def tidy(self) -> int:
        left = [file for file in _files(self.path) if TEMPORARY.fullmatch(file.name) or CLAIM.fullmatch(file.name)]
        if left:  # what time is it, by the clock that dated them?
            probe = temporary(self.path / "clock")
            with suppress(OSError):
                self._write(probe, b"")
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        dead = [Path(file.path) for file in left if self._is_left(file)]
        for path in dead:
            with _told(path):
                path.unlink(missing_ok=True)
        return len(dead)

    def _is_left(self, file: os.DirEntry[str]) -> bool:
        """Return whether the writer of a temporary file is dead, as far as can be known here."""
        try:
            old = self._clock.age(file.stat(follow_symlinks=False).st_mtime) > HOUR
        except FileNotFoundError:
            return False
        if match := TEMPORARY.fullmatch(file.name):
            pid, host, process = int(match["pid"]), match["host"], match["process"]
            reborn = pid == os.getpid() and host == here() and process != PROCESS  # as in a container, always 1
            return old or reborn or not alive(pid, host)
        path, match = Path(file.path), CLAIM.fullmatch(file.name)
        if match is None or not path.with_name(match["name"]).exists():
            return False
        return old or not alive(*holder(path))

    def _path(self, name: str) -> Path:
        """Return the path of a file; raises ValueError if it or a folder on the way is a symbolic link, or too long."""
        path = self.path
        with _told(path / valid(name)):
            for part in ("", *name.split("/")):
                path = path / part
                if path.is_symlink():
                    raise ValueError(f"{path} is a symbolic link, and no run goes through one; remove it")
        return path

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, and see that each has its name on the disk, whoever made it."""
        if folder in self._durable:
            return
        if self.path in folder.parents or not folder.parent.is_dir():
            self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
        self._durable.add(folder)

    def _write(self, partial: Path, data: bytes) -> None:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            _at("written")
            os.fsync(file.fileno())
            self._clock.set(os.fstat(file.fileno()).st_mtime)
        _at("synced")


def _link(partial: Path, path: Path) -> bool:
    """Give a file that is on the disk its name; return False if the name exists."""
    try:
        os.link(partial, path)
    except FileExistsError:
        # over NFS an answer can be lost and the request repeated: then the name is that of this very file
        return os.path.samestat(os.lstat(partial), os.lstat(path))
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return claim_and_move(partial, path)
    return True


def _files(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the regular files below a folder, hidden ones too, but none in hidden folders."""
    folders = [folder]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield entry


@contextmanager
def _told(path: Path, size: int = 0) -> Iterator[None]:
    """Make an error of the system one that names the file and, of a full disk, the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            there = next(above for above in path.parents if above.is_dir())
            raise full(there, {path.name: size}, free_bytes(there), error) from None
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(
                f"{str(path)[:40]}... is too long a path ({len(str(path))} characters); choose another"
            ) from None
        if error.filename is None:
            error.filename = str(path)
        raise
