"""What a command writes, begun and then put in place when it is complete: old or new, whatever ends the process.

    with begin("out", overwrite=True, planned=Written(FILES)) as stage:
        ...  # write to stage.new
        stage.commit()

Files are made in a folder of the output, on its disk: ``.run-*``, or ``.run`` of a run in shards, which stays for the
next call when a process ends. The commit is one rename, of that folder to ``.run-committed``; what follows (delete what
the earlier run wrote, move the new files, the record last) can be repeated, and whoever begins there next does so if a
kill came in between. Until then run.json is absent, so that no record stands beside files that it does not describe. A
lock makes one process do all this at a time; leftovers of dead ones are swept. Nothing goes through symbolic links, and
nothing is deleted that no record lists.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastscore.files import TEMPORARY, atomic, sync, sync_below
from fastscore.output.disk import Reserve
from fastscore.output.lock import alive, locked, refuse_if_locked
from fastscore.output.places import checked, refuse, refuse_odd, refuse_others
from fastscore.output.record import PNG, RECORD, Written, plausible, written

LOCK, COMMITTED, LASTING = ".run-lock", ".run-committed", ".run"
_STAGE = re.compile(r"\.run-[a-z0-9_]{8}")


class Stage:
    """The files of a run that is not complete.

    Attributes:
        folder: where they will be.
        new: the folder to write them to, by the same names.
        work: a folder for everything else.
        lasting: whether both stay if the run ends before its commit; so if an earlier process left them.
    """

    def __init__(self, folder: Path, work: Path, earlier: Written) -> None:
        self.folder, self.work, self.new = folder, work, work / "new"
        self._earlier, self._reserve, self.lasting = earlier, None, self.new.exists()
        self._rescue: Callable[[Path], str] | None = None
        self.new.mkdir(exist_ok=True)

    def clear(self) -> None:
        """Begin anew: remove what an earlier process left, and keep the room that was taken."""
        for path in self.work.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "reserve":
                path.unlink()
        self.new.mkdir()

    def reserve(self, **parts: int) -> None:
        """Take room on the disk for parts, in bytes; raises OSError, with needed, free and the remedy."""
        self._reserve = Reserve(self.work / "reserve", {k.replace("_", " "): v for k, v in parts.items()})

    def spend(self, count: int) -> None:
        """Give back as much of the room as is about to be written."""
        if self._reserve is not None:
            self._reserve.spend(count)

    def keep(self, rescue: Callable[[Path], str]) -> None:
        """From now on a failure keeps ``work``: ``rescue`` puts it in order and returns what lies there."""
        self._rescue = rescue

    def commit(self, record: str = RECORD) -> None:
        """Put the files in place of those of the earlier run.

        Raises:
            ValueError: something else has taken one of their places.
            OSError: the folder cannot be written.
        """
        old = self._earlier.found(self.folder)
        names = _files(self.new)
        for name in names:
            if not plausible(name):
                raise ValueError(f"{self.new / name} is no file that a run has; look at it, move it away, and go on")
        refuse_others(self.folder, names, old)
        order = {"record": record, "remove": [name for name in old if name not in set(names)]}
        (self.work / "order.json").write_text(json.dumps(order))
        sync_below(self.new)
        sync(self.work / "order.json")
        sync(self.work)
        os.rename(self.work, self.folder / COMMITTED)
        sync(self.folder)
        _finish(self.folder)


@contextmanager
def begin(
    folder: Path | str,
    *,
    overwrite: bool = False,
    planned: Written,
    earlier: Callable[[Path], Written] = written,
    lasting: bool = False,
) -> Iterator[Stage]:
    """Begin a run, or go on with one: hold its folder and give a place for its files.

    Args:
        folder: made if it is not there; removed again if the run fails and nothing else is in it.
        overwrite: replace what the folder's record lists.
        planned: what will be written.
        earlier: returns what an earlier run wrote, by its record.
        lasting: use the files that an earlier process left; they stay if ``stage.lasting``.

    Raises:
        ValueError: the folder holds a run that is not to be replaced, or files in the way that are not its run's, or
            symbolic links; or another process is writing there.
        OSError: it cannot be written.
    """
    with claim(folder, planned.files) as out:
        old = earlier(out)
        refuse(out, overwrite, old, planned)
        stage = Stage(out, _lasting(out) if lasting else Path(tempfile.mkdtemp(prefix=".run-", dir=out)), old)
        try:
            yield stage
        except BaseException as error:
            _keep(stage, error)
            raise
        finally:
            if stage.lasting:
                (stage.work / "reserve").unlink(missing_ok=True)  # its room is free for others meanwhile
            else:
                shutil.rmtree(stage.work, ignore_errors=True)
            _finish(out)  # if an interrupt came after the commit


@contextmanager
def claim(folder: Path | str, names: Collection[str]) -> Iterator[Path]:
    """Hold a folder for this process alone; finish or sweep what a dead one left, temporary files of ``names``.

    Raises:
        ValueError: no name, a symbolic link or no folder; or another process holds it.
        OSError: it cannot be made.
    """
    out, made = checked(folder), []
    try:
        missing = [out]
        while not missing[-1].exists():
            missing.append(missing[-1].parent)
        for place in reversed(missing[:-1]):
            place.mkdir(exist_ok=True)
            made.append(place)
        with locked(out / LOCK, out):
            _finish(out)
            _sweep(out, names, stages=True)
            yield out
    finally:
        with suppress(OSError):  # the first that is not empty, and those above it, stay
            for place in reversed(made):
                place.rmdir()


@contextmanager
def new_file(path: Path, overwrite: bool = False) -> Iterator[Callable[..., Any]]:
    """Hold the path of one file until it is written, by what is given: ``write(save, *args)`` calls save(file, ...).

    Raises:
        ValueError: it is there and not to be replaced, or is no regular file; or another process is writing it.
        OSError: its folder cannot be written.
    """
    if not path.name:
        raise ValueError(f"{str(path)!r} names no file; give one")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder, to write {path.name} in; make it first")
    refuse_odd(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is already there; choose another name, or overwrite to replace it")
    with locked(path.with_name(f".{path.name}.lock"), path):
        _sweep(path.parent, (path.name,), stages=False)

        def write(save: Callable[..., Any], *args: Any, **arrays: Any) -> None:
            refuse_odd(path)
            if path.exists() and not overwrite:
                raise ValueError(f"{path} has been written by somebody else meanwhile; choose another name")
            with atomic(path) as file:
                save(file, *args, **arrays)

        yield write


def refuse_early(folder: Path | str, overwrite: bool, planned: Written) -> None:
    """Raise what ``begin`` would raise, where that can be seen before any work; make nothing."""
    out = checked(folder)
    if not out.is_dir():
        return
    settle(out)
    refuse_if_locked(out / LOCK, out)
    refuse(out, overwrite, written(out), planned)


def settle(folder: Path) -> None:
    """Put in place what a killed process had committed to a folder that is to be read."""
    if os.path.lexists(folder / COMMITTED):
        with claim(folder, ()):
            pass


def _lasting(out: Path) -> Path:
    """Return the folder in which an earlier process may have left a run; raises ValueError for a link or a file."""
    work = out / LASTING
    if os.path.lexists(work) and (work.is_symlink() or not work.is_dir()):
        raise ValueError(f"{work} is not what a run leaves there; move it away")
    work.mkdir(exist_ok=True)
    return work


def _keep(stage: Stage, error: BaseException) -> None:
    """Move the work of a run that was sampled to the end to a folder of its own, and say so."""
    if stage._rescue is None or not stage.work.exists():
        return
    places = (stage.folder / f"unsaved-{k}" for k in range(1, 10_000))
    place = next(place for place in places if not os.path.lexists(place))
    os.rename(stage.work, place)
    shutil.rmtree(place / "new", ignore_errors=True)  # what these took is free for the rest
    (place / "reserve").unlink(missing_ok=True)
    place.chmod(stage.folder.stat().st_mode & 0o777)
    text = f"everything was sampled and is kept: {stage._rescue(place)}"
    if isinstance(error, OSError):
        raised = OSError(f"{error}; {text}")
        raised.errno = error.errno
        raise raised from error
    with suppress(Warning):
        warnings.warn(text, stacklevel=2)


def _finish(out: Path) -> None:
    """Put the files of a committed run in place, from wherever an earlier attempt came to."""
    done = out / COMMITTED
    if not os.path.lexists(done):
        return
    try:
        if done.is_symlink():
            raise ValueError
        order = json.loads((done / "order.json").read_text())
        record, remove, names = order["record"], order["remove"], _files(done / "new")
        if not all(plausible(name) for name in (record, *remove, *names)):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{done} is not what a run leaves there; move it away") from None
    refuse_others(out, (), [*names, *remove])
    if record in names:
        (out / record).unlink(missing_ok=True)
    for name in remove:
        (out / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == record):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(done / "new" / name, out / name)
    folders = {(out / name).parent for name in (*names, *remove)} | {out / PNG}
    for folder in sorted(folders - {out}, key=lambda folder: -len(folder.parts)):
        with suppress(OSError):
            sync(folder)
            folder.rmdir()  # if it is empty
    sync(out)
    emptied = out / f".run-{secrets.token_hex(4)}"  # by one rename no longer a commit, however much of it is deleted
    os.rename(done, emptied)
    shutil.rmtree(emptied, ignore_errors=True)


def _sweep(folder: Path, names: Collection[str], stages: bool) -> None:
    """Remove what dead processes left half-done: temporary files, and of a folder that is held ``stages`` too."""
    for entry in list(os.scandir(folder)):
        if _STAGE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            if stages:
                shutil.rmtree(entry.path, ignore_errors=True)
            continue
        match = TEMPORARY.fullmatch(entry.name)
        if match and match["name"] in names and entry.is_file(follow_symlinks=False):
            if not alive(int(match["pid"]), match["host"]):
                os.unlink(entry.path)


def _files(folder: Path) -> list[str]:
    """Return the regular files below a folder, by their paths; raises ValueError if there is anything else.

    Left out are the temporary files and leases of workers that were killed: those are no part of a run.
    """
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if TEMPORARY.fullmatch(path.name) or name.startswith("leases/") or (path.is_dir() and not path.is_symlink()):
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{path} is no regular file")
        names.append(name)
    return names
