"""NumPy's own formats as bytes that no version of NumPy or Python changes."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
ADM = {"samples": "arr_0", "labels": "arr_1"}


def header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what stands before the values in an .npy file of version 1.0, 64 bytes or a multiple."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    length = -(-(len(text) + 11) // 64) * 64 - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


def raw(x: NDArray[Any]) -> memoryview:
    """Return the bytes of an array, contiguous, without a copy."""
    return x.data.cast("B") if x.size else memoryview(b"")


def member(name: str, size: int) -> zipfile.ZipInfo:
    """Return the entry of an array in an .npz file, the same whoever writes it and when."""
    info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr, info.file_size = 3, 0o644 << 16, size
    return info


def write(file: BinaryIO, arrays: Arrays, text: bytes) -> None:
    """Write an .npz file with a text as its comment."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in arrays.items():
            start = header(x.dtype, x.shape)
            with archive.open(member(name, len(start) + x.nbytes), "w") as opened:
                opened.write(start)
                opened.write(raw(x))
        archive.comment = text


Entry = Callable[[zipfile.ZipFile, str, np.dtype[Any], tuple[int, ...]], IO[bytes]]


def entry(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> IO[bytes]:
    """Open an array of an .npz file to write its values, its header written: as those of a shard."""
    start = header(dtype, shape)
    opened = archive.open(member(name, len(start) + dtype.itemsize * math.prod(shape)), "w")
    opened.write(start)
    return opened


def numpys_entry(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> IO[bytes]:
    """Open an array in the same way, with the bytes that ``np.savez`` of this NumPy writes."""
    opened = archive.open(f"{name}.npy", "w", force_zip64=True)
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, about)
    return opened


def write_joined(
    file: BinaryIO,
    parts: Iterable[Arrays],
    like: Arrays,
    count: int,
    extra: Mapping[str, Any] | None = None,
    entry: Entry = entry,
) -> None:
    """Write arrays that come in parts as one .npz file; memory does not grow with their number.

    The first array of each part, its samples, is written as it comes; the others wait in files beside it without name.

    Args:
        parts: arrays of the names of ``like``, in its order: two or more, ``count`` entries of each in all.
        like: one of the parts, by the names in the file.
        extra: arrays that stand behind the first two, as ``np.savez`` writes them.
        entry: opens one of the file.
    """
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(file, "w"))
        samples, *others = [(name, x.dtype, (count, *x.shape[1:])) for name, x in like.items()]
        waiting = [stack.enter_context(TemporaryFile(dir=Path(file.name).parent)) for _ in others]
        with entry(archive, *samples) as opened:
            for arrays in parts:
                for x, place in zip(arrays.values(), (opened, *waiting), strict=True):
                    place.write(raw(x))
        for k, (array, place) in enumerate(zip(others, waiting, strict=True)):
            place.seek(0)
            with entry(archive, *array) as opened:
                shutil.copyfileobj(place, opened, 1 << 20)
            for name, x in (extra or {}).items() if k == 0 else ():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as opened:
                    np.lib.format.write_array(opened, np.asanyarray(x), allow_pickle=False)


def mapped(path: Path, name: str) -> NDArray[Any]:
    """Return an array of an .npz file that is not compressed, as it lies there: what is looked at is read."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        file.seek(archive.getinfo(f"{name}.npy").header_offset + 26)
        file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), 1)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, dtype, "r", file.tell(), shape) if math.prod(shape) else np.empty(shape, dtype)


def read(data: bytes, described: Arrays) -> Arrays:
    """Return the arrays of an .npz file that have these names, dtypes and shapes; a copy is made of none."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        if archive.namelist() != [f"{name}.npy" for name in described]:
            raise ValueError(f"it has the members {archive.namelist()}")
        infos = archive.infolist()
    found = {}
    for info, (name, x) in zip(infos, described.items(), strict=True):
        local = info.header_offset
        lengths = np.frombuffer(data, "<u2", 2, local + 26)
        found[name], _ = _array(data, local + 30 + int(lengths.sum()), x)
    return found


def write_adm(file: BytesIO, arrays: Arrays, text: bytes) -> None:
    """Write an .npz file as ADM's evaluator reads it: uint8 images as arr_0, labels as arr_1."""
    if arrays["samples"].dtype != np.uint8:
        raise ValueError(f"adm-npz holds uint8 images, not {arrays['samples'].dtype}; take npz")
    write(file, renamed(arrays), text)


def read_adm(data: bytes, described: Arrays) -> Arrays:
    """Return the arrays of a file of ``write_adm``, by the names that they have in a shard."""
    return dict(zip(described, read(data, renamed(described)).values(), strict=True))


def write_npy(file: BytesIO, arrays: Arrays, text: bytes) -> None:
    """Write .npy files one behind the other, and a text."""
    for x in arrays.values():
        file.write(header(x.dtype, x.shape))
        file.write(raw(x))
    file.write(text + b"\n")


def read_npy(data: bytes, described: Arrays) -> Arrays:
    """Return the arrays of a file of ``write_npy``."""
    found, at = {}, 0
    for name, x in described.items():
        found[name], at = _array(data, at, x)
    return found


def _array(data: bytes, at: int, like: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return an array that lies at a place as .npy, and where it ends; raises ValueError if another one does."""
    start = header(like.dtype, like.shape)
    if data[at : at + len(start)] != start:
        raise ValueError(f"no array {like.dtype} {like.shape} lies at byte {at}")
    at += len(start)
    x = np.frombuffer(data, like.dtype, math.prod(like.shape), at).reshape(like.shape)
    return x, at + like.nbytes


def renamed(arrays: Arrays) -> Arrays:
    """Return arrays by the names that ADM's evaluator has for them; raises ValueError if others have these."""
    found = {ADM.get(name, name): x for name, x in arrays.items()}
    if len(found) < len(arrays):
        raise ValueError(f"adm-npz has its own arrays {', '.join(ADM.values())}; rename those of the shard")
    return found
