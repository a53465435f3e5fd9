"""NumPy's own formats as bytes that no version of NumPy or Python changes."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any, BinaryIO

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
