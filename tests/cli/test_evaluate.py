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


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A run of points, the same in shards, and files of points."""
    from fastscore.cli import group

    folder = tmp_path_factory.mktemp("points")
    words = ["sample", "analytic:mixture", "-n", "64", "--steps", "5", "--quiet", "--network", "own"]
    for more in (["--out", str(folder / "run")], ["--shards", "--shard-size", "30", "--out", str(folder / "shards")]):
        group.main([*words, *more], standalone_mode=False, obj=[*words, *more])
    rng = np.random.default_rng(0)
    for name, n in (("a", 50), ("b", 80)):
        np.save(folder / f"{name}.npy", rng.normal(size=(n, 3)).astype(np.float32))
    return folder


def test_a_run_of_points_against_its_own_target(run, points):
    outputs = []
    for name in ("run", "shards"):
        code, out, error = run("evaluate", points / name, "--figures", "mean,log-likelihood")
        assert (code, error) == (0, "")
        head, _, titles, *lines = out.splitlines()
        assert head == f"{points / name}, 64 samples against analytic:mixture, 10000 exact samples"
        assert titles.split() == ["figure", "value", "floor", "standard", "error", "p", "verdict"]
        assert [line.split()[0] for line in lines[:3]] == ["mean-worst", "mean-rms", "log-likelihood"] and not lines[3]
        record = json.loads((points / name / "quality.json").read_text())
        assert list(record) == ["mean-worst", "mean-rms", "log-likelihood", "overall"]
        assert record["overall"].pop("run")
        assert all(list(f) == ["value", "floor", "stderr", "p", "verdict"] for f in record.values())
        assert record["log-likelihood"]["verdict"].startswith("differs: ")  # five steps are too few
        outputs.append(record)
    assert outputs[0] == outputs[1]
    assert run("evaluate", points / "run", "--figures", "mean", "--quiet") == (0, "", "")


def test_figures_of_samples_that_are_no_longer_there_are_not_shown(run, tmp_path):
    words = ["sample", "analytic:mixture", "-n", "8", "--steps", "3", "--network", "own", "--quiet", "--out"]
    for seed in (1, 2):
        assert run(*words, tmp_path / "a", "--seed", seed, *["--fresh"] * (seed > 1))[0] == 0
        if seed == 1:
            assert run("evaluate", tmp_path / "a", "--figures", "mean", "--quiet")[0] == 0
        assert run("report", tmp_path / "a")[0] == 0
        page = (tmp_path / "a" / "report.html").read_text()
        assert ("mean-worst" in page, "of other samples than these" in page) == (seed == 1, seed == 2)
    code, _, error = run("plot", "quality", tmp_path / "a", "--out", tmp_path / "a.png")
    assert code == 2 and "of other samples than these" in error and not (tmp_path / "a.png").exists()


def test_files_of_points(run, points, tmp_path):
    out = tmp_path / "q.json"
    words = ["evaluate", points / "a.npy", "--against", points / "b.npy", "--figures", "energy,mean", "--out", out]
    code, said, error = run(*words, "--json", "--limit", "30")
    report = json.loads(said)
    assert (code, error) == (0, "") and report["figures"] == json.loads(out.read_text())
    assert report["reference"].endswith("b.npy, 80 rows") and report["samples"] == 30
    assert any("one half of the reference against the other (40 and 40 rows)" in c for c in report["caveats"])
    assert report["figures"]["energy"]["floor"] > 0.0
    assert run(*words)[0] == 2 and "already there" in run(*words)[2]
    code, said, _ = run(*words, "--overwrite", "--no-floor")
    assert code == 0 and json.loads(out.read_text())["energy"]["floor"] is None
    assert not (points / "quality.json").exists()


def test_what_cannot_be_compared(run, points, sets, tmp_path):
    a, b = str(points / "a.npy"), str(points / "b.npy")
    np.save(tmp_path / "one.npy", np.zeros((1, 3), np.float32))
    np.savez(tmp_path / "grey.npz", samples=np.load(sets / "data.npz")["samples"][:, :20])
    for words, word in (
        ([a], "say what they should be like"),
        ([a, "--against", "moons"], "examples of shape (3,), moons of (2,)"),
        ([a, "--against", str(sets / "data.npz")], "of their own kind"),
        ([a, "--against", "analytic:nothing"], "must be one of gaussian"),
        ([a, "--against", b, "--data", b], "two words for one option"),
        ([a, "--against", b, "--figures", "mode"], "'mode' must be one of"),
        ([a, "--against", b, "--figures", ""], "--figures"),
        ([a, "--against", b, "--bits-dim", "4"], "needs a run's folder"),
        ([a, "--against", b, "--fid-weights", a], "images of 8 bits"),
        ([a, "--against", b, "--level", "0.7"], "at most 0.5"),
        ([str(tmp_path / "one.npy"), "--against", b], "at least two"),
        ([a, "--against", str(tmp_path / "one.npy")], "at least two"),
        ([str(sets / "samples.npz"), "--against", str(tmp_path / "grey.npz")], "images of shape (28, 28, 1)"),
        ([str(sets / "samples.npz"), "--against", str(sets / "data.npz"), "--fid-weights", a], "not what torch.save"),
    ):
        code, _, error = run("evaluate", *words)
        assert code == 2 and word in error, (words, error)
