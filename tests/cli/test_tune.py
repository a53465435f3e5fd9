"""fastscore tune, and what it fits as `sample --grid tuned` finds it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastscore.engine.fitted import from_dict

TUNE = ("tune", "analytic:mixture", "--evaluations", 3, "--ids", "0-11", "--batch", 12, "--network", "own")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_fit_is_told_kept_and_sampled_with(run, tmp_path):
    code, said, error = run(*TUNE, "--solver", "dpmpp-2m", "--quiet", "--json")
    assert code == 0, error
    told = json.loads(said)
    fit = from_dict({k: v for k, v in told.items() if k != "file"})
    assert told["file"].startswith(str(tmp_path / "cache")) and fit.steps == fit.evaluations == 3
    sample = ("sample", "analytic:mixture", "-n", 5, "--grid", "tuned", "--network", "own", "--quiet", "--batch", 5)
    code, _, error = run(*sample, "--out", "tuned")
    assert code == 0, error
    record = json.loads((tmp_path / "tuned/run.json").read_text())
    assert "DPMpp2M()" in json.dumps(record) and np.load(tmp_path / "tuned/samples.npz")["samples"].shape == (5, 2)
    for options, words in (
        (("--steps", 7), "fitted for 3 steps, not for 7"),
        (("--solver", "heun"), "not for Heun"),
        (("--rho", 5), "--rho changes a rule"),
        (("--t-end", 0.1), "--t-end changes a rule"),
    ):
        code, _, error = run(*sample, "--out", "none", *options)
        assert code == 2 and words in error, error
    code, _, error = run("plan", "--grid", "tuned")
    assert code == 2 and "belongs to a model" in error
    folder = tmp_path / "here"
    folder.mkdir()
    code, said, error = run(*TUNE, "--solver", "ddim", "--out", folder)
    assert code == 0 and (folder / "tuned.json").exists(), error
    assert "error, held out" in said and "sigma / alpha" in said and "--grid tuned --steps 3" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "em"), "draws noise"),
        (("--solver", "dopri5"), "rtol and atol"),
        (("--solver", "heun", "--evaluations", 6), "makes 5 or 7 in whole steps"),
        (("--ids", "0-3"), "ids are 4"),
        (("--guidance-interval", "0.3,5"), "needs --guidance"),
        (("--guidance", 2), "null condition"),
        (("--guidance", 2, "--unconditional"), "leave one out"),
        (("--class", 1, "--unconditional"), "exclude each other"),
        (("--class", 1), "labels"),
        (("--out", "nowhere"), "is no folder"),
        (("--time-limit", 0), "0"),
    ],
)
def test_bad_input_is_named(run, options, words):
    code, _, error = run(*TUNE, *options, "--quiet")
    assert code == 2 and words in error, error
