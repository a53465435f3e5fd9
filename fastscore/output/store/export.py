"""The shards of a run as other people's programs want them: one file, or a folder of many.

| form | what it is |
|---|---|
| npz | one file: ``samples``, ``ids``, and ``labels``, ``cond`` or ``cond.<name>``, ``seeds`` if it has them |
| adm-npz | the same for ADM's evaluator: ``arr_0`` the images, ``arr_1`` the labels |
| npy | one file: the samples alone, in the order of the run's ids |
| parquet | one file, a row group a shard; columns as of a shard in that format |
| tar | a folder of WebDataset tars, one a shard: ``000000.tar``, ``000001.tar``, .. |
| png | a folder of images by id, as EDM has them: ``000000/000123.png`` |
| zarr | a folder, a Zarr group of format 2: the arrays, a chunk a shard |

Shards are read one at a time, in order, and memory does not grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastscore.errors import unknown
from fastscore.output.commit import new_file
from fastscore.output.disk import free_bytes, full
from fastscore.output.folder import new_folder
from fastscore.output.images import THREADS, save_png, small_pngs
from fastscore.output.record import PNG, image_name
from fastscore.output.store import parquet, zarr
from fastscore.output.store.formats import Shard, encode, same
from fastscore.output.store.npz import header, raw, renamed, write_joined

Pieces = Iterator[tuple[str, bytes]]


def export(shards: Iterable[Shard], out: Path | str, form: str, count: int, *, overwrite: bool = False) -> None:
    """Write the samples of shards in another form; see above.

    The file or folder appears when it is complete, whatever ends the process.

    Args:
        shards: of one run, all of them, in order.
        out: the file, or the folder, which must not be there or be empty.
        form: one of FILES or FOLDERS.
        count: samples in all shards together, at least 1.
        overwrite: replace a file.

    Raises:
        ValueError: no form of that name, no samples of it (PNG of what is no image), shards of different kinds, or
            more or fewer samples than ``count``; or something is in the way.
        ImportError: parquet needs pyarrow.
        OSError: it cannot be written, or the disk has no room.
    """
    if form not in FILES and form not in FOLDERS:
        raise unknown("form", form, (*FILES, *FOLDERS))
    if "://" in str(out):
        raise ValueError(f"{out} is no path; export to a folder and copy it")
    if count < 1:
        raise ValueError(f"count = {count} must be at least 1; there is nothing to export")
    path, rest = Path(out), _checked(shards, count)
    if form in FILES:
        with new_file(path, overwrite) as write:
            first = _first(rest, form, count, path.parent)
            write(FILES[form], first, chain((first,), rest), count)
        return
    with new_folder(path) as folder:
        first = _first(rest, form, count, folder)
        for name, data in FOLDERS[form](first, chain((first,), rest), count):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with place.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                raise ValueError(f"{name} would be written twice: an id comes twice; take npz") from None


def _npz(file: BinaryIO, first: Shard, shards: Iterable[Shard], count: int) -> None:
    write_joined(file, (shard.arrays for shard in shards), first.arrays, count)


def _adm(file: BinaryIO, first: Shard, shards: Iterable[Shard], count: int) -> None:
    write_joined(file, (shard.arrays for shard in shards), renamed(first.arrays), count)


def _npy(file: BinaryIO, first: Shard, shards: Iterable[Shard], count: int) -> None:
    x = first.arrays["samples"]
    file.write(header(x.dtype, (count, *x.shape[1:])))
    for shard in shards:
        file.write(raw(shard.arrays["samples"]))


def _parquet(file: BinaryIO, first: Shard, shards: Iterable[Shard], count: int) -> None:
    with parquet.writer(file, parquet.table_of(first.arrays).schema) as opened:
        for shard in shards:
            opened.write_table(parquet.table_of(shard.arrays), row_group_size=max(1, len(shard)))


def _tars(first: Shard, shards: Iterable[Shard], count: int) -> Pieces:
    for shard in shards:
        yield f"{shard.number:06d}.tar", encode(shard, "tar")


def _pngs(first: Shard, shards: Iterable[Shard], count: int) -> Pieces:
    with ThreadPoolExecutor(THREADS, "fastscore-export") as pool:
        for shard in shards:
            names = [image_name(k, True).removeprefix(f"{PNG}/") for k in shard.arrays["ids"].tolist()]
            images = shard.arrays["samples"]
            small = small_pngs(images)
            yield from zip(names, pool.map(_png, images) if small is None else map(bytes, small), strict=True)


def _png(image: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    save_png(file, image)
    return file.getvalue()


def _zarr(first: Shard, shards: Iterable[Shard], count: int) -> Pieces:
    yield from zarr.group({"run": first.run}, first.arrays, count)
    done = 0
    for number, shard in enumerate(shards):
        if done != number * len(first) or len(shard) > len(first):
            raise ValueError(f"a chunk of zarr is a shard, and shard {shard.number} is not as long as the others")
        yield from zarr.chunks(number, shard.arrays, len(first))
        done += len(shard)


FILES: Mapping[str, Callable[[BinaryIO, Shard, Iterable[Shard], int], None]] = {
    "npz": _npz,
    "adm-npz": _adm,
    "npy": _npy,
    "parquet": _parquet,
}
FOLDERS: Mapping[str, Callable[[Shard, Iterable[Shard], int], Pieces]] = {"tar": _tars, "png": _pngs, "zarr": _zarr}


def _entry(x: NDArray[Any]) -> int:
    """Return the bytes of one entry of an array."""
    return x.dtype.itemsize * math.prod(x.shape[1:])


def _first(shards: Iterator[Shard], form: str, count: int, folder: Path) -> Shard:
    """Return the first shard, whose kind is that of all.

    Raises:
        ValueError: the form does not hold such samples.
        OSError: the disk has less room than they take.
    """
    first = next(shards)
    x = first.arrays["samples"]
    if form == "adm-npz" and x.dtype != np.uint8:
        raise ValueError(f"adm-npz holds uint8 images, not {x.dtype} {x.shape[1:]}; take npz")
    if form == "png" and (x.dtype != np.uint8 or x.shape[3] not in (1, 3)):
        raise ValueError(f"png holds images of 1 or 3 channels, not {x.dtype} {x.shape[1:]}; take npz")
    parts = {name: count * _entry(y) for name, y in first.arrays.items() if form != "npy" or name == "samples"}
    free = free_bytes(folder)
    if form != "png" and sum(parts.values()) > free:  # PNG files may take less than their pixels
        raise full(folder, parts, free)
    return first


def _checked(shards: Iterable[Shard], count: int) -> Iterator[Shard]:
    """Give shards, after a look at whether they are those of one run and all; raises ValueError."""
    first, last, done = None, -1, 0
    for shard in shards:
        first = first or shard
        if shard.run != first.run or not same(shard.arrays, first.arrays):
            raise ValueError(f"shard {shard.number} is of another run than shard {first.number}")
        if shard.number <= last:
            raise ValueError(f"shard {shard.number} comes after shard {last}; give them in order, each once")
        last, done = shard.number, done + len(shard)
        if done > count:
            raise ValueError(f"shards up to {last} hold {done} samples, and the run has {count}")
        yield shard
    if done < count or first is None:
        raise ValueError(f"the shards hold {done} samples of {count}; finish the run first")
