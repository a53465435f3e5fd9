"""fastscore inpaint and the guidance of fastscore sample, as a user meets them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two pictures that resemble clothes as little as they need to, with labels."""
    folder = tmp_path_factory.mktemp("images")
    x = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), np.uint8)
    np.savez(folder / "two.npz", samples=x, labels=np.array([3, 8]))
    Image.fromarray(x[0, :, :, 0]).save(folder / "one.png")
    mask = np.zeros((28, 28), np.uint8)
    mask[4:9, 10:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    np.save(folder / "mask.npy", mask[None] > 0)
    return folder, x


QUICK = "--batch 4 --steps 2 --network own --quiet"


@pytest.mark.thirds
@pytest.mark.parametrize("method", ["repaint --jump 1 --resample 2", "replace", "pigdm"])
def test_known_pixels_come_back_and_the_others_are_new(run, tmp_path, images, method):
    folder, x = images
    argv = f"inpaint fashion {folder / 'two.npz'} --mask {folder / 'mask.png'} -n 2 --method {method} {QUICK}"
    code, _, error = run(*argv.split(), "--out", str(tmp_path))
    assert (code, error) == (0, "")
    with np.load(tmp_path / "samples.npz") as saved:
        results, image, labels, ids = (saved[k] for k in ("samples", "image", "labels", "ids"))
        unknown = saved["mask"][0, :, :, 0]
        assert np.array_equal(saved["originals"], x)
    assert (results.dtype, results.shape) == (np.uint8, (4, 28, 28, 1))
    assert (image.tolist(), labels.tolist(), ids.tolist()) == ([0, 0, 1, 1], [3, 3, 8, 8], [0, 1, 2, 3])
    assert np.array_equal(results[:, ~unknown], x[image][:, ~unknown])
    assert (results[:, unknown] != x[image][:, unknown]).mean() > 0.9
    assert not np.array_equal(results[0, unknown], results[1, unknown])
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["settings"]["method"] == method.split()[0]
    assert ("RePaint" in report["solver"]) == method.startswith("repaint")
    with Image.open(tmp_path / "grid.png") as sheet:  # a line an image: original, masked, two results
        assert sheet.size == (4 * 58 + 2, 2 * 58 + 2)


def test_every_image_may_have_a_mask_of_its_own_also_with_pigdm(run, tmp_path, images):
    folder, x = images
    masks = np.zeros((2, 28, 28), bool)
    masks[0, 3:9, 4:], masks[1, 12:20, :9] = True, True
    np.save(folder / "masks.npy", masks)
    base = f"inpaint fashion {folder / 'two.npz'} -n 3 --method pigdm {QUICK}"  # micro-batches of 4 hold both images
    assert run(*base.split(), "--mask", str(folder / "masks.npy"), "--out", str(tmp_path))[0] == 0
    with np.load(tmp_path / "samples.npz") as saved:
        results, image = saved["samples"], saved["image"]
    known = ~masks[image][..., None]
    assert np.array_equal(results[known], x[image][known])
    assert (results[~known] != x[image][~known]).mean() > 0.9


def test_an_image_file_a_box_and_a_class(run, tmp_path, images):
    folder, _ = images
    base = f"inpaint fashion {folder / 'one.png'} --box 4,10,5,18 -n 1 --method replace {QUICK}".split()
    assert run(*base, "--class", "3", "--guidance", "2", "--out", str(tmp_path / "a"))[0] == 0
    with np.load(tmp_path / "a/samples.npz") as saved:
        assert saved["labels"].tolist() == [3]
        assert saved["mask"].sum() == 90
        guided = saved["samples"]
    argv = f"inpaint fashion {folder / 'two.npz'} --limit 1 --mask {folder / 'mask.npy'} -n 1 --method replace {QUICK}"
    assert run(*argv.split(), "--out", str(tmp_path / "b"))[0] == 0
    with np.load(tmp_path / "b/samples.npz") as saved:  # the same image, mask and class, unguided
        assert saved["labels"].tolist() == [3]
        plain = saved["samples"]
    assert np.array_equal(guided[:, 12:], plain[:, 12:])
    assert not np.array_equal(guided[:, 4:9, 10:], plain[:, 4:9, 10:])


def test_masks_and_pictures_as_people_have_them(run, tmp_path, images):
    """A picture with a hole in it and no other mask, a mask of 0 and 1, one more axis: the same 144 pixels."""
    folder, x = images
    hole = np.zeros((28, 28), bool)
    hole[5:17, 9:21] = True
    picture = Image.fromarray(x[0, :, :, 0])
    picture.putalpha(Image.fromarray(np.where(hole, 0, 255).astype(np.uint8)))
    picture.save(tmp_path / "holed.png")
    picture.convert("RGBA").save(tmp_path / "colour.png")
    Image.fromarray(hole.astype(np.uint8)).save(tmp_path / "01.png")
    np.save(tmp_path / "axes.npy", hole[:, :, None])
    np.save(tmp_path / "each.npy", np.stack([hole] * 2)[:, None])
    results = []
    for image, mask in (
        ("holed.png", "holed.png"),
        ("colour.png", "colour.png"),
        (folder / "one.png", "01.png"),
        (folder / "one.png", "axes.npy"),
        (folder / "two.npz", "each.npy"),
    ):
        out = tmp_path / f"out{len(results)}"
        argv = f"--mask {tmp_path / mask} -n 1 --method replace --unconditional --limit 2 {QUICK}".split()
        assert run("inpaint", "fashion", tmp_path / image, *argv, "--out", out)[0] == 0
        with np.load(out / "samples.npz") as saved:
            assert (saved["mask"].sum((1, 2, 3)) == 144).all()
            results.append(saved["samples"][0])
            assert np.array_equal(results[-1][~hole], x[0][~hole])
    assert all(np.array_equal(result, results[0]) for result in results)
    argv = f"--box 0,0,2,2 {QUICK} --out {tmp_path / 'o'}".split()
    code, _, error = run("inpaint", "fashion", tmp_path / "holed.png", *argv)
    assert code == 2 and "transparent in 144 pixels that the mask leaves" in error


def test_a_picture_of_sixteen_bits_is_not_clipped(run, tmp_path):
    values = (np.arange(784).reshape(28, 28) * 83).astype(np.uint16)  # 0 .. 64,989
    Image.fromarray(values).save(tmp_path / "a.png")
    argv = f"--box 0,0,1,28 -n 1 --method replace --unconditional {QUICK}".split()
    assert run("inpaint", "fashion", tmp_path / "a.png", *argv, "--out", tmp_path / "o")[0] == 0
    with np.load(tmp_path / "o/samples.npz") as saved:
        assert np.array_equal(saved["samples"][0, 1:, :, 0], np.floor(values[1:] / 257 + 0.5))
        assert np.array_equal(saved["originals"][0, :, :, 0], values)


def test_guided_samples(run, tmp_path):
    base = "sample fashion -n 2 --class 3 --batch 2 --steps 2 --network own --quiet".split()
    found = {}
    for name, argv in {
        "plain": [],
        "one": ["--guidance", "1"],
        "two": ["--guidance", "2"],
        "part": ["--guidance", "2", "--guidance-interval", "0.5,90"],
        "auto": ["--guidance", "2", "--guidance-model", "fashion"],
        "rule": ["--guidance", "2", "--guidance-rule", "cfg++"],
        "together": ["--guidance", "2", "--guided", "batched"],
    }.items():
        assert run(*base, *argv, "--out", str(tmp_path / name))[0] == 0, name
        with np.load(tmp_path / name / "samples.npz") as saved:
            found[name] = saved["samples"].astype(int)
    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in found}
    evaluations = {name: record["nfe"] for name, record in records.items()}
    assert evaluations == {"plain": 2, "one": 2, "two": 4, "part": 3, "auto": 4, "rule": 4, "together": 4}
    assert (records["two"]["guided"], records["together"]["guided"]) == ("serial", "batched")
    assert np.abs(found["two"] - found["together"]).max() <= 1  # of another number of lines
    assert np.array_equal(found["one"], found["plain"])
    assert np.abs(found["auto"] - found["plain"]).max() <= 1  # led away from itself
    assert np.abs(found["two"] - found["plain"]).mean() > 1
    assert not np.array_equal(found["two"], found["part"]) and not np.array_equal(found["two"], found["rule"])


BAD = {
    "no mask": ("inpaint fashion {two}", "either --mask FILE or --box"),
    "both": ("inpaint fashion {two} --box 1,1,2,2 --mask {mask}", "either --mask FILE or --box"),
    "box": ("inpaint fashion {two} --box 1,2,x,4", "TOP,LEFT,HEIGHT,WIDTH"),
    "box outside": ("inpaint fashion {two} --box 20,20,9,2", "leaves the images, which are 28 x 28"),
    "empty": ("inpaint fashion {two} --box 0,0,0,0", "nothing to fill in"),
    "no mask file": ("inpaint fashion {two} --mask nothing.png", "no such file"),
    "mask is text": ("inpaint fashion {two} --mask {text}", "not a readable image"),
    "images": ("inpaint fashion nothing --box 1,1,2,2", "neither a known set"),
    "image is text": ("inpaint fashion {text} --box 1,1,2,2", "not a readable image"),
    "points": ("inpaint analytic:moons {two} --box 1,1,2,2", "grey and RGB images"),
    "size": ("inpaint fashion {small} --box 1,1,2,2", "this model has images of shape (1, 28, 28)"),
    "mask size": ("inpaint fashion {two} --mask {small}", "expected 28 x 28"),
    "unused": ("inpaint fashion {two} --box 1,1,2,2 --noise 0.1", "--noise belongs to --method pigdm"),
    "no class": ("inpaint fashion {one} --box 1,1,2,2 --guidance 2", "give --class"),
    "class": ("inpaint fashion {two} --box 1,1,2,2 --class 11", "must lie in 0 .. 9"),
    "adaptive": ("inpaint fashion {two} --box 1,1,2,2 --method repaint --solver dopri5", "chooses its own steps"),
    "pigdm": ("inpaint fashion {two} --box 1,1,2,2 --method pigdm --network bf16", "--network bf16 rules out; use own"),
    "model": ("inpaint nothing {two} --box 1,1,2,2", "bundled model"),
    "guidance": ("sample analytic:gaussian --guidance 2", "no null condition"),
    "away from itself": ("sample fashion --unconditional --guidance 2", "leave one out"),
    "rule": ("sample fashion --guidance-rule cfg++", "need --guidance"),
    "no weight": ("sample fashion --guidance-interval 1,2", "need --guidance"),
    "interval": ("sample fashion --guidance 2 --guidance-interval 2,1", "0 <= LO < HI"),
    "weight": ("sample fashion --guidance nan", "finite"),
}


@pytest.mark.thirds
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_exit_code_2(run, tmp_path, images, name):
    folder, _ = images
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (5, 5), 255).save(tmp_path / "small.png")
    line, message = BAD[name]
    files = {"two": folder / "two.npz", "one": folder / "one.png", "mask": folder / "mask.png"}
    argv = line.format(**files, text=tmp_path / "text.png", small=tmp_path / "small.png").split()
    code, _, error = run(*argv, "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) <= 5
    assert not (tmp_path / "out").exists()
