"""Entries of an array as files of their own, all of one length: images as PNG, everything else as .npy.

The PNG files are not compressed: their bytes would depend on the version of zlib, and a shard must come out the same
on every machine. Any reader of PNG reads them; a pixel takes a byte a channel.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.output.store.npz import header

Bytes = NDArray[np.uint8]
_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels, PNG's number for grey, grey with alpha, RGB, RGBA
_DATA = 41  # where the data of a PNG file begin, behind signature, IHDR and the name of IDAT
_BLOCK = 65_535  # the longest block of deflate that is not compressed; each has a head of 5 bytes


def suffix(x: NDArray[Any]) -> str:
    """Return the suffix of the files of an array's entries: png for uint8 [n, H, W, 1 to 4 channels], or npy."""
    image = x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] in _COLOUR and min(x.shape[1:]) > 0
    return "png" if image else "npy"


def files(x: NDArray[Any]) -> Bytes:
    """Return the file of each entry of an array [n, *], uint8 [n, length]."""
    image = suffix(x) == "png"
    frame = _png(x.shape[1:]) if image else header(x.dtype, x.shape[1:]) + bytes(_size(x))
    found = np.tile(np.frombuffer(frame, np.uint8), (len(x), 1))
    rows, at = _rows(x), 0
    for start, size in _spans(x):
        found[:, start : start + size] = rows[:, at : at + size]
        at += size
    for file, row in zip(found, rows, strict=True) if image else ():
        file[-20:-16] = np.frombuffer(zlib.adler32(row).to_bytes(4, "big"), np.uint8)
        file[-16:-12] = np.frombuffer(zlib.crc32(file[_DATA - 4 : -16]).to_bytes(4, "big"), np.uint8)
    return found


def values(found: Bytes, like: NDArray[Any]) -> NDArray[Any]:
    """Return the array whose entries have these files, uint8 [n, length]; ``like`` has its dtype and shape.

    What stands in them beside the values is not looked at.
    """
    rows = np.concatenate([found[:, start : start + size] for start, size in _spans(like)], axis=1)
    if suffix(like) == "npy":
        return np.frombuffer(rows.tobytes(), like.dtype).reshape(like.shape)
    n, h, w, c = like.shape
    return rows.reshape(n, h, 1 + w * c)[:, :, 1:].reshape(like.shape)


def length(x: NDArray[Any]) -> int:
    """Return the bytes of the file of an entry."""
    start, size = _spans(x)[-1]
    return start + size + (20 if suffix(x) == "png" else 0)


def _size(x: NDArray[Any]) -> int:
    """Return the bytes of an entry: of an image a byte before each line, that PNG has for a filter."""
    count = x.dtype.itemsize * int(np.prod(x.shape[1:], dtype=np.int64))
    return count + x.shape[1] if suffix(x) == "png" else count


def _rows(x: NDArray[Any]) -> Bytes:
    """Return the bytes of each entry, uint8 [n, size]."""
    if suffix(x) == "npy":
        return np.frombuffer(x.tobytes(), np.uint8).reshape(len(x), _size(x))
    n, h, w, c = x.shape
    lines = np.zeros((n, h, 1 + w * c), np.uint8)
    lines[:, :, 1:] = x.reshape(n, h, w * c)
    return lines.reshape(n, _size(x))


def _spans(x: NDArray[Any]) -> list[tuple[int, int]]:
    """Return where the bytes of an entry lie in its file: start and size of each piece."""
    size = _size(x)
    if suffix(x) == "npy":
        return [(len(header(x.dtype, x.shape[1:])), size)]
    first = _DATA + 2  # behind the head of zlib
    return [(first + 5 * (at // _BLOCK + 1) + at, min(_BLOCK, size - at)) for at in range(0, size, _BLOCK)]


def _png(shape: tuple[int, ...]) -> bytes:
    """Return the PNG file of a black image, without its checksums."""
    h, w, c = shape
    lines = bytes(h * (1 + w * c))
    blocks = [lines[at : at + _BLOCK] for at in range(0, len(lines), _BLOCK)]
    data = b"\x78\x01"
    for k, block in enumerate(blocks):
        data += struct.pack("<BHH", k + 1 == len(blocks), len(block), len(block) ^ 0xFFFF) + block
    about = b"IHDR" + struct.pack(">IIBBBBB", w, h, 8, _COLOUR[c], 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + about + struct.pack(">I", zlib.crc32(about))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return start + struct.pack(">I", len(data) + 4) + b"IDAT" + data + bytes(8) + end
