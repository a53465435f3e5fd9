"""Exports: what other people's programs read is what the shards hold, and it is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from fastscore.files import here
from fastscore.output.store import export as module
from fastscore.output.store.export import FILES, FOLDERS, export
from fastscore.output.store.formats import Shard, decode, encode

RNG = np.random.default_rng(0)
COUNT, SIZE = 10, 4
IDS = np.array([5, 6, 7, 100, 101, 999, 1000, 2345, 1_234_567, 3])
IMAGES = {
    "samples": RNG.integers(0, 256, (COUNT, 4, 5, 3), np.uint8),
    "ids": IDS,
    "labels": RNG.integers(0, 9, COUNT),
    "seeds": RNG.integers(0, 2**64, COUNT, np.uint64),
    "cond": RNG.standard_normal((COUNT, 2, 3)),
}
POINTS = {
    "samples": RNG.standard_normal((COUNT, 2)).astype(np.float32),
    "ids": IDS,
    "cond.tokens": RNG.integers(0, 9, (COUNT, 3)),
    "cond.mask": RNG.integers(0, 2, (COUNT, 3)) > 0,
    "cond.strength": RNG.standard_normal(COUNT).astype(np.float16),
}


def shards(arrays=IMAGES, size=SIZE, run="run"):
    for number in range(-(-len(arrays["ids"]) // size)):
        yield Shard(number, run, {name: x[number * size :][:size] for name, x in arrays.items()})


def assert_equal(found, arrays):
    assert set(found) == set(arrays)
    for name, x in arrays.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
        assert (found[name] == x).all(), name


@pytest.mark.parametrize("arrays", [IMAGES, POINTS], ids=["images", "points"])
@pytest.mark.parametrize("size", [1, 4, 5, 64])
def test_one_npz_is_the_arrays_of_the_run(tmp_path, arrays, size):
    export(shards(arrays, size), tmp_path / "all.npz", "npz", COUNT)
    with np.load(tmp_path / "all.npz") as found:
        assert_equal(dict(found), arrays)
    assert os.listdir(tmp_path) == ["all.npz"]


def test_one_npz_is_what_an_npz_shard_is(tmp_path):
    """The bytes are those of one shard of everything, but for its note."""
    export(shards(), tmp_path / "all.npz", "npz", COUNT)
    found, whole = (tmp_path / "all.npz").read_bytes(), encode(Shard(0, "run", IMAGES), "npz")
    assert found[:-2] == whole[: len(found) - 2]  # the last two count the bytes of the note


def test_adm_npz_has_the_names_of_its_evaluator(tmp_path):
    export(shards(), tmp_path / "adm.npz", "adm-npz", COUNT)
    with np.load(tmp_path / "adm.npz") as found:
        names = {"arr_0": "samples", "arr_1": "labels"}
        assert_equal({names.get(name, name): x for name, x in found.items()}, IMAGES)


def test_one_npy_is_the_samples(tmp_path):
    export(shards(), tmp_path / "all.npy", "npy", COUNT)
    assert_equal({"samples": np.load(tmp_path / "all.npy", mmap_mode="r")}, {"samples": IMAGES["samples"]})


def test_parquet_is_a_row_a_sample(tmp_path):
    export(shards(), tmp_path / "all.parquet", "parquet", COUNT)
    file = parquet.ParquetFile(tmp_path / "all.parquet")
    table = file.read()
    assert file.metadata.num_row_groups == 3
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["samples"] == {"_type": "Image"}
    images = [np.array(Image.open(BytesIO(x["bytes"]))) for x in table["samples"].to_pylist()]
    rest = {name: np.array(table[name].to_pylist(), IMAGES[name].dtype) for name in ("ids", "labels", "seeds", "cond")}
    assert_equal({"samples": np.stack(images), **rest}, IMAGES)
    assert [x["path"] for x in table["samples"].to_pylist()][7:9] == ["002345.png", "1234567.png"]
    export(shards(POINTS), tmp_path / "points.parquet", "parquet", COUNT)
    assert_equal(
        {
            "samples": parquet.read_table(tmp_path / "points.parquet")["samples"]
            .combine_chunks()
            .flatten()
            .to_numpy()
            .reshape(COUNT, 2)
        },
        {"samples": POINTS["samples"]},
    )


def test_png_has_the_names_of_edm(tmp_path):
    export(shards(), tmp_path / "png", "png", COUNT)
    names = sorted(path.relative_to(tmp_path / "png").as_posix() for path in (tmp_path / "png").rglob("*.png"))
    assert names == sorted(f"{k // 1000 * 1000:06d}/{k:06d}.png" for k in IDS)
    for k, image in zip(IDS, IMAGES["samples"], strict=True):
        assert (np.array(Image.open(tmp_path / "png" / f"{k // 1000 * 1000:06d}/{k:06d}.png")) == image).all()


def test_tars_are_shards_and_tarfile_and_pillow_read_them(tmp_path):
    export(shards(), tmp_path / "tars", "tar", COUNT)
    assert sorted(os.listdir(tmp_path / "tars")) == ["000000.tar", "000001.tar", "000002.tar"]
    contents = {}
    for k in range(3):
        path = tmp_path / "tars" / f"00000{k}.tar"
        assert decode(path.read_bytes(), "tar").number == k
        with tarfile.open(path) as archive:
            for info in archive:
                assert (info.mtime, info.uid, info.gid, info.uname, info.mode) == (0, 0, 0, "", 0o644)
                contents[info.name] = archive.extractfile(info).read()
    assert len(contents) == 4 * COUNT
    for k, image, label, seed in zip(IDS, IMAGES["samples"], IMAGES["labels"], IMAGES["seeds"], strict=True):
        assert (np.array(Image.open(BytesIO(contents[f"{k:06d}.png"]))) == image).all()
        assert int(contents[f"{k:06d}.cls"]) == label
        assert np.load(BytesIO(contents[f"{k:06d}.seeds.npy"])) == seed


def test_zarr_is_a_chunk_a_shard(tmp_path):
    flags = {**POINTS, "mask": np.arange(COUNT) % 3 == 0, "nothing": np.empty((COUNT, 0))}
    for arrays in (IMAGES, flags):
        out = tmp_path / f"{len(arrays)}.zarr"
        export(shards(arrays), out, "zarr", COUNT)
        assert json.loads((out / ".zattrs").read_text()) == {"run": "run"}
        for name, x in arrays.items():
            about = json.loads((out / name / ".zarray").read_text())
            tail = ".0" * (x.ndim - 1)
            if not x.nbytes:
                assert os.listdir(out / name) == [".zarray"]
                continue
            chunks = [np.frombuffer((out / name / f"{k}{tail}").read_bytes(), about["dtype"]) for k in range(3)]
            found = np.concatenate([chunk.reshape(about["chunks"]) for chunk in chunks])
            assert about["shape"] == list(x.shape)
            assert about["chunks"] == [SIZE, *x.shape[1:]]
            assert (found[:COUNT] == x).all()
            assert not found[COUNT:].any()


@pytest.mark.parametrize("form", [form for form in (*FILES, *FOLDERS) if form != "parquet"])
def test_an_export_is_there_whole_or_not_at_all(tmp_path, form, monkeypatch):
    out = tmp_path / "out"

    def broken():
        yield from list(shards())[:2]
        raise OSError(errno.EIO, "no more")

    def short():
        yield from list(shards())[:2]

    for source, kind, words in ((broken, OSError, "no more"), (short, ValueError, "8 samples of 10")):
        with pytest.raises(kind, match=words):
            export(source(), out, form, COUNT)
        assert os.listdir(tmp_path) == []
    if form in FOLDERS:
        monkeypatch.setattr("fastscore.output.folder.sync_below", lambda path: (_ for _ in ()).throw(OSError("full")))
    else:
        monkeypatch.setattr("fastscore.files.os.fsync", lambda handle: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export(shards(), out, form, COUNT)
    assert os.listdir(tmp_path) == []


def test_nothing_is_replaced_unasked(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")

    def unread():
        raise AssertionError("read before the place was looked at")
        yield

    for form, name in (("npz", "file"), ("npy", "folder"), ("png", "file"), ("tar", "folder"), ("zarr", "link")):
        with pytest.raises(ValueError):
            export(unread(), tmp_path / name, form, COUNT)
        with pytest.raises(ValueError):
            export(unread(), tmp_path / "none" / name, form, COUNT)
    assert (tmp_path / "file").read_text() == "mine" == (tmp_path / "folder" / "mine").read_text()
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "folder", "link"]
    with pytest.raises(ValueError, match="names no new folder"):
        export(unread(), ".", "tar", COUNT)
    export(shards(), tmp_path / "file", "npy", COUNT, overwrite=True)
    assert len(np.load(tmp_path / "file")) == COUNT
    (tmp_path / "folder" / "mine").unlink()
    export(shards(), tmp_path / "folder", "zarr", COUNT)
    assert (tmp_path / "folder" / ".zgroup").exists()


def test_what_comes_meanwhile_is_not_replaced(tmp_path):
    def slow():
        yield from shards()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(ValueError, match="already holds mine"):
        export(slow(), tmp_path / "out", "tar", COUNT)
    assert os.listdir(tmp_path / "out") == ["mine"]
    assert os.listdir(tmp_path) == ["out"]


def test_only_what_dead_processes_left_of_this_folder_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [
        f".other.01234567-0.{dead.pid}@{here()}.tmp",
        f".out.01234567-0.{os.getppid()}@{here()}.tmp",
        f".out.01234567-0.{dead.pid}@elsewhere.tmp",
        ".out.tmp",
    ]
    for name in (*kept, f".out.01234567-0.{dead.pid}@{here()}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("half")
    export(shards(), tmp_path / "out", "tar", COUNT)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "out"])


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_export import COUNT, shards
from fastscore.output.store.export import export
def killed():
    yield from list(shards())[:2]
    os.kill(os.getpid(), signal.SIGKILL)
export(killed(), sys.argv[2], sys.argv[3], COUNT)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npz", "png"])
def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path, form):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(out), form]
    assert subprocess.run(command).returncode == -9
    assert not out.exists()
    assert os.listdir(tmp_path)
    export(shards(), out, form, COUNT)
    assert os.listdir(tmp_path) == ["out"]


def one(**changed):
    return Shard(**{"number": 3, "run": "run", "arrays": {name: x[:2] for name, x in IMAGES.items()}, **changed})


@pytest.mark.parametrize(
    ("given", "form", "count", "words"),
    [
        (lambda: shards(), "zip", COUNT, "form = 'zip' .*must be one of npz, adm-npz, npy, parquet, tar, png, zarr"),
        (lambda: shards(), "npy", 0, "count = 0 must be at least 1"),
        (lambda: [], "npy", 3, "0 samples of 3"),
        (lambda: shards(), "npy", 9, "hold 10 samples, and the run has 9"),
        (lambda: [one(), one()], "npy", 4, "shard 3 comes after shard 3"),
        (lambda: [one(), one(number=4, run="other")], "npy", 4, "shard 4 is of another run"),
        (lambda: [one(), one(number=4, arrays={n: x[:2] for n, x in POINTS.items()})], "npy", 4, "another run"),
        (lambda: [one(), one(number=4)], "png", 4, "an id comes twice"),
        (lambda: shards(POINTS), "adm-npz", COUNT, "adm-npz holds uint8 images"),
        (lambda: shards(POINTS), "png", COUNT, "1 or 3 channels"),
        (lambda: shards({**IMAGES, "samples": IMAGES["samples"][..., :2]}), "png", COUNT, "1 or 3 channels"),
        (lambda: [*list(shards(size=2))[:2], one(number=8)], "zarr", 6, None),
        (
            lambda: [*list(shards(size=2))[:1], one(arrays={n: x[:3] for n, x in IMAGES.items()})],
            "zarr",
            5,
            "not as long",
        ),
        (lambda: [*list(shards())[:1], *list(shards(size=2))[2:]], "zarr", COUNT, "not as long as the others"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, given, form, count, words):
    if words is None:
        export(given(), tmp_path / "out", form, count)
        return
    with pytest.raises(ValueError, match=words):
        export(given(), tmp_path / "out", form, count)
    assert os.listdir(tmp_path) == []


def test_an_address_is_no_path():
    with pytest.raises(ValueError, match="s3://bucket/x is no path"):
        export(shards(), "s3://bucket/x", "tar", COUNT)


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda folder: 800)
    with pytest.raises(OSError, match=r"needs .* of disk .*, 800 bytes free|has 800 bytes free") as caught:
        export(shards(), tmp_path / "out", "npz", COUNT)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []
    export(shards(), tmp_path / "png", "png", COUNT)  # which may take less
    export(shards(), tmp_path / "npy", "npy", COUNT)  # 600 bytes


@pytest.mark.parametrize("form", ["npz", "npy", "zarr", "tar"])
def test_memory_does_not_grow_with_the_run(tmp_path, form):
    def many(n):
        x = np.zeros((16, 32, 32, 3), np.uint8)
        for k in range(n):
            yield Shard(k, "run", {"samples": x, "ids": np.arange(16) + 16 * k})

    def peak(n):
        tracemalloc.start()
        export(many(n), tmp_path / f"{form}-{n}", form, 16 * n)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)
    assert peak(30) < peak(4) + 16 * 32 * 32 * 3  # less than one shard
