"""The record of a run, run.json, as the list of what the run wrote: nothing else is ever replaced or deleted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.data.limits import numpy_arrays

RECORD, PNG, MANIFEST, SHARDS = "run.json", "png", "manifest.json", "shards"
FILES = ("samples.npz", "trajectory.npz", "grid.png", RECORD)
MODEL = ("model.safetensors", "config.json")
LARGEST = 1 << 30  # bytes of a record that is read
_IMAGE, _FOLDER = re.compile(r"\d{6,19}\.png"), re.compile(r"\d{6,19}")
_SHARD = re.compile(rf"{SHARDS}/\d{{4,16}}/\d{{7,19}}\.(npz|npy|tar|parquet)")


@dataclass(frozen=True)
class Written:
    """The files of a run: some of FILES, manifest.json, images by id, and shards.

    Attributes:
        files: their names.
        first, last: int64, rising: ranges of the ids of the images in ``png``.
        subdirs: whether these are in folders of 1000 ids.
        shards: whether what lies in ``shards`` under the name of one is the run's.
    """

    files: tuple[str, ...] = ()
    first: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    last: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    subdirs: bool = False
    shards: bool = False

    @staticmethod
    def of(files: Iterable[str], ids: NDArray[np.int64], subdirs: bool) -> Written:
        """Return what a run with these files and images of these ids writes."""
        ids = np.sort(ids)
        breaks = np.flatnonzero(np.diff(ids) != 1)
        first, last = np.append(ids[:1], ids[breaks + 1]), np.append(ids[breaks], ids[-1:])
        return Written(tuple(files), first, last, subdirs)

    def image(self, name: str) -> bool:
        """Return whether a path in the folder is that of an image of the run."""
        *above, file = name.split("/")[1:]
        if not _IMAGE.fullmatch(file) or len(above) != int(self.subdirs):
            return False
        k = int(file[:-4])
        at = int(np.searchsorted(self.first, k, "right")) - 1
        return at >= 0 and k <= self.last[at] and name == image_name(k, self.subdirs)

    def found(self, folder: Path) -> list[str]:
        """Return which of these files a folder holds, by path below it; whatever they are."""
        names = [name for name in self.files if os.path.lexists(folder / name)]
        if self.shards and not (folder / SHARDS).is_symlink():
            below = (path.relative_to(folder).as_posix() for path in (folder / SHARDS).glob("*/*"))
            names += sorted(name for name in below if _SHARD.fullmatch(name))
        top = folder / PNG
        if not len(self.first) or top.is_symlink() or not top.is_dir():
            return names
        for entry in os.scandir(top):
            path = f"{PNG}/{entry.name}"
            if not self.subdirs:
                names += [path] if self.image(path) else []
            elif _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                paths = [f"{path}/{name}" for name in os.listdir(entry.path)]
                names += [name for name in paths if self.image(name)]
        return names

    def entry(self) -> dict[str, Any]:
        """Return what run.json holds under ``wrote``."""
        entry = {"files": list(self.files), **({"shards": True} if self.shards else {})}
        if not len(self.first):
            return entry
        spans = zip(self.first.tolist(), self.last.tolist(), strict=True)
        images = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
        return {**entry, "png": images, "subdirs": self.subdirs}


def image_name(k: int, subdirs: bool) -> str:
    """Return the path of the image of an id below a run's folder."""
    return f"{PNG}/{k // 1000 * 1000:06d}/{k:06d}.png" if subdirs else f"{PNG}/{k:06d}.png"


def plausible(name: str) -> bool:
    """Return whether a path is one that some run could write."""
    parts = name.split("/")
    above = parts[1:-1]
    image = parts[0] == PNG and 2 <= len(parts) <= 3 and _IMAGE.fullmatch(parts[-1]) is not None
    return (
        name in (*FILES, MANIFEST, *MODEL)
        or _SHARD.fullmatch(name) is not None
        or (image and all(_FOLDER.fullmatch(part) for part in above))
    )


def written(folder: Path) -> Written:
    """Return what the run that a folder holds wrote, from its run.json, or of one that many processes draw its shards.

    Nothing if there is none, or no run's.
    """
    file = folder / RECORD
    try:
        if not os.path.lexists(file) and (folder / MANIFEST).is_file():
            return Written((MANIFEST,), shards="manifest" in json.loads((folder / MANIFEST).read_text()))
        if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST:
            return Written()
        run = json.loads(file.read_text())
        if "wrote" not in run:
            return _unlisted(folder, run)
        wrote = run["wrote"]
        files = [name for name in (*FILES, MANIFEST) if name in wrote["files"]]
        spans = [part.split("-") for part in wrote.get("png", "").split(",") if part]
        ends = np.array([(int(span[0]), int(span[-1])) for span in spans], np.int64).reshape(-1, 2)
        ends = ends[np.argsort(ends[:, 0], kind="stable")]
        subdirs, shards = bool(wrote.get("subdirs", False)), bool(wrote.get("shards", False))
        return Written(tuple(files), ends[:, 0], ends[:, 1], subdirs, shards)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError):
        return Written()


def _unlisted(folder: Path, run: dict[str, Any]) -> Written:
    """Return what a run of a version that listed no files wrote: FILES, and the images of the ids of its samples."""
    if not {"settings", "versions"} <= run.keys():
        return Written()
    ids: NDArray[np.int64] = np.empty(0, np.int64)
    if run["settings"].get("png"):
        ids = numpy_arrays(folder / FILES[0], lambda names: ["ids"])["ids"].astype(np.int64)
    return Written.of(FILES, ids, bool(run["settings"].get("subdirs")))


def ranges(ids: Sequence[int]) -> str:
    """Write ids, in the order given, as --ids reads them: 0-63,100."""
    parts, start = [], 0
    for k in range(1, len(ids) + 1):
        if k == len(ids) or ids[k] != ids[k - 1] + 1:
            parts.append(f"{ids[start]}" if k - start == 1 else f"{ids[start]}-{ids[k - 1]}")
            start = k
    return ",".join(parts)
