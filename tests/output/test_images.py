"""Image files of a shard: what they hold, and when they are on the disk."""

from __future__ import annotations

import ctypes
import errno
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastscore import files
from fastscore.output import pictures
from fastscore.output.images import save_png, small_pngs
from fastscore.output.store.formats import Shard


def images(n: int, *shape: int) -> np.ndarray:
    """Ramps, which compression makes smaller."""
    return np.arange(n * np.prod(shape)).reshape(n, *shape).astype(np.uint8)


def shard(x: np.ndarray) -> Shard:
    return Shard(0, "run", {"samples": x, "ids": np.arange(len(x))})


@pytest.mark.parametrize("shape", [(28, 28, 1), (36, 36, 3), (1, 1, 1), (62, 62, 1)])
def test_small_images_are_not_compressed_and_take_one_block(shape):
    x = images(3, *shape)
    for image, data in zip(x, small_pngs(x), strict=True):
        file = BytesIO(data)
        Image.open(file).verify()  # its checksums
        assert np.array_equal(np.asarray(Image.open(file)).reshape(shape), image)
        assert len(data) <= 4096


@pytest.mark.parametrize("shape", [(37, 36, 3), (63, 63, 1)])
def test_larger_ones_are_compressed(shape, tmp_path):
    assert small_pngs(images(3, *shape)) is None
    pictures.beside(tmp_path, True, False)(shard(images(1, *shape)))
    save_png(file := BytesIO(), images(1, *shape)[0])
    assert (tmp_path / "png" / "000000.png").read_bytes() == file.getvalue()
    assert len(file.getvalue()) < 4096 / 2


@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("subdirs", [False, True])
def test_the_images_of_a_shard_are_on_the_disk_once_it_is_said(n, subdirs, tmp_path, monkeypatch):
    x, synced = images(n, 8, 8, 3), []
    monkeypatch.setattr(pictures, "sync_all", lambda paths: synced.extend((p, p.stat().st_size) for p in paths))
    monkeypatch.setattr("os.fsync", lambda handle: pytest.fail("waited for one"))
    pictures.beside(tmp_path, True, subdirs)(shard(x))
    folder = tmp_path / "png" / ("000000" if subdirs else "")
    assert [path for path, _ in synced] == [folder / f"{k:06d}.png" for k in range(n)]
    for image, (path, size) in zip(x, synced, strict=True):
        assert size == path.stat().st_size and np.array_equal(np.asarray(Image.open(path)), image)
    assert len(list(folder.iterdir())) == n  # and no temporary file


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(a, b):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        pictures.beside(tmp_path, True, False)(shard(images(20, 8, 8, 1)))
    assert list((tmp_path / "png").iterdir()) == []


def library(answer: int | None) -> SimpleNamespace:
    return SimpleNamespace() if answer is None else SimpleNamespace(syncfs=lambda handle: answer)


@pytest.mark.parametrize(
    ("n", "answer", "whole"),
    [(files.FEW, 0, True), (files.FEW - 1, 0, False), (files.FEW, -1, False), (files.FEW, None, False), (0, 0, False)],
)
def test_a_disk_is_asked_once_for_many_files_and_each_where_it_cannot_be(n, answer, whole, tmp_path, monkeypatch):
    """Few, an error of the disk, which that of the file then names, and systems that have no such call."""
    asked, paths = [], [tmp_path / f"{k}" for k in range(n)]
    monkeypatch.setattr(files, "sync", asked.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library(answer))
    files.sync_all(paths)
    assert asked == ([] if whole or not n else [*paths, tmp_path])


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_linux_has_the_call(tmp_path):
    assert files._disk_synced(tmp_path) and not files._disk_synced(tmp_path / "no folder")


def test_what_need_not_last_is_not_waited_for(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("os.fsync", waits.append)
    for durable, count in ((False, 0), (True, 2)):  # the file and its name
        with files.atomic(tmp_path / "a", durable=durable) as file:
            file.write(b"a")
        assert len(waits) == count
