"""The shards of a small run as one file, as evaluators and people want it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastscore.data.limits import numpy_arrays
from fastscore.output.disk import allocate
from fastscore.output.record import RECORD
from fastscore.output.store.formats import Shard, decode, encode
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.npz import ADM
from fastscore.output.store.place import Place
from fastscore.output.store.seal import DamagedError

if TYPE_CHECKING:
    from fastscore.output.store.job import Job

SAMPLES = "samples.npz"


def read_shard(place: Place, manifest: Manifest, number: int) -> Shard:
    """Return a shard of a run.

    Raises:
        DamagedError: it is not what was written, or belongs to another run.
        FileNotFoundError: it is not there.
    """
    name = manifest.name(number)
    try:
        shard = decode(place.read(name), manifest.format)
    except DamagedError as error:
        raise DamagedError(f"{place.url}/{name}: {error}; fastscore verify --repair draws it again") from None
    if (shard.run, shard.number) != (manifest.hash, number):
        raise DamagedError(f"{place.url}/{name} is a shard of another run; fastscore verify --repair draws it again")
    return shard


def whole_shard(job: Job, place: Place, number: int) -> Shard:
    """Return a shard of a run that is not complete, which `verify --repair` cannot mend; a damaged one is drawn again.

    Raises:
        FileNotFoundError: it is not there.
    """
    try:
        return read_shard(place, job.manifest, number)
    except DamagedError:
        warnings.warn(f"shard {number} was damaged; it is drawn again", stacklevel=2)
    shard = job.draw(number, lambda count: None)
    place.replace(job.manifest.name(number), encode(shard, job.manifest.format))
    return shard


def gather(job: Job, place: Place, work: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of all shards, and the sha256 of each; what is damaged is drawn again.

    Args:
        work: a folder for a file that the samples are mapped to, so that memory does not grow with their number.
    """
    manifest, (shape, kind) = job.manifest, job.entry
    arrays: dict[str, NDArray[Any]] = {}
    hashes: list[str] = []
    for number in range(manifest.count):
        shard, (first, last) = whole_shard(job, place, number), manifest.span(number)
        for name, part in shard.arrays.items():
            if name not in arrays:
                arrays[name] = _mapped(work / f"{name}.npy", (manifest.n, *part.shape[1:]), part.dtype)
            arrays[name][first:last] = part
        hashes.append(shard.sha256)
    return arrays or {"samples": np.empty((0, *shape), kind), "ids": np.empty(0, np.int64)}, hashes


def scatter(folder: Path, manifest: Manifest) -> list[Shard]:
    """Return the shards of a run that was gathered.

    Raises:
        ValueError: its file cannot be read.
    """
    known = {"samples", "ids", "labels", "cond", "seeds", *ADM.values()}
    arrays = numpy_arrays(folder / SAMPLES, lambda names: [name for name in names if name in known])
    back = {v: k for k, v in ADM.items()} if manifest.format == "adm-npz" else {}
    arrays = {back.get(name, name): x for name, x in arrays.items()}
    for name, x in arrays.items():
        if len(x) != manifest.n:
            raise ValueError(f"{folder / SAMPLES} holds {len(x)} {name}, not {manifest.n}")
    spans = [manifest.span(number) for number in range(manifest.count)]
    return [
        Shard(k, manifest.hash, {name: x[first:last] for name, x in arrays.items()})
        for k, (first, last) in enumerate(spans)
    ]


def recorded(folder: Path) -> tuple[Manifest, dict[str, Any]] | None:
    """Return the manifest and the record of the complete run that a folder holds; None if it holds none."""
    try:
        run = json.loads((folder / RECORD).read_text())
        manifest = Manifest.from_dict(run["manifest"], f"{folder / RECORD}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return manifest, run


def named(arrays: Mapping[str, NDArray[Any]], format: str) -> dict[str, NDArray[Any]]:
    """Return arrays by the names that they have in a file of a format."""
    return {ADM.get(name, name) if format == "adm-npz" else name: x for name, x in arrays.items()}


def _mapped(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an empty array in a file; in memory if it has no bytes, since those cannot be mapped."""
    if not np.prod(shape):
        return np.empty(shape, dtype)
    mapped = np.lib.format.open_memmap(file, "w+", dtype, shape)
    with file.open("r+b") as opened:  # a full disk is an error here, and a fatal signal where a page is written
        allocate(opened.fileno(), mapped.offset + mapped.nbytes, file.parent, {file.stem: mapped.nbytes})
    return mapped
