"""The shards of a small run as one file, as evaluators and people want it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastscore.data.limits import numpy_arrays
from fastscore.files import atomic
from fastscore.output.record import RECORD
from fastscore.output.store.formats import Shard, decode, encode
from fastscore.output.store.manifest import Manifest
from fastscore.output.store.npz import ADM, mapped, numpys_entry, write_joined
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


def gather(job: Job, place: Place, file: Path, extra: Mapping[str, Any]) -> tuple[NDArray[Any], list[str]]:
    """Write the shards of a run as one .npz file; return its samples, mapped, and the sha256 of each shard.

    What is damaged is drawn again. Memory does not grow with the number of samples.

    Args:
        file: to write.
        extra: further arrays, behind samples and ids.
    """
    manifest, (shape, kind) = job.manifest, job.entry
    none = {"samples": np.empty((0, *shape), kind), "ids": np.empty(0, np.int64)}
    shards = (whole_shard(job, place, number) for number in range(manifest.count))
    first = next(shards, None)
    like = named(none if first is None else first.arrays, manifest.format)
    hashes: list[str] = []

    def parts() -> Iterator[Mapping[str, NDArray[Any]]]:
        for shard in () if first is None else chain((first,), shards):
            hashes.append(shard.sha256)
            yield shard.arrays

    with atomic(file) as opened:
        write_joined(opened, parts(), like, manifest.n, extra, numpys_entry)
    return mapped(file, next(iter(like))), hashes


def scatter(folder: Path, manifest: Manifest) -> list[Shard]:
    """Return the shards of a run that was gathered.

    Raises:
        ValueError: its file cannot be read.
    """
    known = {"samples", "ids", "labels", "cond", "seeds", "prior_ids", *ADM.values()}
    arrays = numpy_arrays(
        folder / SAMPLES, lambda names: [name for name in names if name in known or name.startswith("cond.")]
    )
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
