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
    path.write_bytes(b"\x00\x00\x0a\x01")
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
    assert (b.shape, b.x.dtype) == ((2,), np.float64)  # as they are, until they have been brought to unit scale


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
    assert np.array_equal(x.flatten(), np.array([0, 127, 128, 255], np.float32) / np.float32(127.5) - np.float32(1.0))
    everything = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    right = everything.reshape(-1).astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    assert np.array_equal(data.Dataset(everything).network_range(np.arange(256)).reshape(-1), right)


def curve(*parts):
    """Mean and covariance of points x(u), y(u), u uniform in 0 .. 1, the parts equally likely; by the midpoint rule."""
    u = (np.arange(200_000) + 0.5) / 200_000
    x = np.concatenate([np.stack(part(u)) for part in parts], 1)
    return x.mean(1), np.cov(x, bias=True)


def gaussians(angles, std):
    means = 2.0 * np.stack([np.cos(angles), np.sin(angles)])
    return means.mean(1), np.cov(means, bias=True) + std**2 * np.eye(2)


def moon(shift, sign):
    return lambda u: (shift[0] + sign * np.cos(np.pi * u), shift[1] + sign * np.sin(np.pi * u))


def ring(radius):
    return lambda u: (radius * np.cos(2 * np.pi * u), radius * np.sin(2 * np.pi * u))


def roll(u):
    t = 1.5 * np.pi * (1 + 2 * u)
    return t * np.cos(t) / 10, t * np.sin(t) / 10


def spiral(sign):
    def points(u):
        a = 3 * np.pi * np.sqrt(u)
        return -sign * a * np.cos(a) / 6, sign * a * np.sin(a) / 6

    return points


NOISE = {"moons": 0.05, "rings": 0.04, "swiss-roll": 0.05, "spirals": 0.05}
MOMENTS = {
    "moons": curve(moon((-0.5, -0.25), 1.0), moon((0.5, 0.25), -1.0)),
    "rings": curve(*map(ring, (0.5, 1.0, 1.5))),
    "checkerboard": (np.zeros(2), np.array([[4 / 3, 1 / 4], [1 / 4, 4 / 3]])),  # squares of even row + column
    "grid": (np.zeros(2), (2 / 3 + 0.08**2) * np.eye(2)),
    "four-gaussians": (np.zeros(2), (4 + 0.5**2) * np.eye(2)),
    "three-gaussians": gaussians(np.radians([90, 210, 330]), 0.5),
    "eight-gaussians": gaussians(np.radians(45.0 * np.arange(8)), 0.2),
    "swiss-roll": curve(roll),
    "spirals": curve(spiral(1.0), spiral(-1.0)),
}


@pytest.mark.parametrize("name", data.TOYS)
def test_toys_have_the_moments_of_their_description(name):
    """Within five standard errors, measured by the spread of the products themselves."""
    n, (mean, covariance) = 50_000, MOMENTS[name]
    x = data.toy(name, n).astype(np.float64)
    assert x.shape == (n, 2)
    covariance = covariance + NOISE.get(name, 0.0) ** 2 * np.eye(2)
    assert (np.abs(x.mean(0) - mean) < 5.0 * np.sqrt(np.diag(covariance) / n)).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert (np.abs(products.mean(0) - covariance) < 5.0 * products.std(0) / np.sqrt(n) + 1e-12).all()


@pytest.mark.parametrize("name", data.TOYS)
def test_toys_are_functions_of_name_size_and_seed(name):
    x = data.toy(name, 50)
    assert np.array_equal(x, data.toy(name.upper().replace("-", "_"), 50))
    assert np.array_equal(x, data.load(name, toy_size=50).x)
    assert np.array_equal(data.toy(name, 50, seed=1), data.load(name, "test", toy_size=50).x)
    assert not np.array_equal(x, data.toy(name, 50, seed=1))
    others = [data.toy(other, 50) for other in data.TOYS if other != name]
    assert not any(np.allclose(x, y) for y in others)


@pytest.mark.parametrize(("name", "modes", "std"), [("four", 4, 0.5), ("three", 3, 0.5), ("eight", 8, 0.2)])
def test_gaussians_have_their_spread_about_the_nearest_mean(name, modes, std):
    """The squared distance has mean 2 std^2; modes lie at least 3.4 std from their borders, which cuts off 0.1 %."""
    n, x = 50_000, data.toy(f"{name}-gaussians", 50_000).astype(np.float64)
    means = {4: [45, 135, 225, 315], 3: [90, 210, 330], 8: range(0, 360, 45)}[modes]
    radius = np.sqrt(8) if modes == 4 else 2.0
    centres = radius * np.stack([np.cos(np.radians(means)), np.sin(np.radians(means))], 1)
    squares = ((x[:, None] - centres) ** 2).sum(2)
    assert abs(squares.min(1).mean() / (2 * std**2) - 1) < 5 / np.sqrt(n) + 0.002
    shares = np.bincount(squares.argmin(1), minlength=modes) / n
    assert np.abs(shares - 1 / modes).max() < 5 * np.sqrt(1 / modes / n)


def test_checkerboard_fills_eight_squares():
    x = data.toy("checkerboard", 8000)
    cells, counts = np.unique(np.floor(x + 2.0).astype(int), axis=0, return_counts=True)
    assert len(cells) == 8 and (cells.sum(1) % 2 == cells[0].sum() % 2).all()
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_fashion_mnist_says_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        data.load("fashion-mnist")
