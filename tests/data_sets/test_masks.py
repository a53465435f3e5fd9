"""Masks and known images of fastscore inpaint; the table of forms is in data/README.md."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import mask_cases
from PIL import Image

from fastscore.data.masks import known_images, read_mask

HOLE = np.zeros((8, 8), bool)
HOLE[2:4, 1:5] = True
ALL = ("L, white all over",)
REFUSED = {
    "L, labels 0, 1 and 2": r"two readings: .* not 0 \(8 pixels\), or what is brighter than half \(0\)",
    "L, 100 and 200": r"two readings: .* not 0 \(64 pixels\), or what is brighter than half \(8\)",
    "RGB, a photograph": "two readings",
    "RGBA, white strokes on nothing": r"transparent \(56 pixels\), or what is white \(8 pixels\)",
    "float32 [8, 8], -1 and 1": "two readings",
    "float32 [8, 8] with NaN": "NaN or Inf",
    "bool [4, 8, 8]": "expected 8 x 8, or 3 of them",
    "bool [8, 9]": "expected 8 x 8, or 3 of them",
}


@pytest.mark.parametrize(("name", "mask"), [pytest.param(*case, id=case[0]) for case in mask_cases()])
def test_a_mask_means_its_hole_or_is_refused_with_both_readings(tmp_path, name, mask):
    path = tmp_path / ("m.npy" if isinstance(mask, np.ndarray) else "m.png")
    np.save(path, mask) if isinstance(mask, np.ndarray) else mask.save(path)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            read_mask(path, (3, 8, 8))
        return
    holes = read_mask(path, (3, 8, 8))
    assert holes.dtype == bool and holes.shape == (3 if "one an image" in name else 1, 8, 8)
    assert all(np.array_equal(hole, np.ones_like(HOLE) if name in ALL else HOLE) for hole in holes)


def test_the_key_of_a_mask(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, mask=HOLE, other=~HOLE)
    assert np.array_equal(read_mask(path, (1, 8, 8))[0], HOLE)
    np.savez(path, hole=HOLE)
    assert np.array_equal(read_mask(path, (1, 8, 8))[0], HOLE)
    np.savez(path, hole=HOLE, other=~HOLE)
    with pytest.raises(ValueError, match="keys hole, other; expected mask"):
        read_mask(path, (1, 8, 8))
    with pytest.raises(ValueError, match="no such file"):
        read_mask(tmp_path / "none.npy", (1, 8, 8))
    np.save(tmp_path / "m.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="expected 8 x 8"):
        read_mask(tmp_path / "m.npy", (1, 8, 8))


def test_an_axis_with_two_meanings_is_refused(tmp_path):
    """[3, 3, 3] for three images of 3 x 3: a mask for each, or one with three channels that are alike."""
    masks = np.zeros((3, 3, 1), bool)
    masks[0, 2] = True
    np.save(tmp_path / "m.npy", masks)  # three images of 3 x 1, and no mask of 3 x 3 is asked for
    assert np.array_equal(read_mask(tmp_path / "m.npy", (3, 3, 1)), masks)
    colours = np.zeros((1, 3, 3, 3), bool)
    colours[:, 0] = True
    np.save(tmp_path / "m.npy", colours)
    with pytest.raises(ValueError, match="three channels that differ"):
        read_mask(tmp_path / "m.npy", (1, 3, 3))
    np.save(tmp_path / "m.npy", np.broadcast_to(np.eye(3, dtype=bool)[:, :, None], (3, 3, 3)))
    with pytest.raises(ValueError, match="one mask of 3 x 3 or one for each of 3 images"):
        read_mask(tmp_path / "m.npy", (3, 3, 3))


def test_known_images_are_of_the_models_colours_and_range(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    grey, clear = known_images(str(tmp_path / "a.png"), (1, 6, 5))
    assert clear is None
    right = colour @ [0.299, 0.587, 0.114]
    assert np.abs(grey.x[0, :, :, 0] - right).max() <= 1.0
    with pytest.raises(ValueError, match=r"images of shape \(3, 5, 6\)"):
        known_images(str(tmp_path / "a.png"), (3, 5, 6))
    image = Image.fromarray(colour)
    image.putalpha(Image.fromarray(np.where(np.arange(30).reshape(6, 5) < 4, 0, 255).astype(np.uint8)))
    image.save(tmp_path / "b.png")
    data, clear = known_images(str(tmp_path / "b.png"), (3, 6, 5))
    assert np.array_equal(data.x[0], colour) and clear.sum() == 4
    Image.fromarray(np.full((6, 5), 1000, np.uint16)).save(tmp_path / "c.png")
    data, _ = known_images(str(tmp_path / "c.png"), (1, 6, 5), (0.0, 4000.0))
    np.testing.assert_allclose(data.network_range(np.arange(1)), -0.5, atol=1e-6)
    np.save(tmp_path / "d.npy", colour)  # one image without the axis N
    assert np.array_equal(known_images(str(tmp_path / "d.npy"), (3, 6, 5))[0].x[0], colour)
