"""A run as it lies in a folder or bucket: record, manifest, first samples; arrays are read when looked at."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastscore.data.limits import regular_file
from fastscore.output.commit import settle
from fastscore.output.record import LARGEST, RECORD
from fastscore.output.store.folder import Folder
from fastscore.output.store.gather import SAMPLES, read_shard
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.npz import ADM, mapped
from fastscore.output.store.place import Place, place_of
from fastscore.output.store.work import present
from fastscore.plan.rows import Plan
from fastscore.process.schedule import Schedule


@dataclass(frozen=True)
class Drawn:
    """What drew a run, made again from its command; what nobody can make again is None, and ``why`` says it."""

    schedule: Schedule | None = None
    plan: Plan | None = None
    knots: Sequence[float] = ()
    why: str = ""


@dataclass(frozen=True)
class Run:
    """A run as it lies at a place.

    Attributes:
        name: as it was given.
        folder: None of a bucket.
        record: what run.json holds; {} where there is none, as of a run that many commands draw.
        manifest: None of a command that leaves none, as langevin.
    """

    name: str
    place: Place
    folder: Path | None
    record: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None

    @property
    def identity(self) -> str:
        """What tells its samples from another run's in the same place: a hash, and how many they are."""
        if self.manifest is not None:
            return f"{self.manifest.hash} {self.manifest.n}"
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()


def open_run(name: str) -> Run:
    """Return the run that lies in a folder or bucket.

    Raises:
        ValueError: none is there, none is complete, or its record cannot be read.
    """
    place = place_of(name)
    if not isinstance(place, Folder):
        manifest = Manifest.read(place)
        if manifest is None:
            raise ValueError(f"{name} holds no run: no manifest.json is there")
        return Run(name, place, None, {}, manifest)
    folder = place.path
    if not folder.is_dir():
        raise ValueError(f"{name} is no folder; a report is made of a run that `fastscore sample` wrote")
    settle(folder)
    if (folder / RECORD).exists():
        record = read_json(folder / RECORD, LARGEST)
        if not isinstance(record, dict):
            raise ValueError(f"{folder / RECORD} is no record of a run; draw the run again")
        manifest = Manifest.from_dict(record["manifest"], str(folder / RECORD)) if "manifest" in record else None
        return Run(name, place, folder, record, manifest)
    if (folder / ".run").is_dir():
        raise ValueError(f"{name} holds an unfinished run; the command that began it goes on with it")
    if (manifest := Manifest.read(place)) is None:
        raise ValueError(f"{name} holds no run: neither run.json nor manifest.json is there")
    return Run(name, place, folder, {}, manifest)


def first_samples(run: Run) -> tuple[str, NDArray[Any], NDArray[Any] | None]:
    """Return what there is to say of a run's shards, its first samples, and their classes."""
    if run.folder and (run.folder / SAMPLES).exists():
        file = run.folder / SAMPLES
        arrays = {name: array(file, name, ADM[name]) for name in ("samples", "labels")}
        if arrays["samples"] is None:
            raise ValueError(f"{file} holds no array named samples; draw the run again, --fresh")
        return "", arrays["samples"], arrays["labels"]
    manifest = run.manifest
    if manifest is None or manifest.gathered:
        raise ValueError(f"{run.name} holds no {SAMPLES}; `fastscore verify {run.name} --repair` draws it again")
    there = sorted(present(run.place, manifest))
    if not there:
        raise ValueError(f"{run.name}: none of its {manifest.count} shards is drawn yet; see `fastscore status`")
    arrays = read_shard(run.place, manifest, there[0]).arrays
    text = (
        f"{len(there):,} of {manifest.count:,} shards of {manifest.shard:,} samples are there; these are of shard "
        f"{there[0]}."
    )
    return text, arrays["samples"], arrays.get("labels")


def array(file: Path, *names: str) -> NDArray[Any] | None:
    """Return the first array of these names in an .npz file as it lies there; None if there is none, or no file.

    Raises:
        ValueError: the file cannot be read.
    """
    if not file.exists():
        return None
    try:
        with zipfile.ZipFile(regular_file(file)) as archive:
            there = [name for name in names if f"{name}.npy" in archive.namelist()]
        return mapped(file, there[0]) if there else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read ({error}); `fastscore verify --repair` draws it again") from None


def read_json(file: Path, most: int) -> Any:
    """Return what a JSON file of at most so many bytes holds; ValueError if it cannot be read."""
    if regular_file(file).stat().st_size > most:
        raise ValueError(f"{file} has more than {most:,} bytes, which no record has")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{file} cannot be read: it is no JSON, or damaged") from None
