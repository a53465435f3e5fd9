"""fastscore plot: each command writes its picture, says what is wrong in one line, and needs matplotlib alone."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastscore.cli.plot import plot
from fastscore.cli.plot.common import samples_of
from fastscore.report.plots import figures

DOCS = Path(__file__).parents[2] / "fastscore/docs"
RNG = np.random.default_rng(0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order, in place of their pixels."""
    kept = []

    def save(figure, file, suffix):
        kept.append(figure)
        file.write(b"picture")

    monkeypatch.setattr(figures, "save", save)
    return kept


def written(folder, **arrays):
    folder.mkdir()
    np.savez(folder / "trajectory.npz", **arrays)
    return folder


def test_pictures_without_samples(run, tmp_path, drawn):
    out = tmp_path / "a.png"
    assert run("plot", "schedule", "vp", "EDM", "vp", "--sigma-max", "10", "--out", out) == (0, f"{out}\n", "")
    assert [line.get_label() for line in drawn[0].axes[0].get_lines()] == ["vp", "edm"]
    assert "edm: t 0 .. 10" in drawn[0].get_suptitle() and out.read_bytes() == b"picture"
    code, _, error = run("plot", "schedule", "vp", "--out", out)
    assert code == 2 and "already there" in error
    assert run("plot", "schedule", "vp", "--out", out, "--overwrite")[0] == 0
    assert run("plot", "plan", "--solver", "heun", "--steps", "3", "--out", tmp_path / "b.svg")[0] == 0
    assert "5 network evaluations" in drawn[2].get_suptitle()
    code, _, _ = run("plot", "forward", "--data", "moons", "-n", "50", "--times", "0,0.5", "--out", tmp_path / "c.pdf")
    assert code == 0 and len(drawn[3].axes) == 2
    assert len(drawn[3].axes[0].collections[0].get_offsets()) == 50
    words = ("--data", "analytic:mixture", "-n", "9", "--schedule", "ve", "--out", tmp_path / "d.png")
    assert run("plot", "forward", *words)[0] == 0
    assert [a.get_title().split(" ")[-1] for a in drawn[4].axes] == ["0", "0.408", "0.98", "2.32", "50"]


def test_trajectories_of_points_and_images(run, tmp_path, drawn):
    t = np.linspace(1, 0, 21)
    points = written(tmp_path / "points", times=t, states=RNG.standard_normal((21, 9, 2)))
    assert run("plot", "trajectory", points, "--out", tmp_path / "a.png")[0] == 0
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert len(titles) == 10 and titles[0] == "t = 1" and titles[-1] == "t = 0"
    run("plot", "trajectory", points, "--out", tmp_path / "b.png", "--steps", "0,-2")
    assert [axis.get_title() for axis in drawn[1].axes] == ["t = 1", "t = 0.05"]
    run("plot", "trajectory", points / "trajectory.npz", "--paths", "--out", tmp_path / "c.png")
    assert len(drawn[2].axes[0].get_lines()) == 9 and len(drawn[2].axes[0].get_lines()[0].get_xdata()) == 21
    states = RNG.uniform(-1, 1, (21, 3, 1, 4, 4)).astype(np.float32)
    images = written(tmp_path / "images", times=t, states=states, x0=states[:20])
    gif, apng = tmp_path / "m.gif", tmp_path / "m.png"
    code, out, error = run(
        "plot", "trajectory", images, "--steps", "::5", "--out", tmp_path / "d.png", "--gif", gif, "--apng", apng
    )
    assert (code, error) == (0, "") and out.split() == [str(tmp_path / "d.png"), str(gif), str(apng)]
    assert len(drawn[3].axes) == 4 * 5 and len(drawn[3].axes[9].images) == 0  # no estimate at the last state
    assert Image.open(gif).n_frames == Image.open(apng).n_frames == 5
    run(
        "plot",
        "trajectory",
        written(tmp_path / "line", times=t, states=states[:, :, 0, 0, :1]),
        "--out",
        tmp_path / "e.png",
    )
    assert [axis.get_ylabel() for axis in drawn[4].axes] == ["x_t", ""]


def test_measurements(run, tmp_path, drawn):
    records = tmp_path / "records.jsonl"
    cells = [("heun", 10, 10, 0.5), ("heun", 10, 9, 0.2), ("heun", 20, 20, 0.1), ("em", 10, None, None)]
    lines = [json.dumps({"target": "x", "solver": s, "budget": b, "nfe": n, "error": e}) for s, b, n, e in cells]
    records.write_text("\n".join([*lines, ""]))
    assert run("plot", "work-precision", records, "--out", tmp_path / "a.png")[0] == 0
    assert np.array_equal(drawn[0].axes[0].get_lines()[0].get_data(), [[9, 20], [0.2, 0.1]])
    (tmp_path / "quality.json").write_text('{"W2": {"value": 3, "floor": 2, "stderr": null}, "date": "today"}')
    assert run("plot", "quality", tmp_path, "--out", tmp_path / "b.png")[0] == 0
    assert [bar.get_x() + bar.get_width() for bar in drawn[1].axes[0].patches] == [1.5]
    (tmp_path / "loss.csv").write_text("images,loss\n64,1.0\n128,0.5\n")
    assert run("plot", "loss", tmp_path, "--out", tmp_path / "c.png")[0] == 0
    assert np.array_equal(drawn[2].axes[0].get_lines()[0].get_data(), [[64, 128], [1.0, 0.5]])


WRONG = (
    (("schedule", "vpp"), "must be one of"),
    (("schedule", "vp", "--base", "3"), "--base belongs to tutorial"),
    (("plan", "--solver", "dopri5"), "no table to print"),
    (("forward", "--data", "moons", "--times", "2"), "must lie in 0 .. 1"),
    (("forward", "--data", "moons", "--times", "0,nan"), "is not 1 to 20 numbers"),
    (("density", "--target", "moons"), "must be analytic:NAME"),
    (("density", "--target", "analytic:moons", "--solver", "dopri5"), "name one with steps"),
    (("compare", "nowhere"), "no folder of a run"),
    (("trajectory", "nowhere"), "fastscore sample .. --trajectory"),
    (("langevin", "nowhere"), "no such file"),
    (("loss", "nowhere"), "is no loss.csv"),
    (("work-precision", "nowhere"), "no such file"),
    (("work-precision", "bad"), "bad, line 1"),
    (("quality", "bad"), "is not JSON"),
    (("quality", "empty"), "holds no figures"),
    (("quality", "odd"), "W2 has no numbers"),
    (("loss", "bad"), "is no loss.csv"),
    (("trajectory", "bad"), "holds no times"),
)


def test_what_is_wrong_is_said_in_one_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad").write_text("{")
    Path("empty").write_text("{}")
    Path("odd").write_text('{"W2": {"value": "x"}}')
    for words, message in WRONG:
        code, _, error = run("plot", *words, "--out", "x.png")
        assert code == 2 and message in error and error.count("\n") == 1, (words, error)
    for words, message in (
        (("schedule", "vp", "--out", "x.jpg"), "ends in .png, .svg or .pdf"),
        (("schedule", "vp", "--out", "no/x.png"), "no is no folder"),
        (("trajectory", "bad"), "name --out, --gif or --apng"),
        (("trajectory", "bad", "--gif", "x.png"), "must end in .gif"),
        (("trajectory", "bad", "--out", "x.png", "--apng", "./x.png"), "must be different files"),
    ):
        code, _, error = run("plot", *words)
        assert code == 2 and message in error, (words, error)
    shapes = {"times": np.zeros(3), "states": np.zeros((4, 2, 2))}, {"times": np.zeros(3)}
    more = {"times": np.zeros(3), "states": np.zeros((3, 2, 2)), "x0": np.zeros((4, 2, 2))}
    whole = {"times": np.zeros(3, int), "states": np.zeros((3, 2, 2))}
    for k, arrays in enumerate((*shapes, more, whole)):
        folder = written(tmp_path / f"t{k}", **arrays)
        code, _, error = run("plot", "trajectory", folder, "--out", "x.png")
        assert code == 2 and "trajectory.npz holds" in error
    assert not Path("x.png").exists()


def test_matplotlib_is_an_extra(run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    for words in (("schedule", "vp"), ("trajectory", "nowhere")):
        code, _, error = run("plot", *words, "--out", tmp_path / "x.png")
        assert (code, error.count("pip install 'fastscore[plots]'")) == (3, 1)


def test_the_gallery_shows_every_command():
    """And every picture is there; that the commands make them, a test below tries."""
    from bench.gallery import LIMIT, PICTURES, page

    assert (DOCS / "GALLERY.md").read_text() == page()
    kinds = {picture.command.split()[2] for picture in PICTURES}
    assert kinds == set(plot.commands)
    there = {file.name: file.stat().st_size for file in (DOCS / "gallery").iterdir()}
    assert there.keys() == {picture.file for picture in PICTURES} and sum(there.values()) < LIMIT
    assert set(re.findall(r"\(gallery/([\w.-]+)\)", page())) == there.keys()


@pytest.mark.slow
def test_densities_and_runs_side_by_side(run, tmp_path, drawn):
    line = ("--schedule", "vp", "--network", "own", "--quiet", "-n", "40")
    assert run("sample", "analytic:moons", *line, "--solver", "em", "--steps", "9", "--out", tmp_path / "sde")[0] == 0
    assert run("sample", "analytic:moons", *line, "--solver", "ddim", "--shards", "--out", tmp_path / "ode")[0] == 0
    runs = (tmp_path / "sde", tmp_path / "ode", tmp_path / "ode")
    assert run("plot", "compare", *runs, "--data", "moons", "--out", tmp_path / "a.png")[0] == 0
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles[:3] == ["data", "em\n9 evaluations", "ddim\n20 evaluations\node"] and len(titles) == 4
    boots = ("sample", "fashion", "-n", "2", "--steps", "2", "--batch", "2", "--network", "own", "--quiet", "--shards")
    assert run(*boots, "--out", tmp_path / "boots")[0] == 0
    x = samples_of(tmp_path / "boots", 1)
    assert x.shape == (1, 1, 28, 28) and -1.0 <= x.min() < -0.9 and 0.0 < x.max() <= 1.0
    target = ("--target", "analytic:four-gaussians", "-n", "20000")
    assert run("plot", "density", *target, "--solver", "ddpm", "--steps", "100", "--out", tmp_path / "b.png")[0] == 0
    images = [np.asarray(axis.images[0].get_array()) for axis in drawn[1].axes[:10]]
    for exact, counted in zip(images[:5], images[5:], strict=True):
        assert np.abs(exact - counted).sum() < 0.35 * exact.sum()  # grain of 20,000 samples in 4,096 cells
        assert exact.max() == 1.0
    chain = ("--steps", "60", "--thin", "10", "--burn-in", "20", "-n", "8", "--quiet", "--out", tmp_path / "chains")
    assert run("langevin", "analytic:moons", *chain)[0] == 0
    assert run("plot", "langevin", tmp_path / "chains", "--chains", "2", "--out", tmp_path / "c.png")[0] == 0
    assert [list(line.get_xdata()) for line in drawn[2].axes[1].get_lines()] == [[30, 40, 50, 60]] * 2


@pytest.mark.slow
@pytest.mark.nightly
def test_every_command_of_the_gallery_makes_its_picture(tmp_path):
    from bench.gallery import PICTURES, draw

    draw(tmp_path)
    for picture in PICTURES:
        made, shown = (Image.open(folder / picture.file) for folder in (tmp_path, DOCS / "gallery"))
        assert (made.size, made.format) == (shown.size, shown.format)
        assert getattr(made, "n_frames", 1) == getattr(shown, "n_frames", 1)


@pytest.mark.slow
def test_a_run_keeps_the_chosen_states_of_its_trajectory(run, tmp_path):
    """And says so where a run that is there kept others, rather than leave those for the answer."""
    line = ("sample", "analytic:gaussian", "-n", "3", "--solver", "ddim", "--steps", "6", "--network", "own", "--quiet")
    out = tmp_path / "run"
    assert run(*line, "--trajectory-steps", "0,2,-1", "--out", out)[0] == 0
    with np.load(out / "trajectory.npz") as file:
        assert file["states"].shape == (3, 3, 2) and file["x0"].shape == (2, 3, 2) and file["times"][0] == 1.0
    assert run(*line, "--trajectory-steps", "0,2,-1", "--out", out)[0] == 0
    for other in (("--trajectory",), ("--trajectory-steps", "::2")):
        code, _, error = run(*line, *other, "--out", out)
        assert code == 2 and "with the states 0,2,-1 of its trajectory" in error
    assert run(*line, "--trajectory-steps", "::2", "--fresh", "--out", out)[0] == 0
    with np.load(out / "trajectory.npz") as file:
        assert len(file["states"]) == 4
    for wrong, message in (
        ("0,9", "must be states that there are"),
        ("a", "neither numbers"),
        ("1.5", "neither"),
        ("::-1", "step"),
    ):
        code, _, error = run(*line, "--trajectory-steps", wrong, "--out", tmp_path / "other")
        assert code == 2 and message in error, wrong
