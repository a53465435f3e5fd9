from __future__ import annotations

import gzip

import numpy as np
import pytest
from PIL import Image

from fastscore.data import load as data


def write_idx(path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    raw = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_folder(tmp_path, end):
    images = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    write_idx(tmp_path / f"train-images-idx3-ubyte{end}", images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{end}", np.array([1, 0]))
    loaded = data.load(str(tmp_path))
    assert np.array_equal(loaded.x[..., 0], images)
    assert loaded.labels.tolist() == [1, 0]
    assert loaded.shape == (1, 3, 3)
    with pytest.raises(ValueError, match="t10k-images"):
        data.load(str(tmp_path), "test")


def test_truncated_idx_is_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    write_idx(path, np.zeros((4, 2, 2)))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="holds 13 values but its header says"):
        data.load(str(tmp_path))
    path.write_bytes(b"\x00\x00\x0d\x01")
    with pytest.raises(ValueError, match="not an IDX file"):
        data.load(str(tmp_path))


def test_image_folder_with_classes(tmp_path):
    for k, name in enumerate(["b", "a"]):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4, 3), 50 * k, np.uint8)).save(tmp_path / name / "0.png")
    loaded = data.load(str(tmp_path))
    assert loaded.class_names == ("a", "b")
    assert loaded.labels.tolist() == [0, 1]
    assert loaded.x[:, 0, 0, 0].tolist() == [50, 0]
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match="all must agree"):
        data.load(str(tmp_path))


def test_numpy_files(tmp_path):
    images, points = np.zeros((3, 4, 4), np.uint8), np.ones((5, 2))
    np.savez(tmp_path / "a.npz", samples=images, labels=np.array([0, 2, 1]))
    np.save(tmp_path / "b.npy", points)
    a, b = data.load(str(tmp_path / "a.npz")), data.load(str(tmp_path / "b.npy"))
    assert a.x.shape == (3, 4, 4, 1)
    assert a.class_names == ("0", "1", "2")
    assert (b.shape, b.x.dtype) == ((2,), np.float32)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)).astype(int), "neither uint8 images"),
        (np.full((3, 2), np.nan), "not finite"),
        (np.zeros((0, 2)), "empty"),
        (np.array([{"a": 1}], dtype=object), "not a readable NumPy file"),
    ],
)
def test_bad_numpy_files_are_named(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path / "x.npy"))


def test_a_damaged_npz_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", samples=np.zeros((3, 4, 4), np.uint8))
    raw = (tmp_path / "x.npz").read_bytes()
    for damaged in (raw[:-30], raw[:100], b"PK" + raw[200:]):
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable NumPy file"):
            data.load(str(tmp_path / "x.npz"))


def test_network_range_is_edms():
    images = np.array([0, 127, 128, 255], np.uint8).reshape(4, 1, 1, 1)
    x = data.Dataset(images).network_range(np.arange(4))
    np.testing.assert_allclose(x.flatten(), np.array([0, 127, 128, 255]) / 127.5 - 1.0, atol=1e-7)


@pytest.mark.parametrize("name", data.TOYS)
def test_toys(name):
    x = data.toy(name, 2000)
    assert x.shape == (2000, 2)
    assert np.abs(x).max() < 3
    assert np.abs(x.mean(0)).max() < 0.1
    assert np.array_equal(x, data.toy(name, 2000))
    assert not np.array_equal(x, data.toy(name, 2000, seed=1))


def test_fashion_mnist_says_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        data.load("fashion-mnist")
