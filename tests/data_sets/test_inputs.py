"""What goes in and what comes out: the tables of data/README.md, and the right values behind them."""

from __future__ import annotations

import os
import warnings
import zlib

import numpy as np
import pytest
from inputs import CLEAR, GREY, MODES, README, RGB, decoded, page, picture
from PIL import Image

from fastscore.data.arrays import channels_last, in_range
from fastscore.data.images import natural, read_image
from fastscore.data.load import load

GREYS = ("1", "L", "LA", "La", "P grey", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def test_the_readme_shows_what_comes_out():
    assert README.read_text() == page()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_its_colours(tmp_path, mode):
    """Against the picture that it was made of: exact, but for conversions of colour spaces in 8 bits."""
    right = GREY[..., None] if mode in GREYS else RGB
    right = np.where(right > 127, 255, 0) if mode == "1" else right
    slack = {"LAB": 24, "YCbCr": 3, "HSV": 1}.get(mode, 0)  # of 255; pure blue and green leave the 8 bits of LAB
    for kind in MODES[mode].split() or [""]:
        if kind in ("jpeg", "webp"):
            continue
        data = decoded(tmp_path, picture(mode, opaque=True), kind, {})
        x = data.network_range(np.arange(1))[0].transpose(1, 2, 0)
        assert x.dtype == np.float32
        assert np.abs(x - (right / 127.5 - 1.0)).max() <= slack / 127.5 + 1e-5, kind  # 32896 is 128 257, to the digit


def test_sixteen_bits_keep_all_of_them(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (7, 5), np.uint16)
    values[0, 0] = 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    data = load(str(tmp_path))
    assert data.x.dtype == np.uint16 and np.array_equal(data.x[0, :, :, 0], values)
    np.testing.assert_allclose(data.network_range(np.arange(1))[0, 0], values / 32767.5 - 1.0, atol=1e-6)
    assert data.step == pytest.approx(1 / 32767.5)


def test_what_becomes_of_transparency(tmp_path):
    path = tmp_path / "a.png"
    picture("RGBA").save(path)
    with pytest.raises(ValueError, match=r"a\.png is transparent in places: .* --alpha"):
        load(str(path))
    clear = CLEAR[..., None] == 0
    for alpha, ground in (("white", 255), ("black", 0)):
        assert np.array_equal(load(str(path), alpha=alpha).x[0], np.where(clear, ground, RGB))
    kept = load(str(path), alpha="keep")
    assert kept.shape == (4, 2, 3) and np.array_equal(kept.x[0], np.concatenate([RGB, CLEAR[..., None]], 2))
    half = Image.fromarray(np.full((2, 2), 200, np.uint8))
    half.putalpha(51)
    half.save(path)
    assert read_image(path, "white").tolist() == [[[244], [244]], [[244], [244]]]  # 0.2 * 200 + 0.8 * 255
    Image.fromarray(GREY).save(path, transparency=128)  # a grey value that stands for nothing
    with pytest.raises(ValueError, match="transparent in places"):
        load(str(path))


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def test_class_folders_are_in_natural_order_and_hidden_things_are_skipped(tmp_path):
    for name in ("10", "2", "1"):
        for number in (10, 9):
            save(tmp_path / name / f"{number}.png", np.full((2, 3), 20 * int(name) + number))
    save(tmp_path / ".ipynb_checkpoints/9.png", np.zeros((5, 5)))
    save(tmp_path / "__MACOSX/9.png", np.zeros((5, 5)))
    (tmp_path / "2/._9.png").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    data = load(str(tmp_path))
    assert data.class_names == ("1", "2", "10")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.x[:, 0, 0, 0].tolist() == [29, 30, 49, 50, 209, 210]
    assert sorted(["b10", "B2", "a", "b2x"], key=natural) == ["a", "B2", "b2x", "b10"]


def test_folders_of_splits_are_no_classes(tmp_path):
    for split, value in (("train", 10), ("val", 20)):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "0.png", np.full((2, 2), value))
    assert load(str(tmp_path)).class_names == ("cat", "dog")
    assert load(str(tmp_path)).x.max() == 10 and load(str(tmp_path), "test").x.max() == 20
    save(tmp_path / "only/train/0.png", np.full((2, 2), 5))
    with pytest.raises(ValueError, match="none for the split 'test'"):
        load(str(tmp_path / "only"), "test")


def test_links_to_class_folders_are_followed_once(tmp_path):
    save(tmp_path / "far/0.png", np.full((2, 2), 7))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").symlink_to(tmp_path / "far")
    (tmp_path / "set/a/loop").symlink_to(tmp_path / "set")
    data = load(str(tmp_path / "set"))
    assert data.class_names == ("a",) and len(data.x) == 1


def test_grey_files_among_coloured_ones_become_coloured(tmp_path):
    save(tmp_path / "0.png", GREY)
    save(tmp_path / "1.png", RGB)
    assert np.array_equal(load(str(tmp_path)).x, np.stack([GREY[..., None].repeat(3, 2), RGB]))


def test_images_are_upright_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load(str(tmp_path)).x[0, :, :, 0], np.rot90(GREY, -1))


def damaged(folder, name):
    path = folder / name
    if name == "fifo.png":
        os.mkfifo(path)
    elif name == "frames.tif":
        Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(GREY)])
    elif name == "bomb.png":
        save(path, GREY)
        raw = path.read_bytes()
        head = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + raw[24:29]
        path.write_bytes(raw[:12] + head + zlib.crc32(head).to_bytes(4, "big") + raw[33:])
    elif name == "half.png":
        save(path, np.random.default_rng(0).integers(0, 256, (50, 50)))
        path.write_bytes(path.read_bytes()[:1000])
    elif name == "chunk.png":
        save(path, GREY)
        raw = bytearray(path.read_bytes())
        raw[40] ^= 255
        path.write_bytes(raw)
    elif name == "size.png":
        save(path, GREY.T)
    elif name == "type.png":
        Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    else:
        path.write_text("no image")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fifo.png", "is a named pipe"),
        ("frames.tif", "2 frames"),
        ("bomb.png", "20000 x 20000 pixels, above"),
        ("half.png", "not a readable image"),
        ("chunk.png", "not a readable image"),
        ("text.png", "not a readable image"),
        ("size.png", "2 x 3 pixels"),
        ("type.png", "uint16"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path, name, message):
    save(tmp_path / "0.png", GREY)
    damaged(tmp_path, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message) as error:
            load(str(tmp_path))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_an_image_beside_class_folders_is_named(tmp_path):
    save(tmp_path / "a/0.png", GREY)
    save(tmp_path / "beside.png", GREY)
    with pytest.raises(ValueError, match=r"beside\.png lies beside class folders"):
        load(str(tmp_path))


def test_the_readings_of_axes():
    def axes(*shape, **kw):
        return channels_last(np.zeros(shape), "x", **kw).shape[1:]

    assert axes(9, 6, 5, 3) == axes(9, 3, 6, 5) == (6, 5, 3)
    assert axes(9, 6, 5, 12, shape=(12, 6, 5)) == axes(9, 12, 6, 5, shape=(12, 6, 5)) == (6, 5, 12)
    assert axes(9, 7, 7, 12) == axes(9, 12, 7, 7) == (7, 7, 12)
    assert axes(6, 5, shape=(1, 6, 5)) == axes(6, 5, 1, shape=(1, 6, 5)) == axes(1, 6, 5, shape=(1, 6, 5)) == (6, 5, 1)
    assert axes(9, 3, 4, 3, last=True) == (3, 4, 3)
    for shape in ((9, 3, 4, 3), (9, 3, 3, 3), (9, 6, 7, 5)):
        with pytest.raises(ValueError, match=r"\[N, H, W, C\], or .* \[N, C, H, W\]"):
            axes(*shape)
    with pytest.raises(ValueError, match="one image of 40 x 30 and 3 channels, or 40 images of 30 x 3"):
        axes(40, 30, 3)


def test_a_range_that_was_said_holds(tmp_path):
    camera = np.array([0, 2048, 4095], np.uint16).reshape(1, 1, 3, 1)
    x, known = in_range(camera, "x", (0.0, 4095.0))
    assert known == (0.0, 4095.0)
    np.testing.assert_allclose(x.reshape(-1), [-1.0, 2 * 2048 / 4095 - 1, 1.0], atol=1e-6)
    with pytest.raises(ValueError, match=r"0 .. 4095 leave the range 0 .. 1000"):
        in_range(camera, "x", (0.0, 1000.0))
    kelvin = np.linspace(250.0, 320.0, 12).reshape(3, 4, 1, 1)
    with pytest.raises(ValueError, match=r"neither in 0 .. 1 nor in -1 .. 1.*--range"):
        in_range(kelvin, "x")
    assert in_range(kelvin, "x", (250.0, 320.0))[0].min() == -1.0
    for bad in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="finite and rising"):
            load(str(tmp_path), value_range=bad)


def test_a_dark_image_for_a_model_is_no_doubt(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="white at 1"):
        load(str(tmp_path / "a.npy"))
    assert load(str(tmp_path / "a.npy"), shape=(1, 4, 4)).x.max() == 1


def test_kinds_of_three_axes(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 8, 9)))
    assert load(str(tmp_path / "a.npy"), kind="images").shape == (1, 8, 9)
    assert load(str(tmp_path / "a.npy"), kind="sequences").shape == (8, 9)
    assert load(str(tmp_path / "a.npy"), shape=(1, 8, 9)).shape == (1, 8, 9)
    assert load(str(tmp_path / "a.npy"), shape=(8, 9)).shape == (8, 9)


def test_idx_of_every_type_and_labels_that_fit(tmp_path):
    head = bytes([0, 0, 0x0D, 3]) + b"".join(k.to_bytes(4, "big") for k in (2, 4, 4))
    x = np.random.default_rng(0).uniform(0, 1, (2, 4, 4)).astype(np.float32)
    (tmp_path / "emnist-train-images-idx3-float").write_bytes(head + x.astype(">f4").tobytes())
    labels = bytes([0, 0, 0x0C, 1]) + (2).to_bytes(4, "big")
    (tmp_path / "emnist-train-labels-idx1-int").write_bytes(labels + np.array([1, 0], ">i4").tobytes())
    data = load(str(tmp_path))
    np.testing.assert_allclose(data.network_range(np.arange(2))[:, 0], 2 * x - 1, atol=1e-6)
    assert data.labels.tolist() == [1, 0] and data.value_range == (0.0, 1.0)
    (tmp_path / "emnist-train-labels-idx1-int").write_bytes(labels + np.array([-1, 0], ">i4").tobytes())
    with pytest.raises(ValueError, match=r"0 \.\. 65535"):
        load(str(tmp_path))
    (tmp_path / "other-train-images-idx3-float").write_bytes(head + x.astype(">f4").tobytes())
    with pytest.raises(ValueError, match="several files of train images"):
        load(str(tmp_path))


@pytest.mark.parametrize("cut", [4, 10, 30, -1, 1])
def test_a_damaged_gz_is_named(tmp_path, cut):
    import gzip

    raw = bytes([0, 0, 8, 3]) + b"".join(k.to_bytes(4, "big") for k in (2, 4, 4)) + bytes(range(32))
    packed = gzip.compress(raw) if cut != 1 else gzip.compress(raw + b"more")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed[:cut] if cut != 1 else packed)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz"):
        load(str(tmp_path))


def test_every_mode_of_pillow_is_in_the_table():
    assert set(Image.MODES) <= {mode.split()[0] for mode in MODES}
