"""Trajectories: the states on the way are those that the solver had, and the last one is the sample."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from gated import at_night

import fastscore as fs
from fastscore.model import analytic
from fastscore.ops.noise import NoiseKey
from fastscore.process.schedule import diffuse, transition
from fastscore.solvers.names import SOLVERS, named

MEAN, STD, IDS, SEED = 0.5, 0.3, [5, 0, 9, 2, 7, 1, 3], 4
GAUSSIAN = fs.score_model(analytic.gaussian(MEAN, STD, (3,)))
VP = fs.VP()


def sampler(solver, schedule=VP, batch=3, **settings):
    if solver == "score-sde":
        settings["steps"] = 25
    loose = {"rtol": 0.3, "atol": 0.3} if solver == "ggf" else {}
    solver = named(solver, corrector="ald" if solver == "none" else None, **loose)
    return fs.Sampler(GAUSSIAN, schedule=schedule, solver=solver, batch=batch, **settings)


def ends(path):
    """The last state of each sample, and its time."""
    n = path.states.shape[1]
    times = path.times if path.times.ndim == 2 else path.times[:, None].expand(-1, n)
    last, everyone = (~times.isnan()).sum(0) - 1, torch.arange(n)
    return path.states[last, everyone], times[last, everyone]


QUICK = ("ddim", "dpmpp-2m", "heun-sde", "edm-churn", "dopri5", "ggf")  # the others with the slow tests


@pytest.mark.parametrize("solver", at_night(SOLVERS, *QUICK))
def test_it_ends_at_the_samples_and_begins_at_the_prior(solver):
    s = sampler(solver)
    path, x = fs.trajectory(s, IDS, SEED), s.run(IDS, SEED)
    assert torch.equal(ends(path)[0], x)
    assert torch.equal(s.run(IDS, SEED), x)  # the sampler is as it was
    prior = NoiseKey.of(SEED, IDS).normal(0, 3, torch.float32)
    assert torch.allclose(path.states[0], prior, rtol=1e-4)  # alpha(1) of VP is 0.0066, its length 1
    assert path.times.dtype == torch.float64
    times = path.times if path.times.ndim == 2 else path.times[:, None]
    assert (times[0] == VP.T).all()
    assert (times[1:] > times[:-1]).sum() == 0  # rows that correct stay where they are
    assert torch.equal(path.states.isnan().any(2), times.isnan().expand(-1, len(IDS)))
    if s.plan is not None:
        assert path.x0 is not None and path.x0.shape == (len(path.times) - 1, len(IDS), 3)
        assert path.x0.isfinite().all()


@pytest.mark.thirds
@pytest.mark.filterwarnings("ignore:this grid loses", "ignore:.*is not noise alone")  # six steps are few
@pytest.mark.parametrize("solver", ["ddim", "heun", "rk4", "em", "dpmpp-2m", "dpm-3", "unipc", "edm-churn"])
@pytest.mark.parametrize("schedule", [VP, fs.VE(), fs.Flow(), fs.discrete_vp(n=50)], ids=lambda s: type(s).__name__)
def test_times_are_the_knots(solver, schedule):
    if isinstance(schedule, fs.Flow) and solver in ("em", "dpm-3"):  # singular at pure noise, or starts there
        grid = fs.uniform(6, start=0.99, clean=True)
    else:
        grid = fs.uniform(6, clean=True)
    path = fs.trajectory(sampler(solver, schedule, grid=grid), range(2))
    assert np.array_equal(path.times, grid(schedule))


def denoised(x, schedule, t):
    """E[x_0 | x_t = x] of data N(MEAN, STD^2)."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


@pytest.mark.thirds
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp-2m", "em", "rk4"])
@pytest.mark.parametrize("schedule", [VP, fs.VE(), fs.SubVP()], ids=lambda s: type(s).__name__)
def test_estimates_are_those_of_the_states(solver, schedule):
    path = fs.trajectory(sampler(solver, schedule, dtype=torch.float64), range(4))
    assert path.x0 is not None
    for t, x, x0 in zip(path.times.tolist()[:-1], path.states, path.x0, strict=False):
        assert torch.allclose(x0, denoised(x, schedule, t), rtol=1e-7, atol=1e-9)


def test_each_state_follows_from_the_one_before():
    """DDIM by its formula, x_s = alpha_s D + sigma_s / sigma_t (x_t - alpha_t D)."""
    path = fs.trajectory(sampler("ddim", dtype=torch.float64), range(4))
    knots = path.times.numpy()
    alpha, sigma = VP.alpha(knots), VP.sigma(knots)
    for k, x in enumerate(path.states[:-1]):
        D = denoised(x, VP, knots[k])
        expected = alpha[k + 1] * D + sigma[k + 1] / sigma[k] * (x - alpha[k] * D)
        assert torch.allclose(path.states[k + 1], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "schedule", "clean"),
    [
        ("dopri5", VP, True), ("dopri5", fs.VE(), False), ("dopri5", fs.Flow(), True), ("dopri5", fs.EDM(), False),
        ("bs32", fs.TutorialVE(), True), ("bs32", fs.discrete_vp(), False),
        ("dpm23", fs.VE(), True), ("dpm23", VP, False), ("dpm12", fs.discrete_vp(), True), ("dpm12", fs.SubVP(), False),
    ],
)  # fmt: skip
def test_an_adaptive_path_lies_on_the_curve_of_the_ode(solver, schedule, clean):
    """On Gaussian data the probability flow is x_t = alpha m + sqrt(v_t / v_T) (x_T - alpha_T m), exactly."""
    ids, tolerance = IDS[:3], 1e-3
    s = fs.Sampler(
        GAUSSIAN, schedule=schedule, solver=named(solver, rtol=tolerance, atol=tolerance), grid=fs.Span(clean=clean),
        batch=2, dtype=torch.float64,
    )  # fmt: skip
    path, everyone = fs.trajectory(s, ids, SEED), torch.arange(len(ids))
    last = (~path.times.isnan()).sum(0) - 1
    assert torch.equal(last, s.cost.steps - s.cost.rejected + int(clean))
    end = s.grid(schedule)[1]
    assert (path.times[last - int(clean), everyone] == end).all()
    final = path.states[last, everyone]
    if clean:
        assert (path.times[last, everyone] == schedule.t_clean).all()
        before = path.states[last - 1, everyone]
        assert torch.allclose(final, denoised(before, schedule, end), rtol=1e-6, atol=1e-9)
        path.times[last, everyone] = math.nan  # the estimate at the end is no point of the curve
    on = ~path.times.isnan()
    at = path.times.nan_to_num(end).numpy()
    alpha, sigma = (torch.from_numpy(v(at))[..., None] for v in (schedule.alpha, schedule.sigma))
    width = (alpha**2 * STD**2 + sigma**2).sqrt()
    curve = alpha * MEAN + width / width[0] * (path.states[0] - alpha[0] * MEAN)
    error = ((path.states - curve).abs() / (tolerance + tolerance * curve.abs()))[on]
    assert error.max() < 10.0  # each step keeps the tolerance; some dozens of them add up


@pytest.mark.slow
def test_a_stochastic_adaptive_path_has_the_variances_of_the_sde():
    """States at each sample's own times, scaled by the exact moments there, are standard normal."""
    s = fs.Sampler(GAUSSIAN, schedule=VP, solver=named("ggf", rtol=0.05, atol=0.05), batch=1000)
    path = fs.trajectory(s, range(1000))
    steps = s.cost.steps - s.cost.rejected
    assert torch.equal((~path.times.isnan()).sum(0) - 2, steps)
    middle = (steps // 2, torch.arange(1000))
    t, x = path.times[middle].numpy(), path.states[middle].double().numpy()
    alpha, sigma = VP.alpha(t)[:, None], VP.sigma(t)[:, None]
    z = (x - alpha * MEAN) / np.sqrt(alpha**2 * STD**2 + sigma**2)
    assert abs(z.mean()) < 5.0 / math.sqrt(z.size) + 0.02  # and the tolerance of the solver
    assert abs(z.std() - 1.0) < 5.0 / math.sqrt(2 * z.size) + 0.02


@pytest.mark.parametrize("solver", ["heun", "dopri5"])
def test_a_path_does_not_depend_on_its_company(solver):
    whole = fs.trajectory(sampler(solver, batch=4), range(10), SEED)
    some = fs.trajectory(sampler(solver, batch=4), [8, 3], SEED)
    rows = len(some.times)
    assert torch.equal(some.states.nan_to_num(9.0), whole.states[:rows, [8, 3]].nan_to_num(9.0))
    assert whole.states[rows:, [8, 3]].isnan().all()


@pytest.mark.parametrize("solver", ["heun", "dopri5"])
def test_starts_labels_and_equal_ids(solver):
    def net(x, t, cond):
        return 0.1 * cond[:, None] * torch.ones_like(x)

    model = fs.ScoreModel(net, (2,), fs.EDM(0.01, 5.0), fs.Parametrization("x0", "sigma"), classes=9, null=9)
    s = fs.Sampler(model, solver=solver, start="state", batch=2)
    init = torch.arange(8.0).reshape(4, 2)
    fields = {"labels": [1, 2, 3, 4], "init": init}
    path = fs.trajectory(s, [6, 6, 6, 6], **fields)
    assert torch.equal(path.states[0], init)
    assert torch.allclose(ends(path)[0], 0.1 * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None].expand(4, 2), atol=1e-5)
    again = fs.trajectory(s, s.request([6, 6, 6, 6], **fields))
    assert torch.equal(again.states.nan_to_num(), path.states.nan_to_num())
    with pytest.raises(ValueError, match="init = None does not go with start"):
        fs.trajectory(s, [6], labels=1)


def test_none_and_what_has_no_order():
    for solver in ("heun", "dopri5"):
        assert fs.trajectory(sampler(solver), []).states.shape[1:] == (0, 3)
    s = fs.Sampler(GAUSSIAN, schedule=VP, solver="ddim", steps=5, parallel=fs.Picard(window=3))
    with pytest.raises(ValueError, match="callbacks follow the rows in order"):
        fs.trajectory(s, range(3))


def test_one_path_of_the_forward_process_by_transitions():
    """The three lines of TUTORIALS.md: x_t of one Brownian path has the moments of q(x_t | x_0) at every time."""
    schedule, n = fs.SubVP(), 20_000
    times, rng = np.linspace(0.0, 1.0, 6), np.random.default_rng(0)
    x = [np.full(n, 0.7)]
    for s, t in pairwise(times):
        r, v = transition(schedule, s, t)
        x.append(r * x[-1] + np.sqrt(v) * rng.standard_normal(n))
    for t, states in zip(times[1:], x[1:], strict=True):
        mean, std = float(schedule.alpha(t)) * 0.7, float(schedule.sigma(t))
        assert abs(states.mean() - mean) < 5 * std / math.sqrt(n)
        assert abs(states.std() / std - 1) < 5 / math.sqrt(2 * n)
    direct = diffuse(schedule, np.full(n, 0.7), 0.6, rng.standard_normal(n))
    assert abs(direct.mean() - float(schedule.alpha(0.6)) * 0.7) < 5 * float(schedule.sigma(0.6)) / math.sqrt(n)


CHOICES = ([0, 3, -1], [-1], [2, 2, 0], slice(None, None, 4), slice(-3, None), slice(2, -2, 3), [-4, -2], [1, -3], -2)


@pytest.mark.parametrize("solver", ["heun", pytest.param("dopri5", marks=pytest.mark.slow)])
def test_chosen_states_are_those_of_the_whole_path(solver):
    """State by state; an adaptive path has each sample's own numbers, which a loop over samples looks up."""
    s = sampler(solver)
    whole = s.trajectory(IDS, SEED)
    for choice in CHOICES if s.plan else CHOICES[::2]:
        path = s.trajectory(IDS, SEED, steps=choice)
        if whole.times.ndim == 1:
            last = len(whole.times) - 1
            numbers = range(last + 1)[choice] if isinstance(choice, slice) else np.atleast_1d(choice) % (last + 1)
            rows = sorted({int(k) for k in numbers})
            assert torch.equal(path.times, whole.times[rows]) and torch.equal(path.states, whole.states[rows])
            assert path.x0 is not None and whole.x0 is not None
            assert torch.equal(path.x0, whole.x0[[k for k in rows if k < last]])
            continue
        for n in range(len(IDS)):
            there = int((~whole.times[:, n].isnan()).sum())
            if isinstance(choice, slice):
                rows = list(range(there)[choice])
            else:
                given = sorted(set(np.atleast_1d(choice).tolist()), key=lambda k: (k < 0, k))
                rows = [k % there if -there <= k < there else -1 for k in given]
            for k, row in enumerate(rows):
                assert row < 0 or torch.equal(path.states[k, n], whole.states[row, n])
                assert path.times[k, n].isnan() if row < 0 else path.times[k, n] == whole.times[row, n]
            assert path.times[len(rows) :, n].isnan().all() and path.states[len(rows) :, n].isnan().all()


def test_a_choice_that_is_none_is_refused():
    s = sampler("heun")
    for steps in ([], [99], [-99], [0.5], [True], "0,1", slice(None, None, -1), slice(0, 0), 2.5):
        with pytest.raises(ValueError, match="steps = "):
            s.trajectory(range(2), steps=steps)


@pytest.mark.parametrize("solver", ["em", pytest.param("bs32", marks=pytest.mark.slow)])
def test_memory_is_that_of_the_chosen_states(solver, monkeypatch):
    """No tensor on the way holds more states than are kept, but for the micro-batch under way."""
    n, d, batch, largest = 200, 3, 10, 0
    empty, full, cat = torch.empty, torch.full, torch.cat

    def watched(make):
        def made(*args, **kwargs):
            nonlocal largest
            result = make(*args, **kwargs)
            largest = max(largest, result.numel()) if result.is_floating_point() else largest
            return result

        return made

    loose = {"rtol": 1e-2, "atol": 1e-2} if solver == "bs32" else {}
    s = fs.Sampler(GAUSSIAN, schedule=VP, solver=named(solver, **loose), batch=batch)
    for name, make in (("empty", empty), ("full", full), ("cat", cat)):
        monkeypatch.setattr(torch, name, watched(make))
    chosen = s.trajectory(range(n), steps=[0, -1])
    small, largest = largest, 0
    assert chosen.states.shape == (2, n, d)
    whole = s.trajectory(range(n))
    assert small <= 2 * n * d + 16 * batch * d < 0.5 * len(whole.times) * n * d <= largest
