"""Samples as WebDataset reads them: a tar file with a few members a sample, named by its id."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.output.store.entries import files, length, suffix, values

Arrays = Mapping[str, NDArray[Any]]


def write(file: BytesIO, arrays: Arrays, text: bytes) -> None:
    """Write a tar file, and behind its end a text.

    Of the sample 123 it has ``000123.png``, an image, or ``000123.npy``; ``000123.cls``, the label in digits; and
    ``000123.<name>.npy`` for an entry of any other array.

    Raises:
        ValueError: an id twice, which WebDataset would take for one sample.
    """
    ids = arrays["ids"]
    if len(np.unique(ids)) < len(ids):
        raise ValueError("tar names samples by their ids, and here an id comes twice; take another format")
    columns = []
    for name, x in arrays.items():
        if name == "labels":
            columns.append(("cls", [b"%d" % label for label in x.tolist()]))
        elif name != "ids":
            columns.append((_ending(name, x), files(x)))
    for k, key in enumerate(ids.tolist()):
        for ending, contents in columns:
            _add(file, f"{key:06d}.{ending}", contents[k])
    _fill(file, bytes(2 * tarfile.BLOCKSIZE), tarfile.RECORDSIZE)
    _fill(file, text + b"\n", tarfile.BLOCKSIZE)


def read(data: bytes, described: Arrays) -> Arrays:
    """Return the arrays of a file of ``write``."""
    endings = {"cls" if name == "labels" else _ending(name, x): name for name, x in described.items() if name != "ids"}
    contents: dict[str, list[bytes]] = {name: [] for name in endings.values()}
    keys, at = [], 0
    for k in range(len(described["ids"])):
        for ending, name in endings.items():
            info = tarfile.TarInfo.frombuf(data[at : at + tarfile.BLOCKSIZE], "utf-8", "strict")
            if len(keys) == k:
                keys.append(int(info.name.partition(".")[0]))
            if info.type != tarfile.REGTYPE or info.name != f"{keys[k]:06d}.{ending}":
                raise ValueError(f"{info.name} is no member of sample {k}")
            at += tarfile.BLOCKSIZE
            contents[name].append(data[at : at + info.size])
            at += -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    found: dict[str, NDArray[Any]] = {}
    for name, x in described.items():
        if name == "ids":
            found[name] = np.array(keys, np.int64)
        elif name == "labels":
            found[name] = np.array([int(label) for label in contents[name]], np.int64)
        else:
            rows = np.frombuffer(b"".join(contents[name]), np.uint8)
            found[name] = values(rows.reshape(len(contents[name]), length(x)), x)
    return found


def _ending(name: str, x: NDArray[Any]) -> str:
    """Return what the names of an array's members end with."""
    return suffix(x) if name == "samples" else f"{name}.{suffix(x)}"


def _add(file: BytesIO, name: str, content: Any) -> None:
    """Write a member that is nobody's and as old as time."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    _fill(file, content, tarfile.BLOCKSIZE)


def _fill(file: BytesIO, content: Any, size: int) -> None:
    """Write bytes, and zeros up to a multiple of a size of the whole file."""
    file.write(content)
    file.write(bytes(-file.tell() % size))
