"""fastscore's own solvers pass, at their declared order where they are deterministic."""

from __future__ import annotations

import pytest
from gated import NIGHTLY, SLOW, one_in

import fastscore as fs
from bench.studies.default_grids import TABLED
from fastscore.conformance import check
from fastscore.solvers.names import _NOISY, named

SCHEDULES = {
    "vp": (fs.VP(), "eps", fs.logsnr),
    "edm": (fs.EDM(), "x0", fs.karras),
    "flow": (fs.Flow(), "flow", lambda n: fs.logsnr(n, start=0.99)),
    "ve": (fs.VE(), "score", fs.logsnr),
    "subvp": (fs.SubVP(), "v", fs.logsnr),
}
# Those with a grid whose end is sigma = 0 and whose samples of a score network keep its marginals, unguided.
PLANNED = list(TABLED)


def ours(schedule, prediction, solver, grid):
    def run(net, n, seed, steps):
        model = fs.ScoreModel(
            net=lambda u, c_noise, cond: net(u, c_noise),
            shape=net.shape,
            schedule=schedule,
            parametrization=fs.Parametrization(prediction, exact=True),
        )
        return fs.Sampler(model, solver=solver, grid=grid(steps), batch=n).run(ids=range(n), seed=seed)

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", one_in(5, PLANNED))
def test_solver(name):
    """Each on one of the schedules, another one from solver to solver."""
    schedule, prediction, grid = list(SCHEDULES.values())[PLANNED.index(name) % len(SCHEDULES)]
    solver = named(name)
    order = 1.0 if name in _NOISY else float(getattr(solver, "order", 2.0))  # DPM-Solver-fast mixes orders
    report = check(
        ours(schedule, prediction, solver, grid),
        schedule,
        prediction=prediction,
        stochastic=name in _NOISY,
        order=order,
        knots=None if name in ("edm-churn", "dpm-fast") else lambda n: grid(n)(schedule),
        steps=16 if order < 4.0 else 32,  # behind the first steps of a lower order
        seed=1,
    )
    assert report.ok, report


@pytest.mark.slow
def test_samples_of_fastscore_are_keyed_and_exact_on_a_point():
    fn = ours(fs.VP(), "eps", fs.DPMpp2M(), fs.logsnr)
    report = check(fn, fs.VP(), order=2, keyed=True, exact_on_point=True, steps=16)
    assert report.ok, report


@pytest.mark.parametrize("steps", [pytest.param(32, marks=SLOW), pytest.param(256, marks=NIGHTLY)])
def test_score_sdes_last_step_leaves_its_noise_at_few_steps(steps):
    """It is as long as all others, dt = 1/N from t_end, and a step before it brings noise of that size."""
    fn = ours(fs.VP(), "score", named("score-sde"), fs.uniform)
    report = check(fn, fs.VP(), prediction="score", stochastic=True, end=1e-3, steps=steps)
    assert report.ok if steps > 32 else report.failures[0].check == "last step", report
