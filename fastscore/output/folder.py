"""A folder that is there with everything in it, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastscore.files import TEMPORARY, sync, sync_below, temporary
from fastscore.output.lock import alive, locked
from fastscore.output.places import checked


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Give a folder to fill, which takes its place when all is written: the counterpart of ``new_file``.

    It is made beside the place and put there by one rename. What a killed process left is removed by the next one.

    Args:
        path: what is not there, or an empty folder; whatever else is there is never replaced.

    Raises:
        ValueError: it is there and holds something, is a file or a symbolic link, or is in no folder; or another
            process is writing it.
        OSError: it cannot be written.
    """
    path = checked(path)
    if not path.name:
        raise ValueError(f"{str(path)!r} names no new folder; give one")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder, to make {path.name} in; make it first")
    _refuse_full(path)
    with locked(path.with_name(f".{path.name}.lock"), path):
        partial = temporary(path)
        _sweep(partial)
        partial.mkdir()
        try:
            yield partial
            sync_below(partial)
            _refuse_full(path)
            os.rename(partial, path)  # onto an empty folder too
            sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _refuse_full(path: Path) -> None:
    """Raise ValueError if a folder holds anything."""
    held = next(os.scandir(checked(path)), None) if path.exists() else None
    if held is not None:
        raise ValueError(f"{path} already holds {held.name}; choose another folder")


def _sweep(partial: Path) -> None:
    """Remove what dead processes left of the folder that this is a part of."""
    own = TEMPORARY.fullmatch(partial.name)
    for entry in list(os.scandir(partial.parent)):
        match = TEMPORARY.fullmatch(entry.name)
        if match and own and match["name"] == own["name"] and entry.is_dir(follow_symlinks=False):
            if not alive(int(match["pid"]), match["host"]):
                shutil.rmtree(entry.path, ignore_errors=True)
