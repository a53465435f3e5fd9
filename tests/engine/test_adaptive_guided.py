"""Adaptive solvers with what rows of a plan have: mixtures, guides, known data, starts, clipping."""

from __future__ import annotations

import math

import pytest
import torch

import fastscore as fs
from fastscore.engine.adaptive.levels import NoiseLevels
from fastscore.guidance.measurements import Matrix
from fastscore.model.analytic import gaussian

SHAPE = (2, 3)
ODE = fs.Dopri5(1e-5, 1e-5)
FAST = {"dopri5": fs.Dopri5(0.01, 0.01), "dpm": fs.DPMAdaptive(3), "ggf": fs.GottaGoFast(0.5, 0.5)}


def net(u, c_noise, cond=None):
    shift = 0.0 if cond is None else 0.3 * cond.to(u).reshape(-1, *[1] * (u.ndim - 1))
    return u / (1.0 + u * u) + 0.1 * c_noise.reshape(-1, *[1] * (u.ndim - 1)) + shift


def model(prediction: str = "v", classes: int = 3) -> fs.ScoreModel:
    return fs.ScoreModel(net, SHAPE, fs.VP(), fs.Parametrization(prediction), classes, null=classes or None)


def draw(solver, run=None, schedule=None, grid=None, **settings):
    sampler = fs.Sampler(
        settings.pop("of", model()),
        schedule=schedule,
        solver=solver,
        grid=grid,
        batch=4,
        dtype=torch.float64,
        **settings,
    )
    return sampler.run(range(4), 7, **{"labels": 1, **(run or {})})


@pytest.mark.thirds
@pytest.mark.parametrize("name", FAST)
def test_weight_one_and_an_empty_interval_are_the_unguided_run_to_the_bit(name):
    plain = draw(FAST[name])
    for guidance in (fs.Guidance(1.0), fs.Guidance(5.0, (1e6, 1e7))):
        assert torch.equal(draw(FAST[name], guidance=guidance), plain)
    assert not torch.equal(draw(FAST[name], guidance=fs.Guidance(1.01)), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [fs.SubVP(), pytest.param(fs.VE(), marks=pytest.mark.slow)], ids=lambda s: type(s).__name__
)
def test_a_mixture_is_that_of_the_rows(schedule):
    """The same ODE, by a fine grid of RK4 and by Dormand-Prince; an edge of the interval costs both some accuracy."""
    ends = {"start": float(schedule.T) * 0.9, "end": float(schedule.t_end)}
    tolerance = 10.0 * ODE.rtol * max(1.0, schedule.prior_std)  # of a step, on x, which begins as long as the prior
    for guidance in (fs.Guidance(2.5), fs.Guidance(2.5, model=model("eps"))):
        rows = draw(fs.RK4(), schedule=schedule, grid=fs.logsnr(100, clean=False, **ends), guidance=guidance)
        adaptive = draw(ODE, schedule=schedule, grid=fs.Span(clean=False, **ends), guidance=guidance)
        assert (adaptive - rows).abs().max() < tolerance
    inner = fs.Guidance(2.5, (0.1, 3.0))
    rows = draw(fs.RK4(), schedule=schedule, grid=fs.logsnr(200, clean=False, **ends), guidance=inner)
    adaptive = draw(ODE, schedule=schedule, grid=fs.Span(clean=False, **ends), guidance=inner)
    everywhere = draw(ODE, schedule=schedule, grid=fs.Span(clean=False, **ends), guidance=fs.Guidance(2.5))
    assert (adaptive - rows).abs().max() < 0.1 * (adaptive - everywhere).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "prediction", ["v", *(pytest.param(p, marks=pytest.mark.nightly) for p in ("eps", "x0", "edm"))]
)
@pytest.mark.parametrize("guidance", [None, fs.Guidance(2.5, (0.1, 3.0))], ids=["plain", "mixture"])
def test_a_guide_that_changes_nothing_changes_nothing(prediction, guidance):
    """What goes through the estimate of x0 comes back, for every quantity that is integrated, mixed or not."""
    settings = {"of": model(prediction), "grid": fs.Span(start=0.95), "guidance": guidance}
    for solver in (fs.Dopri5(1e-3, 1e-3), fs.DPMAdaptive(3, 1e-2, 1e-2), fs.GottaGoFast(0.5, 0.5)):
        plain = draw(solver, **settings)
        guided = draw(solver, guide=lambda denoise, x, alpha, sigma, y: denoise(x), **settings)
        assert (guided - plain).abs().max() < 1e-7 * plain.abs().max()


@pytest.mark.parametrize("schedule", [fs.SubVP(), fs.VE()], ids=lambda s: type(s).__name__)
def test_a_guide_sees_the_state_and_the_level_of_the_schedule(schedule):
    """On Gaussian data the estimate is a formula in x, alpha and sigma, which no other three of them satisfy."""
    mean, std, calls = 0.3, 0.5, []

    def guide(denoise, x, alpha, sigma, y):
        expected = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
        calls.append(float((denoise(x) - expected).abs().max()))
        on_schedule = schedule.sigma(times) / schedule.alpha(times)
        nearest = torch.from_numpy(on_schedule).log() - (sigma / alpha).log().flatten()[:, None]
        k = nearest.abs().argmin(1)
        lengths = torch.from_numpy(schedule.alpha(times) ** 2 + schedule.sigma(times) ** 2)[k]
        assert ((alpha**2 + sigma**2).flatten() / lengths - 1.0).abs().max() < 1e-3
        return expected

    times = torch.linspace(1e-4, 1.0, 20001, dtype=torch.float64).numpy()
    target = fs.score_model(gaussian(mean, std, SHAPE))
    draw(fs.Dopri5(1e-2, 1e-2), {"labels": None}, schedule, of=target, guide=guide)
    assert max(calls) < 1e-8


def test_clip_bounds_the_estimate():
    x = draw(FAST["dopri5"], clip=0.2)
    assert float(x.abs().max()) <= 0.2 + 1e-12
    assert float(draw(FAST["dopri5"]).abs().max()) > 0.3
    with pytest.raises(ValueError, match="clip = -1"):
        draw(FAST["dopri5"], clip=-1.0)


def test_pigdm_draws_from_the_exact_posterior():
    """Gaussian data: the posterior of x given A x + noise is Gaussian, and PiGDM's guide is exact."""
    A, noise = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64), 0.3
    guide = fs.PiGDM(Matrix(A), noise, data_std=1.0)
    sampler = fs.Sampler(
        fs.score_model(gaussian(0.0, 1.0, (2,))),
        schedule=fs.VP(),
        solver=fs.Dopri5(1e-4, 1e-4),
        guide=guide,
        batch=2000,
    )
    y = torch.tensor([1.0, -1.0])
    x = sampler.run(range(4000), y=y.expand(4000, 2)).double()
    precision = torch.eye(2, dtype=torch.float64) + A.T @ A / noise**2
    mean, cov = torch.linalg.solve(precision, A.T @ y.double() / noise**2), torch.linalg.inv(precision)
    assert ((x.mean(0) - mean).abs() < 4.5 * (cov.diagonal() / 4000).sqrt()).all()
    assert torch.allclose(torch.cov(x.T), cov, atol=4.5 * float(cov.max()) * math.sqrt(2 / 4000))


@pytest.mark.slow
@pytest.mark.parametrize("solver", [fs.Dopri5(1e-4, 1e-4), fs.DPMAdaptive(3)], ids=["dopri5", "dpm"])
@pytest.mark.parametrize("schedule", [fs.VP(), fs.VE()], ids=["vp", "ve"])
def test_known_data_follow_their_own_path(solver, schedule):
    y = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).reshape(SHAPE)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0] = True
    run = {"known": fs.Known(y, mask)}
    clean = draw(solver, run, schedule=schedule)
    # An exponential integrator has no error where eps is constant.
    assert (clean[:, mask] - y[mask]).abs().max() < (1e-9 if isinstance(solver, fs.DPMAdaptive) else 0.01 * solver.rtol)
    free = draw(solver, schedule=schedule)
    assert torch.equal(clean[:, ~mask], free[:, ~mask]) is False  # their steps share an error estimate
    assert (clean[:, ~mask] - free[:, ~mask]).abs().max() < 0.02  # but an elementwise network couples nothing
    end = 0.3
    state = draw(solver, run, schedule=schedule, grid=fs.Span(end=end, clean=False))
    z = fs.Sampler(model(), dtype=torch.float64).request(range(4), 7).key.normal(0, 6, torch.float64).reshape(4, *SHAPE)
    path = float(schedule.alpha(end)) * y + float(schedule.sigma(end)) * z
    assert (state[:, mask] - path[:, mask]).abs().max() < 1e-7 * path.abs().max()


def test_a_start_from_a_state_continues_a_run():
    first = draw(ODE, grid=fs.Span(end=0.5, clean=False))
    second = draw(ODE, {"init": first}, grid=fs.Span(start=0.5, end=1e-3, clean=False), start="state")
    whole = draw(ODE, grid=fs.Span(end=1e-3, clean=False))
    assert (second - whole).abs().max() < 1e-4


def test_a_start_from_data_adds_the_prior_draw():
    x0 = torch.full(SHAPE, 0.4, dtype=torch.float64)
    grid = fs.Span(start=0.3)
    key = fs.Sampler(model(), dtype=torch.float64).request(range(4), 7).key
    z = key.normal(0, 6, torch.float64).reshape(4, *SHAPE)
    state = float(fs.VP().alpha(0.3)) * x0 + float(fs.VP().sigma(0.3)) * z
    x = draw(ODE, {"init": x0}, grid=grid, start="data")
    assert (x - draw(ODE, {"init": state}, grid=grid, start="state")).abs().max() < 1e-12
    with pytest.raises(ValueError, match="init = None does not go with start = 'data'"):
        draw(ODE, grid=grid, start="data")


def test_the_interval_is_open_below_and_closed_above():
    low, high = 0.1, 3.0
    levels = NoiseLevels(model(), fs.VP(), "v", 1.0, 1e-3, torch.device("cpu"), fs.Guidance(2.0, (low, high)))
    ratios = torch.tensor(
        [low * (1 - 1e-9), low * (1 + 1e-9), high * (1 - 1e-9), high * (1 + 1e-9)], dtype=torch.float64
    )
    assert levels.at(-ratios.log()).mixed.tolist() == [False, True, True, False]
