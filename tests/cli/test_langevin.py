"""fastscore langevin: the paths of the library's chains, in files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastscore import chains
from fastscore.model.analytic import by_name, target_by_name
from fastscore.sampler import Sampler
from fastscore.solvers.presets import ncsn


def arrays(folder):
    with np.load(folder / "samples.npz") as file:
        return dict(file)


@pytest.mark.parametrize("method", ["ula", "mala"])
def test_the_files_hold_the_chains_of_the_library(run, tmp_path, method):
    flags = ("--method", method, "--steps", 20, "--step", 0.3, "--thin", 4, "--burn-in", 3, "--seed", 5, "-n", 6)
    code, said, _ = run("langevin", "analytic:four-gaussians", *flags, "--out", tmp_path / "out")
    target = target_by_name("four-gaussians")
    same = chains.run(
        target.log_density, torch.zeros(1, 2), 0.3, 20, range(6), 5, score=target.score, spread=1.0, method=method,
        burn_in=3, thin=4,
    )  # fmt: skip
    saved, record = arrays(tmp_path / "out"), json.loads((tmp_path / "out" / "run.json").read_text())
    assert code == 0
    assert np.array_equal(saved["states"], same.states) and saved["states"].shape == (6, 4, 2)
    assert np.array_equal(saved["samples"], same.x)
    assert np.array_equal(saved["acceptance"], same.acceptance)
    assert saved["ids"].tolist() == list(range(6))
    assert record["settings"]["method"] == method and record["settings"]["step"] == 0.3
    assert f"{float(same.acceptance.mean()):.3f} of the proposals taken" in said
    assert (tmp_path / "out" / "grid.png").exists()


@pytest.mark.slow
def test_mala_finds_the_law_of_a_mixture_with_the_defaults(run, tmp_path):
    """Thinned to one state a chain; the modes of this target are close enough to cross."""
    flags = ("-n", 2000, "--steps", 400, "--step", 0.02, "--thin", 400, "--sigma", 0.5, "--batch", 2000, "--quiet")
    assert run("langevin", "analytic:mixture", *flags, "--out", tmp_path / "out")[0] == 0
    x, variance = arrays(tmp_path / "out")["samples"], 0.5 + 0.1**2 + 0.5**2  # radius 1; std 0.1, and the noise
    assert np.abs(x.mean(0)).max() < 5.0 * np.sqrt(variance / 2000)
    spread = (x**2).std(0) / np.sqrt(2000)
    assert (np.abs((x**2).mean(0) - variance) < 5.0 * spread).all()


def test_points_are_smoothed_and_starts_are_read(run, tmp_path):
    start = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    np.save(tmp_path / "start.npy", start)
    flags = ("-n", 3, "--steps", 1, "--thin", 1, "--init", tmp_path / "start.npy", "--sigma", 0.3, "--step", 1e-3)
    assert run("langevin", "analytic:moons", "--method", "ula", *flags, "--quiet", "--out", tmp_path / "out")[0] == 0
    points = torch.from_numpy(np.asarray(target_by_name("moons").points)).double()
    weight = torch.softmax(-0.5 * torch.cdist(torch.from_numpy(start).double(), points) ** 2 / 0.09, 1)
    score = (weight @ points - torch.from_numpy(start)) / 0.09
    z = chains.NoiseKey.of(0, range(3)).normal(1, 2, torch.float32)
    expected = torch.from_numpy(start) + 1e-3 * score.float() + np.sqrt(2e-3) * z
    np.testing.assert_allclose(arrays(tmp_path / "out")["samples"], expected, atol=1e-5)


def test_annealed_is_ncsn(run, tmp_path):
    flags = ("--levels", 3, "--steps", 4, "--step", 1e-3, "--sigma-min", 0.1, "--thin", 3, "-n", 5, "--batch", 2)
    assert run("langevin", "analytic:mixture", "--method", "annealed", *flags, "--out", tmp_path / "out")[0] == 0
    sampler = Sampler(by_name("mixture"), **ncsn(3, 1.0, 0.1, 1e-3, 4), batch=2)
    steps = []
    x = sampler.run(range(5), callback=steps.append)
    saved = arrays(tmp_path / "out")
    assert np.array_equal(saved["samples"], x)
    for k in range(4):
        parts = torch.cat([step.x for step in steps if step.row == 3 * (k + 1)])
        assert np.array_equal(saved["states"][:, k], parts)
    assert saved["states"].shape == (5, 4, 2) and "acceptance" not in saved


def test_a_network_at_its_least_noise(run, tmp_path):
    flags = ("-n", 2, "--steps", 2, "--thin", 1, "--class", 3, "--quiet")
    assert run("langevin", "fashion", *flags, "--out", tmp_path / "out")[0] == 0
    saved, record = arrays(tmp_path / "out"), json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved["samples"].dtype == np.uint8 and saved["samples"].shape == (2, 28, 28, 1)
    assert saved["states"].shape == (2, 2, 1, 28, 28)
    settings = record["settings"]
    assert settings["sigma"] == pytest.approx(0.002) and settings["method"] == "ula"
    assert settings["step"] == pytest.approx(0.1 * 0.002**2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "bundled model"),
        ("analytic:x", "must be one of gaussian"),
        ("fashion --method mala", "--method mala needs a density"),
        ("analytic:moons --method hmc", "method = 'hmc' must be one of ula, mala, annealed"),
        ("analytic:moons --levels 3", "--levels belongs to --method annealed"),
        ("analytic:moons --method annealed --burn-in 3", "--burn-in belongs to --method ula and mala"),
        ("analytic:moons --step 0", "above 0"),
        ("analytic:moons --steps 5 --burn-in 5", "burn_in = 5"),
        ("analytic:moons --steps 5 --thin 6", "thin = 6"),
        ("analytic:moons --class 3", "--class 3 must be below 0"),
        ("analytic:moons --init {out}.npy", "not a readable NumPy file"),
        ("fashion --sigma 100", "noisier than EDM gets"),
        ("analytic:mixture --method annealed --sigma-min 2", "sigma_min = 2"),
    ],
)
def test_bad_input_is_named(run, tmp_path, line, message):
    out = tmp_path / "out"
    code, _, error = run("langevin", *line.format(out=out).split(), "--quiet", "--out", out)
    assert code == 2
    assert message in error
    assert not out.exists()


def test_a_run_is_not_overwritten_unasked(run, tmp_path):
    line = ("langevin", "analytic:gaussian", "-n", 2, "--steps", 10, "--quiet", "--out", tmp_path / "out")
    assert run(*line)[0] == 0
    code, _, error = run(*line)
    assert code == 2 and "already holds samples.npz" in error
    assert run(*line, "--overwrite")[0] == 0
