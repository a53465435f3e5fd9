"""Samples of a two-dimensional mixture follow its law, and broken samplers are caught by the same tests.

Each sampler draws 100,000 points. The law of any projection is known exactly, so every test is
against the truth, not against other samples.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from fastscore import plan as plans
from fastscore.engine.loop import Loop
from fastscore.engine.request import Request
from fastscore.execution import Execution
from fastscore.guidance.mixture import BoundPlan
from fastscore.model.analytic import GaussianMixture, score_model
from fastscore.ops.noise import NoiseKey
from fastscore.plan.rows import Plan
from fastscore.process.continuous import EDM, VE, VP, SubVP
from fastscore.process.grid import Grid, logsnr, uniform
from fastscore.solvers import AnnealedLangevin, DPMpp2M, EulerMaruyama, Heun, PredictorCorrector, ReverseDiffusion

N = 100_000
WEIGHTS, MEANS, STDS = np.array([0.5, 0.3, 0.2]), np.array([[-1.0, 0.5], [1.2, 0.2], [0.2, -1.1]]), [0.4, 0.3, 0.5]
TARGET = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in (WEIGHTS, MEANS, STDS)))
DIRECTIONS = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (0.8, -0.6)]

SAMPLERS = {
    "em": (VP(), EulerMaruyama(), logsnr(1000)),
    "pc": (SubVP(), PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(snr=0.1)), uniform(400, clean=True)),
    "ode": (VE(), Heun(), logsnr(100)),
    "dpmpp-2m": (EDM(), DPMpp2M(), Grid("karras", 60, clean=True, rho=7.0)),
}


def draw(name: str, change=None) -> np.ndarray:
    schedule, solver, grid = SAMPLERS[name]
    model = score_model(TARGET)
    plan: Plan = plans.make_plan(solver, schedule, grid(schedule))
    if change is not None:
        plan = change(plan)
    loop = Loop(BoundPlan(plan, model), model, Execution("cpu", 20_000))
    parts = []
    for k in range(0, N, 20_000):
        loop.load(Request(NoiseKey.of(11, range(k, k + 20_000))))
        parts.append(loop.run())
    return torch.cat(parts).double().numpy()


def law(direction: tuple[float, float]):
    """CDF of the target's projection on a direction."""
    centres = MEANS @ np.asarray(direction)
    return lambda v: sum(w * stats.norm.cdf(v, c, s) for w, c, s in zip(WEIGHTS, centres, STDS, strict=True))


def smallest_p(x: np.ndarray) -> float:
    """Bonferroni p-value of two tests along four directions.

    Kolmogorov-Smirnov, and Cramer-von Mises: the energy distance on a line, weighted by the law.
    """
    p = []
    for d in DIRECTIONS:
        along = x @ np.asarray(d)
        p += [stats.kstest(along, law(d)).pvalue, stats.cramervonmises(along, law(d)).pvalue]
    return len(p) * min(p)


def test_the_tests_see_a_component_five_percent_too_wide():
    rng = np.random.default_rng(0)
    k = rng.choice(3, N, p=WEIGHTS)
    z = rng.standard_normal((N, 2))
    assert smallest_p(MEANS[k] + np.asarray(STDS)[k, None] * z) > 1e-3
    assert smallest_p(MEANS[k] + 1.05 * np.asarray(STDS)[k, None] * z) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if name in ("em", "pc") else ()) for name in SAMPLERS]
)  # these two take 500 evaluations and more
def test_samples_follow_the_law(name):
    x = draw(name)
    assert np.isfinite(x).all()
    assert smallest_p(x) > 1e-3


def louder(plan: Plan) -> Plan:
    """Scale all noise but the prior's by 1.05."""
    return replace(plan, rows=(plan.rows[0], *(replace(r, c=1.05 * r.c) for r in plan.rows[1:])))


def late(plan: Plan) -> Plan:
    """Evaluate the network at the time of the row before: an index off by one."""
    times = [r.t for r in plan.rows]
    rows = [replace(r, t=t) for r, t in zip(plan.rows[2:], times[1:-1], strict=True)]
    return replace(plan, rows=(*plan.rows[:2], *rows))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("name", "change"), [("em", louder), ("pc", louder), ("ode", late), ("dpmpp-2m", late)])
def test_broken_samplers_are_rejected(name, change):
    assert smallest_p(draw(name, change)) < 1e-6
