"""IDX files, the format of MNIST and its likes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.data.limits import check_labels, check_packed, fits_memory, regular_file

# The third byte of a file, by the table of LeCun's MNIST page.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PREFIXES = {"train": ("train",), "test": ("t10k", "test")}


def read_idx(path: Path) -> NDArray[Any]:
    """Read an IDX file of any type, gzipped or not, in the byte order of this machine. Source: LeCun's MNIST page.

    No more is unpacked than the header says there is.

    Raises:
        ValueError: not an IDX file, truncated, damaged, or with something after its end.
    """
    stored = regular_file(path).stat().st_size
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\x00\x00" or head[2] not in TYPES or not head[3]:
                raise ValueError(f"{path} is not an IDX file")
            kind, sizes = np.dtype(TYPES[head[2]]), file.read(4 * head[3])
            shape = tuple(int.from_bytes(sizes[k : k + 4], "big") for k in range(0, len(sizes), 4))
            promised = math.prod(shape) * kind.itemsize if len(sizes) == 4 * head[3] else 0
            if path.suffix == ".gz":
                check_packed(path, promised, stored)
            elif promised > stored:
                raise ValueError(f"{path} holds {stored:,} bytes but its header says {shape}: truncated?")
            fits_memory(promised, path, "split the file")
            body = file.read(promised + 1)
    except (OSError, EOFError, zlib.error, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable IDX file: {error}") from None
    whole = len(body) // kind.itemsize
    if len(body) != math.prod(shape) * kind.itemsize or len(shape) != head[3]:
        raise ValueError(f"{path} holds {whole} values but its header says {shape}: truncated, or more than one?")
    return np.frombuffer(body, kind).reshape(shape).astype(kind.newbyteorder("="))


def find(folder: Path, split: str, what: str) -> Path | None:
    """Return the file of a split's "images" or "labels": PREFIX-images-idx3-ubyte, any rank or type, also .gz.

    Names as in MNIST's folder, its copies with a dot (``images.idx3``), and EMNIST's with a name in front.

    Raises:
        ValueError: several of them.
    """
    found = {
        path.name.removesuffix(".gz"): path
        for prefix in PREFIXES[split]
        for mark in "-."
        for path in sorted(folder.glob(f"*{prefix}-{what}{mark}idx[0-9]-*"), reverse=True)
        if not path.name.startswith(".")
    }
    if len(found) > 1:
        raise ValueError(f"{folder} holds several files of {split} {what}: {', '.join(sorted(found))}; keep one set")
    return next(iter(found.values()), None)


def idx_folder(folder: Path, split: str) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Return (images, labels or None) of a split.

    Raises:
        ValueError: no images of that split, or labels that do not fit them.
    """
    images, labels = find(folder, split, "images"), find(folder, split, "labels")
    if images is None:
        names = " or ".join(f"{prefix}-images-idx3-ubyte" for prefix in PREFIXES[split])
        raise ValueError(f"{folder} holds no {names}, plain or .gz")
    x = read_idx(images)
    if x.ndim not in (3, 4) or not x.size:
        raise ValueError(f"{images} holds {x.shape}; images are [N, H, W], or with channels")
    if labels is None:
        return x, None
    y = read_idx(labels)
    if y.shape != (len(x),):
        raise ValueError(f"{folder}: {len(x)} {split} images but {len(y)} labels {y.shape}")
    if y.dtype.kind not in "iu":
        raise ValueError(f"{labels}: labels must be integers, got {y.dtype}")
    check_labels(labels, y)
    return x, y.astype(np.int64)
