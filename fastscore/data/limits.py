"""Bounds on files that are read: what a header promises is compared with what is there, before any of it is taken.

Every refusal is a ValueError of one line that names the file, the value, the bound and the remedy.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAX_CLASSES = 65_536
MAX_PIXELS = 1 << 26  # 8192 x 8192
MAX_HEADER = 1 << 16  # bytes that describe one NumPy array
BOMB, RATIO = 1 << 28, 100  # more bytes than this from so many times fewer are no data


def regular_file(path: Path) -> Path:
    """Return a path if an ordinary file is there: a pipe would be waited for, a device read for ever.

    Raises:
        ValueError: there is none, or something else.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {str(error.strerror).lower()}") from None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
        raise ValueError(f"{path} is {kind} and no file; copy what it holds to a file")
    return path


def available_memory() -> int:
    """Return the bytes of memory that can be taken without swapping: what is free, or this process may have."""
    known = [1 << 62]
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        known.append(1024 * int(text.split("MemAvailable:")[1].split()[0]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        known.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        known += [limit] if limit >= 0 else []
    if len(known) == 1:
        with suppress(OSError, ValueError, AttributeError):
            known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(known))


def fits_memory(count: int, what: object, remedy: str) -> None:
    """Raise ValueError if so many bytes do not fit in the memory that is free."""
    free = available_memory()
    if count > free:
        raise ValueError(f"{what} takes {count / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are free; {remedy}")


def check_labels(path: object, labels: NDArray[Any]) -> None:
    """Raise ValueError for class labels that are negative or above any number of classes."""
    if labels.size and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
        worst = labels.max() if labels.min() >= 0 else labels.min()
        raise ValueError(
            f"{path}: label {worst} is outside 0 .. {MAX_CLASSES - 1}; number the classes 0, 1, 2, .. "
            "(np.unique(labels, return_inverse=True)[1])"
        )


@contextmanager
def image_file(path: Path) -> Iterator[Any]:
    """Open an image whose size is bounded, as a Pillow image; nothing of it is decoded yet.

    Raises:
        ValueError: no file, no image, broken, or more than MAX_PIXELS.
    """
    path = regular_file(path)
    try:
        with _open_unbounded(path) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                yield image
                return
    except Exception as error:  # a decoder raises anything: SyntaxError, struct.error, zlib.error
        raise ValueError(f"{path} is not a readable image: {type(error).__name__}, {error}") from None
    raise ValueError(
        f"{path} says it has {width} x {height} pixels, above {MAX_PIXELS:,}, the most that are read; scale it down"
    )


def _open_unbounded(path: Path) -> Any:
    """Open an image by Pillow without its own bound, which warns of what is refused here, or raises elsewise."""
    from PIL import Image

    bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = bound


def numpy_arrays(path: Path, wanted: Callable[[list[str]], Sequence[str]]) -> dict[str, NDArray[Any]]:
    """Read arrays of an .npy or .npz file; other arrays of the file are not touched.

    Args:
        path: the file.
        wanted: says which of the names in the file to read; an .npy has the one name "".

    Raises:
        ValueError: no NumPy file; a header that promises what the file does not hold, or Python objects; or more than
            fits in memory.
    """
    if not path.exists():
        raise ValueError(f"{path} is not a readable NumPy file: no such file")
    with regular_file(path).open("rb") as file:
        try:
            if file.read(4) == b"PK\x03\x04":
                return _members(path, file, wanted)
            size = file.seek(0, os.SEEK_END)
            return {name: _array(path, file, size, size) for name in wanted([""])[:1]}
        except ValueError:
            raise
        except Exception as error:  # readers of such files raise anything
            raise ValueError(f"{path} is not a readable NumPy file: {error}") from None


def _members(path: Path, file: IO[bytes], wanted: Callable[[list[str]], Sequence[str]]) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(file) as archive:
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        arrays = {}
        for name in wanted(list(infos)):
            with archive.open(infos[name]) as member:
                arrays[name] = _array(f"{path}: {name}", member, infos[name].file_size, infos[name].compress_size)
        return arrays


def _array(what: object, file: IO[bytes], size: int, stored: int) -> NDArray[Any]:
    """Read an array of ``size`` bytes with its header, which take ``stored`` bytes on disk."""
    file.seek(0)
    start = file.read(12)
    wide = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(start[8 : 8 + wide], "little")
    if start[:6] != b"\x93NUMPY" or start[6:8] not in (b"\x01\x00", b"\x02\x00") or length > MAX_HEADER:
        raise ValueError(f"{what} is not a readable NumPy file; np.save and np.savez write one")
    file.seek(8)
    read = np.lib.format.read_array_header_1_0 if wide == 2 else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except Exception as error:  # of a header that is no Python: TokenError, RecursionError
        reason = f"{error}".split("\n")[0]
        raise ValueError(f"{what} is not a readable NumPy file: {reason}") from None
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{what} is not a readable NumPy file: it holds Python objects, never read here; save numbers")
    promised, there = math.prod(shape) * dtype.itemsize, size - 8 - wide - length
    if promised != there or (dtype.itemsize == 0 and math.prod(shape)):
        raise ValueError(
            f"{what} says it has shape {shape} of {dtype}, {promised} bytes, and holds {there}: truncated?"
        )
    if not promised and max(shape, default=0) > MAX_HEADER:
        raise ValueError(f"{what} has shape {shape} and no values")
    check_packed(what, promised, stored)
    fits_memory(promised, what, "split the file")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def check_packed(what: object, size: int, stored: int) -> None:
    """Raise ValueError for data that unpack to far more than they could hold."""
    if size > BOMB and size > RATIO * stored:
        raise ValueError(
            f"{what} unpacks from {stored:,} to {size:,} bytes, more than {RATIO} times; if that is meant, store it "
            "without compression"
        )
