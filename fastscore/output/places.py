"""What may be written where: a run takes the place of nothing but what an earlier run's record lists."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fastscore.output.record import PNG, Written


def checked(folder: Path | str) -> Path:
    """Return a folder's path; raises ValueError if it is none: no name, a file, a symbolic link, too long."""
    if not str(folder) or (isinstance(folder, str) and not folder.strip()):
        raise ValueError("the folder to write to has no name; give one ('.' is the one you are in)")
    out = Path(folder)
    try:
        if out.is_symlink():
            raise ValueError(f"{out} is a symbolic link; write to the folder itself: {os.path.realpath(out)}")
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file and no folder; choose another folder")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(
            f"{str(out)[:40]}... is too long a path ({len(str(out))} characters); choose another"
        ) from None
    return out


def refuse(out: Path, overwrite: bool, earlier: Written, planned: Written) -> None:
    """Raise ValueError for an earlier run that is not to be replaced, and for what is in the way and is not its."""
    for name in (*planned.files, *earlier.files, PNG):
        if (out / name).is_symlink() and (name != PNG or len(planned.first) or len(earlier.first)):
            raise ValueError(f"{out / name} is a symbolic link, and no run goes through one; remove it")
    old = earlier.found(out)
    if old and not overwrite:
        raise ValueError(f"{out} already holds {old[0]}; choose another folder, or overwrite to replace it")
    refuse_others(out, planned.found(out), old)


def refuse_others(out: Path, names: Collection[str], old: Collection[str]) -> None:
    """Raise ValueError if one of the places is taken by what no run wrote, or is reached through a link."""
    known = set(old)
    for name in (*names, *old):
        for above in Path(name).parents[:-1]:
            if (out / above).is_symlink() or ((out / above).exists() and not (out / above).is_dir()):
                raise ValueError(f"{out / above} is in the way of {name}; move it away, or choose another folder")
        refuse_odd(out / name)
    for name in names:
        if name not in known and os.path.lexists(out / name):
            raise ValueError(
                f"{out} already holds {name}, which no run here is known to have written; move it away, or "
                "choose another folder"
            )


def refuse_odd(path: Path) -> None:
    """Raise ValueError for a path that is there and is no regular file."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{path} is no regular file, and nothing is written in its place; choose another name")
