"""fastscore evaluate: distances beside floors that are of different images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Noise of two kinds, sorted by brightness, as an .npz file and as a folder; samples like it."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:
        x = rng.integers(0, 256, (n, 28, 28, 1))
        return np.concatenate([x[: n // 2] // 4, x[n // 2 :]]).astype(np.uint8)

    data = draw(120)
    np.savez(folder / "data.npz", samples=data)
    np.savez(folder / "samples.npz", samples=draw(60))
    np.savez(folder / "two.npz", samples=data[[0, 60]])
    (folder / "png").mkdir()
    for k, x in enumerate(data):
        Image.fromarray(x[:, :, 0]).save(folder / f"png/{k:03}.png")
    return folder


@pytest.mark.parametrize("data", ["data.npz", "png"])
def test_the_floor_of_one_set_is_of_two_disjoint_halves(run, sets, data):
    code, out, error = run("evaluate", str(sets / "samples.npz"), "--data", str(sets / data))
    assert (code, error) == (0, "")
    report = json.loads(out)
    floor = report["floor (60 against 60 others)"]
    assert floor > 0.01  # of a set against itself it is 0
    # Both halves have both kinds: a cut of the sorted set in the middle would be far above the samples' own distance.
    assert floor < 2.0 * report["classifier-FID"] + 1.0
    halves = np.load(sets / "data.npz")["samples"]
    np.savez(sets / "dark.npz", samples=halves[:60])
    np.savez(sets / "light.npz", samples=halves[60:])
    sorted_halves = json.loads(run("evaluate", str(sets / "dark.npz"), "--data", str(sets / "light.npz"))[1])
    assert floor < 0.2 * sorted_halves["classifier-FID"]


def test_two_images_have_no_floor_and_samples_are_not_their_own_data(run, sets):
    code, out, _ = run("evaluate", str(sets / "samples.npz"), "--data", str(sets / "two.npz"))
    assert code == 0 and json.loads(out)["floor"].startswith("none: ")
    for limit in ([], ["--limit", "7"]):
        code, _, error = run("evaluate", str(sets / "data.npz"), "--data", str(sets / "png"), *limit)
        assert code == 2 and "hold the same images" in error
