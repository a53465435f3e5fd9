"""Posterior sampling: calibrated where it is exact, and caught where it is not; inpainting and colourisation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from networks import elementwise_model
from scipy import stats

from fastscore import plan as plans
from fastscore.guidance.guides import PiGDM
from fastscore.guidance.measurements import Matrix
from fastscore.model.analytic import gaussian, score_model
from fastscore.model.conditions import Known
from fastscore.model.coordinates import change_basis, grey_basis, in_basis
from fastscore.model.score import ScoreModel
from fastscore.ops.noise import NoiseKey
from fastscore.process.continuous import EDM, VP, Flow, Trig
from fastscore.process.grid import karras, logsnr, uniform
from fastscore.process.parametrization import Parametrization
from fastscore.sampler import Sampler
from fastscore.solvers import (
    DDIM,
    DDPM,
    Ancestral,
    DPMpp2M,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    RePaint,
    ReverseDiffusion,
    StochasticHeun,
    UniPC,
)

SETS, DRAWS = 1000, 19  # ranks 0 .. 19: 20 bins of 50
MEAN, STD, NOISE = 0.3, 0.7, 0.4
A = np.array([[1.0, 0.5, 0.0, -0.3], [0.0, 1.0, 0.8, 0.2], [0.4, 0.0, -1.0, 1.0]])
# A prior whose coordinates know of each other.
ROOT = np.array([[1.0, 0.0, 0.0, 0.0], [0.95, 0.3, 0.0, 0.0], [-0.5, 0.5, 0.7, 0.0], [0.9, 0.1, -0.3, 0.3]])
COV = ROOT @ ROOT.T
SEEN = np.array([True, False, True, False])


def calibration(truth: np.ndarray, samples: torch.Tensor, quantity) -> float:
    """Bonferroni p-value of the ranks of the truth among posterior samples, one chi-square test each.

    Tested are the coordinates and ``quantity`` (x [SETS, n, d] -> [SETS, n]), which must involve the data: ranks of
    coordinates alone are uniform for samples of the prior, too.

    Source: Talts et al. 2018 (simulation-based calibration); Modrak et al. 2023 (data-dependent quantities).
    """
    drawn, true = samples.double().numpy().reshape(SETS, DRAWS, -1), truth[:, None]
    drawn, true = (np.concatenate([x, quantity(x)[..., None]], 2) for x in (drawn, true))
    ranks = (drawn < true).sum(1)
    p = [stats.chisquare(np.bincount(column, minlength=DRAWS + 1)).pvalue for column in ranks.T]
    return len(p) * min(p)


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = MEAN + STD * rng.standard_normal((SETS, 4))
    return truth, truth @ A.T + NOISE * rng.standard_normal((SETS, 3))


def misfit(y: np.ndarray):
    """The log-likelihood up to a factor, |y - A x|^2."""
    return lambda x: np.square(y[:, None] - x @ A.T).sum(2)


def repeated(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).float().repeat_interleave(DRAWS, 0)


def by_pigdm(y: np.ndarray, solver, noise: float = NOISE, std: float = STD, steps: int = 24) -> torch.Tensor:
    guide = PiGDM(Matrix(torch.from_numpy(A)), noise, std)
    model = score_model(gaussian(MEAN, STD, (4,)))
    n = SETS * DRAWS
    sampler = Sampler(model, schedule=VP(), solver=solver, grid=logsnr(steps), batch=n, guide=guide)
    return sampler.run(range(n), seed=1, y=repeated(y))


def test_pigdm_with_the_exact_variance_is_calibrated():
    truth, y = problem()
    x, wrong = by_pigdm(y, DPMpp2M()), {"noise": {"noise": 1.2 * NOISE}, "data_std": {"std": 0.7 * STD}}
    assert calibration(truth, x, misfit(y)) > 1e-3
    # The same test, of the same size, refuses samplers that are a little wrong.
    for name, settings in wrong.items():
        assert calibration(truth, by_pigdm(y, DPMpp2M(), **settings), misfit(y)) < 1e-6, name
    prior = MEAN + STD * NoiseKey.of(3, range(len(x))).normal(0, 4)
    assert calibration(truth, prior, misfit(y)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps"), [(Ancestral(), 300), (Heun(), 24), (UniPC(), 24)], ids=["ancestral", "heun", "unipc"]
)
def test_any_solver_is_calibrated(solver, steps):
    truth, y = problem(7)
    assert calibration(truth, by_pigdm(y, solver, steps=steps), misfit(y)) > 1e-3


def test_a_model_that_is_told_the_measurement_is_calibrated():
    """The exact conditional score, the data set of each sample through its conditioning tensor."""
    truth, y = problem(3)
    covariance = np.linalg.inv(np.eye(4) / STD**2 + A.T @ A / NOISE**2)
    V, gain = torch.from_numpy(covariance).float(), torch.from_numpy(covariance @ A.T / NOISE**2).float()
    offset = V.sum(1) * MEAN / STD**2

    def net(x, t, cond):
        alpha, sigma = torch.cos(t)[:1], torch.sin(t)[:1]
        mean = cond @ gain.T + offset
        return mean + alpha * (x - alpha * mean) @ torch.linalg.inv(alpha**2 * V + sigma**2 * torch.eye(4)) @ V

    model = ScoreModel(net, (4,), Trig(), Parametrization("x0", "t"), cond_shape=(3,))
    n = SETS * DRAWS
    sampler = Sampler(model, schedule=VP(), solver=EulerMaruyama(), grid=logsnr(150), batch=n)
    assert calibration(truth, sampler.run(range(n), cond=repeated(y)), misfit(y)) > 1e-3
    assert calibration(truth, sampler.run(range(n), cond=repeated(1.3 * y)), misfit(y)) < 1e-6


def correlated() -> ScoreModel:
    """The exact model of N(0, COV)."""
    C = torch.from_numpy(COV)

    def net(x, t, cond):
        alpha, sigma = torch.cos(t)[:1].double(), torch.sin(t)[:1].double()
        return (x.double() @ (alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * torch.eye(4)))).to(x)

    return ScoreModel(net, (4,), Trig(), Parametrization("x0", "t"))


def fill_in(solver, truth: np.ndarray, steps: int) -> torch.Tensor:
    n = SETS * DRAWS
    sampler = Sampler(correlated(), schedule=VP(), solver=solver, grid=logsnr(steps), batch=n)
    return sampler.run(range(n), known=Known(repeated(truth), torch.from_numpy(SEEN)))


def test_replacement_is_not_calibrated_and_repaint_is_closer():
    """Replaced coordinates steer the others too little: the slope of the hidden on the seen is off."""
    truth = np.random.default_rng(5).standard_normal((SETS, 4)) @ ROOT.T
    slope = COV[np.ix_(~SEEN, SEEN)] @ np.linalg.inv(COV[np.ix_(SEEN, SEEN)])
    missed, p = [], []

    def distance(x: np.ndarray) -> np.ndarray:
        return np.square(x - truth[:, None, SEEN] @ slope.T).sum(2)

    for solver in (DDPM(), RePaint(DDPM(), jump=2, times=6)):
        x = fill_in(solver, truth, 24)
        assert torch.equal(x[:, SEEN], repeated(truth)[:, SEEN])
        found = np.linalg.lstsq(repeated(truth).numpy()[:, SEEN], x[:, ~SEEN].numpy(), rcond=None)[0].T
        missed.append(np.abs(found - slope).max())
        p.append(calibration(truth[:, ~SEEN], x[:, ~SEEN], distance))
    assert p[0] < 1e-6
    assert missed[1] < 0.4 * missed[0]


SOLVERS = {
    "2m": DPMpp2M(),
    "heun": Heun(),
    "ddim": DDIM(eta=1.0, keep_eps=True),
    "pc": PredictorCorrector(ReverseDiffusion(), Langevin()),
    "sde-heun": StochasticHeun(),
    "repaint": RePaint(DDPM(), 2, 3),
}


@pytest.mark.thirds
@pytest.mark.parametrize("schedule", [EDM(), VP()], ids=["edm", "vp"])
@pytest.mark.parametrize("name", SOLVERS)
def test_known_data_stay_at_the_level_of_the_state_and_change_no_other_draw(name, schedule):
    model = elementwise_model((1, 4, 5))
    sampler = Sampler(model, schedule=schedule, solver=SOLVERS[name], grid=karras(6), batch=4)
    y, mask = NoiseKey.of(9, range(3)).normal(0, 20).reshape(3, 1, 4, 5), torch.arange(20).reshape(1, 4, 5) % 3 > 0
    steps, key = [], NoiseKey.of(2, range(3))
    x = sampler.run(range(3), 2, known=Known(y, mask), callback=steps.append)
    assert torch.equal(x[:, mask], y[:, mask])
    if name != "pc":  # whose step depends on the norm of all elements
        assert torch.equal(x[:, ~mask], sampler.run(range(3), 2)[:, ~mask])
    rows = sampler.plan.rows
    for k, (step, t) in enumerate(zip(steps, [*(row.t for row in rows[1:]), rows[-1].s], strict=True)):
        z = key.normal(sampler.plan.draws + k, 20).reshape(y.shape)
        level = np.float32(schedule.alpha(t)) * y + np.float32(schedule.sigma(t)) * z
        assert torch.equal(step.x[:, mask], level[:, mask])


def test_repaint_rows():
    t = uniform(7, clean=True)(VP())
    assert plans.make_plan(RePaint(DDPM(), 2, 1), VP(), t) == plans.make_plan(DDPM(), VP(), t)
    plan = plans.make_plan(RePaint(DDPM(), 3, 2), VP(), t)
    knots = {round(v, 12): k for k, v in enumerate(t)}
    path = [knots[round(row.s, 12)] for row in plan.rows]
    assert path == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7]
    for row in plan.rows[1:]:
        if row.s > row.t:  # the forward transition keeps the marginal
            alpha, sigma = (float(f(row.t)) for f in (VP().alpha, VP().sigma))
            assert row.a * alpha == pytest.approx(float(VP().alpha(row.s)), rel=1e-12)
            assert np.hypot(row.a * sigma, row.c) == pytest.approx(float(VP().sigma(row.s)), rel=1e-12)
            assert not row.evaluate
    assert all(a.s == b.t for a, b in pairwise(plan.rows))
    up = plans.make_plan(RePaint(DDPM(), 3, 2), Flow(), uniform(4, clean=True)(Flow())).rows[4]
    assert (up.s, up.a, up.c) == (1.0, 0.0, 1.0)  # back to pure noise
    ends_early = plans.make_plan(RePaint(DDPM(), 2, 2), VP(), uniform(4)(VP()))
    assert [round(row.s, 2) for row in ends_early.rows][-4:] == [0.0, 0.5, 0.25, 0.0]
    with pytest.raises(ValueError, match="jump = 0"):
        RePaint(jump=0)


def test_colour_is_inpainted_in_a_basis_of_grey():
    M = grey_basis()
    assert torch.allclose(M @ M.T, torch.eye(3, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(M[0], torch.full((3,), 3**-0.5, dtype=torch.float64))
    weight = NoiseKey.of(4, range(3)).normal(0, 3, torch.float64)

    def net(u, t, cond):  # mixes channels, not linear
        return torch.tanh(torch.einsum("kc,nchw->nkhw", weight.to(u), u))

    model = ScoreModel(net, (3, 4, 4), EDM(), Parametrization("edm", "log_sigma/4"))
    kw = {"solver": DDIM(eta=1.0), "grid": karras(5), "dtype": torch.float64, "batch": 2}
    turned = Sampler(in_basis(model, M), **kw)
    z = NoiseKey.of(5, range(turned.plan.draws * 2)).normal(0, 48, torch.float64).reshape(-1, 2, 3, 4, 4)
    x = Sampler(model, **kw).run(range(2), noise=z)
    noise = torch.einsum("kc,dnchw->dnkhw", M, z)
    assert torch.allclose(change_basis(turned.run(range(2), noise=noise), M.T), x, rtol=1e-9, atol=1e-9)

    grey = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 4, 4)
    channel = torch.tensor([True, False, False]).reshape(3, 1, 1)
    known = Known(change_basis(grey.expand(3, 4, 4), M), channel)
    coloured = change_basis(turned.run(range(2), known=known), M.T)
    assert torch.allclose(coloured.mean(1, keepdim=True), grey.expand(2, 1, 4, 4), atol=1e-12)
    assert coloured.std(1).mean() > 0.05
    with pytest.raises(ValueError, match="orthonormal"):
        in_basis(model, 2.0 * M)
    with pytest.raises(ValueError, match="expected"):
        in_basis(model, M[:2])
