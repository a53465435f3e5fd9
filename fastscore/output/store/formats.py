"""A shard as one file: arrays of consecutive samples, in a format that other people's programs read.

    data = encode(Shard(7, run, {"samples": images, "ids": ids}), "npz")
    shard = decode(data, "npz")

The bytes are a function of the shard alone, and of parquet's of the version of pyarrow: no time, no owner, and nothing
is compressed. Every file holds a sealed note (see ``seal``) where its readers pass over it, with what the shard is and
the sha256 of its arrays:

| format | what its readers find | where the note is |
|---|---|---|
| npz | the arrays, by their names | the comment of the ZIP file |
| adm-npz | the same; ``samples`` is ``arr_0``, ``labels`` is ``arr_1``, as ADM's evaluator has it | the same |
| npy | ``samples``; the others behind it, one ``np.load`` of the open file each | behind the last |
| tar | WebDataset: ``000123.png`` or ``.npy``, ``.cls`` for a label, ``.<name>.npy`` for the rest | behind the end |
| parquet | a column an array; images as PNG files, as Hugging Face's datasets have them | the metadata |
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastscore.errors import short, typed, unknown
from fastscore.output.store import npz, parquet, tar
from fastscore.output.store.seal import DamagedError, note, opened, seal

Arrays = Mapping[str, NDArray[Any]]
_RUN, _NAME = re.compile(r"[\w:.-]{1,128}", re.ASCII), re.compile(r"[a-z]\w{0,31}|cond\.[A-Za-z_]\w{0,63}", re.ASCII)


@dataclass(frozen=True, eq=False)
@typed
class Shard:
    """Consecutive samples of a run.

    Attributes:
        number: of the shard in the run, from 0.
        run: the hash of the run's manifest, 1 to 128 letters, digits and ``:.-_``.
        arrays: by name, n entries each: "samples", uint8 [n, H, W, C] or float32 [n, *shape]; "ids", int64 [n]; if the
            samples were told something "labels", int64 [n], "cond", [n, *shape], or "cond.<name>" of tensors by name;
            "seeds", uint64 [n]; "prior_ids", int64 [n]; or others, of numbers. They are kept in one order, little-
            endian and contiguous; those of a file cannot be written to.

    Raises:
        ValueError: anything else.
    """

    number: int
    run: str
    arrays: Arrays

    def __post_init__(self) -> None:
        if not 0 <= self.number < 1 << 63:
            raise ValueError(f"shard number {self.number} must be from 0 to 2**63 - 1")
        if not _RUN.fullmatch(self.run):
            raise ValueError(f"run {short(self.run)} must be the hash of a manifest, 1 to 128 letters and digits")
        object.__setattr__(self, "arrays", _checked(self.arrays))

    def __len__(self) -> int:
        return len(self.arrays["ids"])

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the arrays: names, dtypes, shapes and bytes; the same in every format."""
        digest = hashlib.sha256()
        for name, x in self.arrays.items():
            digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
            digest.update(npz.raw(x))
        return digest.hexdigest()


class Format(NamedTuple):
    """How a shard is written and read.

    Attributes:
        suffix: of its files.
        write: arrays and a note into a file.
        read: arrays of the names, dtypes and shapes that the last argument has, out of a file; raises anything.
    """

    suffix: str
    write: Callable[[BytesIO, Arrays, bytes], None]
    read: Callable[[bytes, Arrays], Arrays]


FORMATS: Mapping[str, Format] = {
    "npz": Format("npz", npz.write, npz.read),
    "adm-npz": Format("npz", npz.write_adm, npz.read_adm),
    "npy": Format("npy", npz.write_npy, npz.read_npy),
    "tar": Format("tar", tar.write, tar.read),
    "parquet": Format("parquet", parquet.write, parquet.read),
}


def format_of(name: str) -> Format:
    """Return the format of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name]


def encode(shard: Shard, format: str) -> bytes:
    """Return a shard as the bytes of a file.

    Raises:
        ValueError: no format of that name, or a shard that it cannot hold: adm-npz float samples, tar one id twice,
            parquet entries without values.
        ImportError: parquet needs pyarrow.
    """
    arrays = dict(_kinds(shard.arrays))
    text = note(format=format, number=shard.number, run=shard.run, sha256=shard.sha256, arrays=arrays)
    file = BytesIO()
    format_of(format).write(file, shard.arrays, text)
    return seal(file)


def decode(data: bytes, format: str) -> Shard:
    """Return the shard that a file holds.

    Nothing is looked at before the seal has been checked. As nothing in a file is compressed, one that promises more
    bytes than it has is refused before they are taken, and no reader here runs what it reads.

    Raises:
        DamagedError: the bytes are not, all of them, what ``encode`` returned.
        ValueError: no format of that name.
        ImportError: parquet needs pyarrow.
    """
    read, fields = format_of(format).read, opened(data)
    if fields.get("format") != format:
        raise DamagedError(f"it is a shard in the format {short(fields.get('format'))}, not {format}")
    try:
        arrays = read(data, _described(fields["arrays"], len(data)))
        shard = Shard(fields["number"], fields["run"], arrays)
        if list(_kinds(shard.arrays)) != list(fields["arrays"].items()):
            raise ValueError(f"they are {dict(_kinds(shard.arrays))}")
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # readers of what somebody has sealed raise anything
        raise DamagedError(f"it does not hold the arrays of its note: {error}") from None
    if shard.sha256 != fields.get("sha256"):
        raise DamagedError("its arrays have another sha256 than its note says")
    return shard


def versions(format: str) -> dict[str, str]:
    """Return the versions that the bytes of a format depend on, by library: of parquet pyarrow's, else none.

    Raises:
        ImportError: parquet needs pyarrow.
    """
    return {"pyarrow": parquet.library()[0].__version__} if format_of(format).suffix == "parquet" else {}


def same(a: Arrays, b: Arrays) -> bool:
    """Return whether two sets of arrays have the same names, dtypes and shapes of an entry, as shards of a run have."""
    kinds = ([(name, x.dtype, x.shape[1:]) for name, x in arrays.items()] for arrays in (a, b))
    return next(kinds) == next(kinds)


def _kinds(arrays: Arrays) -> Iterator[tuple[str, list[Any]]]:
    """Return name, dtype and shape of arrays, as a note has them."""
    for name, x in arrays.items():
        yield name, [x.dtype.str, *x.shape]


def _described(arrays: Mapping[str, Any], size: int) -> Arrays:
    """Return arrays without memory of the dtypes and shapes that a note has; raises if a file could not hold them."""
    found = {}
    for name, (kind, *shape) in arrays.items():
        dtype = np.dtype(kind)
        if dtype.itemsize * math.prod(shape) > size or max(shape) > size:
            raise ValueError(f"{name} of {kind} {shape} is more than the {size} bytes of the file")
        found[name] = np.broadcast_to(np.zeros((), dtype), shape)
    return found


def _checked(arrays: Arrays) -> Arrays:
    """Return arrays in their order, as they are hashed and written; raises ValueError."""
    if not {"samples", "ids"} <= arrays.keys():
        raise ValueError(f"a shard has arrays samples and ids; these are {', '.join(arrays) or 'none'}")
    names = sorted(arrays, key=lambda name: (name != "samples", name != "ids", name))
    count, found = len(arrays["ids"]), {}
    for name in names:
        x = np.asarray(arrays[name])
        if not _NAME.fullmatch(name):
            raise ValueError(f"array name {short(name)} must be 1 to 32 small letters, digits and _, or cond.<name>")
        if x.ndim == 0 or len(x) != count or x.dtype.kind not in "biuf" or x.dtype.itemsize > 8:
            raise ValueError(f"{name} must hold {count} entries of numbers, as ids does; got {x.dtype} {x.shape}")
        found[name] = np.require(x, x.dtype.newbyteorder("<"), ["C", "A"])
    kinds = {"ids": "<i8", "labels": "<i8", "seeds": "<u8", "prior_ids": "<i8"}
    for name in kinds.keys() & found.keys():
        if found[name].dtype != np.dtype(kinds[name]) or found[name].ndim != 1:
            x = found[name]
            raise ValueError(f"{name} must be {np.dtype(kinds[name]).name} [{count}]; got {x.dtype} {x.shape}")
    x = found["samples"]
    if x.dtype.str != "<f4" and (x.dtype != np.uint8 or x.ndim != 4):
        raise ValueError(f"samples must be uint8 [n, H, W, C] or float32 [n, ..]; got {x.dtype} {x.shape}")
    return found
