"""Readers that other people use find in every file what was written to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fastscore.output.store.entries import files
from fastscore.output.store.export import export
from fastscore.output.store.formats import Shard, encode

RNG = np.random.default_rng(1)
N = 5
IMAGES = {
    "samples": RNG.integers(0, 256, (N, 6, 5, 3), np.uint8),
    "ids": np.arange(N) + 998,
    "labels": RNG.integers(0, 9, N),
    "cond": RNG.standard_normal((N, 2)).astype(np.float32),
}
POINTS = {"samples": RNG.standard_normal((N, 3)).astype(np.float32), "ids": np.arange(N)}


def shard(arrays=IMAGES):
    return Shard(0, "run", arrays)


def shards(arrays=IMAGES, size=2):
    return [Shard(k, "run", {n: x[k * size :][:size] for n, x in arrays.items()}) for k in range(-(-N // size))]


def test_numpy_reads_npz_and_zipfile_finds_it_whole(tmp_path):
    (tmp_path / "a.npz").write_bytes(encode(shard(), "npz"))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found.files == ["samples", "ids", "cond", "labels"]
        assert all((found[name] == x).all() for name, x in IMAGES.items())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
    (tmp_path / "adm.npz").write_bytes(encode(shard(), "adm-npz"))
    with np.load(tmp_path / "adm.npz") as found:
        assert (found["arr_0"] == IMAGES["samples"]).all()
        assert (found["arr_1"] == IMAGES["labels"]).all()


def test_numpy_reads_npy(tmp_path):
    (tmp_path / "a.npy").write_bytes(encode(shard(POINTS), "npy"))
    for mode in (None, "r"):
        assert (np.load(tmp_path / "a.npy", mmap_mode=mode) == POINTS["samples"]).all()
    with (tmp_path / "a.npy").open("rb") as file:
        assert (np.load(file) == POINTS["samples"]).all()
        assert (np.load(file) == POINTS["ids"]).all()


def test_tarfile_reads_a_tar_as_a_stream_too():
    data = encode(shard(), "tar")
    for mode in ("r:", "r|", "r|*"):
        with tarfile.open(fileobj=BytesIO(data), mode=mode) as archive:  # pyright: ignore
            found = {info.name: archive.extractfile(info).read() for info in archive}
        assert list(found)[:4] == ["000998.png", "000998.cond.npy", "000998.cls", "000999.png"]
        assert (np.array(Image.open(BytesIO(found["001002.png"]))) == IMAGES["samples"][4]).all()


def test_a_tar_ends_with_two_empty_blocks_wherever_its_members_end():
    x = {"samples": np.zeros((10, 4, 5, 3), np.uint8), "ids": np.arange(10)}
    data = encode(shard(x), "tar")
    assert tarfile.TarInfo.frombuf(data[9 * 1024 :][:512], "utf-8", "strict").name == "000009.png"
    assert data[10 * 1024 :][:1024] == bytes(1024)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (150, 150), (1, 65_533), (1, 65_534), (1, 65_535)])
def test_pillow_reads_the_png_files(channels, size):
    """At all lengths of lines and blocks: one byte short of a block of 65,535, exactly one, and more."""
    images = RNG.integers(0, 256, (2, *size, channels), np.uint8)
    for file, image in zip(files(images), images, strict=True):
        opened = Image.open(BytesIO(file.tobytes()))
        opened.verify()  # every checksum
        opened = Image.open(BytesIO(file.tobytes()))
        assert opened.mode == ("L", "LA", "RGB", "RGBA")[channels - 1]
        assert (np.array(opened).reshape(image.shape) == image).all()


def test_programs_of_the_system_read_what_is_written(tmp_path):
    (tmp_path / "a.tar").write_bytes(encode(shard(), "tar"))
    (tmp_path / "a.npz").write_bytes(encode(shard(), "npz"))
    commands = [["tar", "xf", "a.tar"], [sys.executable, "-m", "zipfile", "-t", "a.npz"], ["unzip", "-tq", "a.npz"]]
    for command in commands:
        if shutil.which(command[0]):
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("tar") is None:
        pytest.skip("no tar on the PATH")
    assert (tmp_path / "000998.cls").read_text() == str(IMAGES["labels"][0])


@pytest.mark.slow
@pytest.mark.nightly
def test_webdataset_reads_the_tars(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset: its own reader")
    export(shards(), tmp_path / "out", "tar", N)
    data = webdataset.WebDataset(f"{tmp_path}/out/{{000000..000002}}.tar", shardshuffle=False)
    found = list(data.decode("rgb8").to_tuple("__key__", "png", "cls", "cond.npy"))
    assert [key for key, *_ in found] == [f"{k:06d}" for k in IMAGES["ids"]]
    assert all((image == x).all() for (_, image, *_), x in zip(found, IMAGES["samples"], strict=True))
    assert [label for *_, label, _ in found] == IMAGES["labels"].tolist()
    assert (np.stack([cond for *_, cond in found]) == IMAGES["cond"]).all()
    export(shards(POINTS), tmp_path / "points", "tar", N)
    data = webdataset.WebDataset(f"{tmp_path}/points/{{000000..000002}}.tar", shardshuffle=False).decode()
    assert (np.stack([x["npy"] for x in data]) == POINTS["samples"]).all()


@pytest.mark.slow
@pytest.mark.nightly
def test_zarr_reads_the_group(tmp_path):
    zarr = pytest.importorskip("zarr", reason="pip install zarr: its own reader")
    flags = {**POINTS, "mask": np.arange(N) % 2 == 0, "half": np.arange(N, dtype=np.float16)}
    flags["nothing"] = np.empty((N, 0))
    for k, arrays in enumerate((IMAGES, flags)):
        export(shards(arrays), tmp_path / f"{k}.zarr", "zarr", N)
        group = zarr.open(str(tmp_path / f"{k}.zarr"), mode="r")
        assert sorted(group) == sorted(arrays)
        assert group.attrs["run"] == "run"
        for name, x in arrays.items():
            chunks = tuple(max(1, size) for size in (2, *x.shape[1:]))
            assert (group[name].shape, group[name].dtype, group[name].chunks) == (x.shape, x.dtype, chunks)
            assert (group[name][:] == x).all()


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_libraries_of_tables_read_parquet(tmp_path, name):
    (tmp_path / "a.parquet").write_bytes(encode(shard(POINTS), "parquet"))
    library = pytest.importorskip(name, reason=f"pip install {name}: its own reader")
    table = library.read_parquet(tmp_path / "a.parquet")
    assert list(table.columns) == ["samples", "ids"]
    assert (np.stack([np.asarray(x) for x in table["samples"]]) == POINTS["samples"]).all()


@pytest.mark.slow
@pytest.mark.nightly
def test_datasets_of_hugging_face_have_images(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="pip install datasets: its own reader")
    export(shards(), tmp_path / "a.parquet", "parquet", N)
    files = str(tmp_path / "a.parquet")
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["samples"], datasets.Image)
    assert all((np.array(row["samples"]) == x).all() for row, x in zip(data, IMAGES["samples"], strict=True))
    assert data["labels"][:] == IMAGES["labels"].tolist()
    assert (np.array(data["cond"][:], np.float32) == IMAGES["cond"]).all()
