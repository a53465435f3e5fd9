"""The engine against plain loops written from the papers, float64, recorded noise."""

import ast
from functools import partial
from pathlib import Path

import cases
import checks
import numpy as np
import pytest
import textbook
import textbook_exponential
import textbook_few
import torch
from cases import CASES, SETTINGS, others_of, two_of
from cells import in_each
from checks import DENOISER, NOISE, N, check_textbook

from fastscore.model.score import ScoreModel
from fastscore.process.grid import Times
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import DDIM, Ancestral, DPMpp2M, Euler, EulerMaruyama, Heun

SHORT = [name for name, case in CASES.items() if case.family != "published"]
one_step = partial(check_textbook, steps=1)


# Every solver on two schedules with both ends at every run, others from solver to solver; the rest of the product with
# the slow tests.
@pytest.mark.thirds
@pytest.mark.parametrize("name", CASES)
def test_equals_the_textbook(name):
    in_each(two_of(name), check_textbook)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if others_of(name)])
def test_equals_the_textbook_on_the_other_schedules(name):
    in_each(others_of(name), check_textbook)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_one_step(name):
    in_each(two_of(name), one_step)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in SHORT if others_of(name)])
def test_one_step_on_the_other_schedules(name):
    in_each(others_of(name), one_step)


@pytest.mark.parametrize("setting", ["vp-linear", "subvp", "tutorial-ve", "edm", "flow", "smld-table"])
def test_euler_without_denoising(setting):
    here = SETTINGS[setting]
    knots = np.array(here.knots)
    ours = _run(checks.MODEL, setting, Euler(denoise=False), knots)
    theirs = textbook.euler(here.process, DENOISER, knots[:-1], here.prior * NOISE[0], iter(()))
    # The last step follows the flow at the last knot with sigma > 0; on a table of levels sigma is geometric there.
    theirs = textbook.euler(here.process, DENOISER, knots[-2:], theirs, iter(()), denoise=False)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())


@pytest.mark.parametrize(("variance", "scale"), [("small", 0.0), ("large", 1.0)])
def test_ancestral_without_denoising_adds_beta_noise(variance, scale):
    here = SETTINGS["vp-linear"]
    knots = np.array(here.knots)[-2:]
    ours = _run(checks.MODEL, "vp-linear", Ancestral(variance, denoise=False), knots)
    alpha, sigma = here.process.alpha(knots[0]), here.process.sigma(knots[0])
    theirs = DENOISER(NOISE[0], alpha, sigma) + scale * sigma * NOISE[1]  # beta_1 = 1 - abar_1 = sigma^2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampled", ["vp-linear", "ve"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "score", "v", "flow", "edm"])
def test_any_prediction_is_the_same_denoiser(prediction, sampled):
    trained = "edm" if prediction == "edm" else "vp-linear"
    here, process = SETTINGS[trained], SETTINGS[trained].process
    label = "log_sigma/4" if prediction == "edm" else "t"

    def net(u, c_noise, cond):
        t = float(c_noise[0])
        if prediction == "edm":
            sigma = np.exp(4.0 * t)
            skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / np.sqrt(sigma**2 + 0.25)
            x = u.numpy() * np.sqrt(sigma**2 + 0.25)
            return torch.from_numpy((DENOISER(x, 1.0, sigma) - skip * x) / out)
        x, alpha, sigma = u.numpy(), process.alpha(t), process.sigma(t)
        x0 = DENOISER(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        beta = process.g2(t)  # alpha' = -beta alpha / 2 and sigma' = beta alpha^2 / (2 sigma) on VP
        F = {
            "x0": x0,
            "eps": eps,
            "score": -eps / sigma,
            "v": alpha * eps - sigma * x0,
            "flow": -0.5 * beta * alpha * x0 + 0.5 * beta * alpha**2 / sigma * eps,
        }[prediction]
        return torch.from_numpy(F)

    model = ScoreModel(net, (checks.D,), here.schedule, Parametrization(prediction, label))
    # Only noise that the model was trained on: of VE the last knots, of VP all but the first for EDM's 80.
    start = -3 if sampled == "ve" else int(prediction == "edm")
    whole = np.array(SETTINGS[sampled].knots)
    knots, sde = whole[start:], SETTINGS[sampled].process
    lengths = [np.hypot(sde.alpha(t), sde.sigma(t)) for t in (knots[0], whole[0])]
    prior = SETTINGS[sampled].prior * lengths[0] / lengths[1]
    for solver, loop in (
        (EulerMaruyama(), textbook.euler_maruyama),
        (Heun(), textbook.heun),
        (DPMpp2M(), textbook.dpmpp_2m),
        (DDIM(keep_eps=True), textbook.ddim),
    ):
        ours = _run(model, sampled, solver, knots)
        theirs = loop(sde, DENOISER, knots, prior * NOISE[0], iter(NOISE[1:]))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())


def _run(model, setting, solver, knots):
    sampler = Sampler(
        model,
        schedule=SETTINGS[setting].schedule,
        solver=solver,
        grid=Times(tuple(knots)),
        batch=N,
        dtype=torch.float64,
    )
    return sampler.run(range(N), noise=torch.from_numpy(NOISE[: sampler.plan.draws])).numpy()


def test_the_oracles_are_independent():
    for file, banned in (
        (textbook, ("fastscore", "torch")),
        (textbook_exponential, ("fastscore", "torch")),
        (textbook_few, ("fastscore", "torch")),
        (cases, ("fastscore.plan", "fastscore.ops")),
        (checks, ("fastscore.plan", "fastscore.ops")),
    ):
        tree = ast.parse(Path(file.__file__).read_text())
        names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not [n for n in names if n.startswith(banned)]
