"""Files that promise more than they hold, unpack to more than fits, or are no files: refused at once, in one line."""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import socket
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fastscore.data import limits
from fastscore.data.idx import read_idx
from fastscore.data.load import load


@pytest.fixture(autouse=True)
def at_once():
    """No test waits, and none takes memory: 30 s, 64 MB of arrays, 512 MB of anything."""

    def late(*_):
        raise AssertionError("waited")

    before, peak = signal.signal(signal.SIGALRM, late), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(30)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 19
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def npy(shape, dtype="<f4", body=b"", version=b"\x01\x00", length=None):
    head = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    width = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(head) if length is None else length) + head + body


def npz(path, members, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            with archive.open(f"{name}.npy", "w") as file:
                for part in data if isinstance(data, list) else [data]:
                    file.write(part)


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


LYING = {
    "elements": (
        npy((10**12,), "<f4"),
        r"says it has shape \(1000000000000,\) of float32, 4000000000000 bytes, and holds 0",
    ),
    "huge": (npy((1 << 62, 1 << 62)), "truncated"),
    "negative": (npy((-1, 4)), "Python objects|truncated|not a readable"),
    "nothing of much": (npy((10**12, 0)), "and no values"),
    "no width": (npy((10**12,), "|S0"), "truncated"),
    "header": (npy((1,), version=b"\x02\x00", length=(1 << 32) - 1), "not a readable NumPy file"),
    "version": (npy((1,), version=b"\x09\x00"), "not a readable NumPy file"),
    "objects": (npy((1,), "|O", b"\0" * 8), "Python objects"),
    "trailing": (npy((1,), "<f4", b"\0" * 8), "4 bytes, and holds 8"),
    "code": (b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('true')\n", "not a readable NumPy file"),
    "deep": (b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"(" * 60000, "not a readable NumPy file"),
}


@pytest.mark.parametrize("name", LYING)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_of_numpy_files_that_lie_are_refused(tmp_path, name, packed):
    data, message = LYING[name]
    file = tmp_path / ("x.npz" if packed else "x.npy")
    npz(file, {"x": data}, zipfile.ZIP_DEFLATED) if packed else file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_numpy_files_that_unpack_to_a_thousand_times_themselves_are_refused(tmp_path):
    size = 17 << 24
    npz(tmp_path / "x.npz", {"x": [npy((size,), "|u1"), *[bytes(1 << 24)] * 17]}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "x.npz").stat().st_size < 1_000_000
    with pytest.raises(
        ValueError, match=r"unpacks from \d+,\d+ to 285,212,672 bytes, more than 100 times; .* store it"
    ):
        load(str(tmp_path / "x.npz"))


def test_gzipped_files_that_unpack_to_a_thousand_times_themselves_are_refused(tmp_path):
    file = tmp_path / "train-images-idx3-ubyte.gz"
    head = b"\0\0\x08\x03" + struct.pack(">III", 1 << 20, 32, 32)
    file.write_bytes(gzip.compress(head) + 64 * gzip.compress(bytes(1 << 24), 1))
    with pytest.raises(ValueError, match="more than 100 times"):
        load(str(tmp_path))


def test_a_gzipped_file_is_read_no_further_than_its_header_says(tmp_path):
    file = tmp_path / "x.gz"
    with gzip.open(file, "wb") as packed:
        packed.write(b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(1 << 24))
    with pytest.raises(ValueError, match=r"holds 11 values but its header says .* or more than one"):
        read_idx(file)
    for data in (gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(10))[:-6], b"\x1f\x8bnone", b""):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"not a readable IDX file|not an IDX file"):
            read_idx(file)
    (tmp_path / "x").write_bytes(b"\0\0\x08\x03" + struct.pack(">III", 1 << 31, 1 << 31, 1 << 31))
    with pytest.raises(ValueError, match="holds 16 bytes but its header says"):
        read_idx(tmp_path / "x")


def test_other_arrays_of_a_file_are_not_read(tmp_path):
    npz(
        tmp_path / "x.npz",
        {"samples": npy((2, 2), body=bytes(16)), "states": npy((10**12,)), "labels": npy((2,), "<i8", bytes(16))},
    )
    data = load(str(tmp_path / "x.npz"))
    assert data.x.shape == (2, 2) and data.class_names == ("0",)


@pytest.mark.parametrize(
    ("labels", "worst"),
    [(np.array([0, 10**10]), 10**10), (np.array([0, 2**64 - 1], np.uint64), 2**64 - 1), (np.array([0, -1]), -1)],
)
def test_labels_are_bounded(tmp_path, labels, worst):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 2), np.float32), labels=labels)
    with pytest.raises(
        ValueError, match=rf"x.npz: label {worst} is outside 0 .. 65535; number the classes 0, 1, 2, .."
    ):
        load(str(tmp_path / "x.npz"))


def test_images_are_bounded_by_their_header(tmp_path):
    for k, (width, height) in enumerate(
        [(13_400, 13_400), (65_000, 65_000), (9000, 8000), ((1 << 31) - 1, (1 << 31) - 1)]
    ):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "x.png").write_bytes(png_header(width, height))
        with pytest.raises(
            ValueError, match=rf"x\.png says it has {width} x {height} pixels, above 67,108,864|not a readable image"
        ):
            load(str(tmp_path / str(k)))
    bound = Image.MAX_IMAGE_PIXELS
    assert bound is not None  # Pillow's own is as it was


def test_many_large_images_are_refused_by_the_first(tmp_path, monkeypatch):
    for k in range(3):
        Image.new("L", (1000, 1000)).save(tmp_path / f"{k}.png")
    monkeypatch.setattr(limits, "available_memory", lambda: 5_000_000)
    with pytest.raises(
        ValueError, match=r"3 images, takes 0.0 GB of memory and 0.0 GB are free; scale them down, or split"
    ):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a socket", "a folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    file = tmp_path / "images" / "x.png"
    file.parent.mkdir()
    if kind == "a named pipe":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(file.parent)  # such a path may have 100 characters at most
        socket.socket(socket.AF_UNIX).bind(file.name)
        os.chdir(here)
    else:
        file.mkdir()
    if kind != "a folder":  # which may be called so
        with pytest.raises(ValueError, match=rf"x\.png is {kind} and no file; copy what it holds to a file"):
            load(str(file.parent))
    for read in (read_idx, lambda path: limits.numpy_arrays(path, lambda names: names)):
        with pytest.raises(ValueError, match=f"is {kind} and no file"):
            read(file)


def test_memory_is_what_this_process_may_have(monkeypatch):
    assert 1 << 20 < limits.available_memory() < 1 << 50
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 45, hard))
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    assert limits.available_memory() == 4096
    with pytest.raises(ValueError, match=r"it takes 10.0 GB of memory and 0.0 GB are free; split it"):
        limits.fits_memory(10**10, "it", "split it")


def test_every_truncation_of_a_file_is_refused(tmp_path):
    whole = io.BytesIO()
    np.savez(whole, x=np.zeros((4, 2), np.float32))
    file = tmp_path / "x.npz"
    for size in range(0, len(whole.getvalue()), 3):
        file.write_bytes(whole.getvalue()[:size])
        with pytest.raises(ValueError, match="not a readable NumPy file"):
            load(str(file))
