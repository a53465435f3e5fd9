"""Adaptive solvers with nothing but defaults: exact mean and spread of Gaussian data, on every schedule."""

from __future__ import annotations

import math

import pytest
import torch
from gated import one_in

from fastscore.model import analytic
from fastscore.process.beta import CosineBeta
from fastscore.process.continuous import EDM, VE, VP, Flow, SubVP, Trig, TutorialVE
from fastscore.process.discrete import discrete_vp
from fastscore.process.grid import Span
from fastscore.process.schedule import t_of_lam
from fastscore.sampler import Sampler
from fastscore.solvers import BogackiShampine, Dopri5, DPMAdaptive

SCHEDULES = {
    "vp": VP(), "sub-vp": SubVP(), "ve": VE(), "tutorial ve": TutorialVE(), "edm": EDM(), "flow": Flow(),
    "trig": Trig(), "cosine": VP(CosineBeta(), t_end=1e-3), "linear table": discrete_vp(),
}  # fmt: skip
SOLVERS = [Dopri5(), DPMAdaptive(3), BogackiShampine(), DPMAdaptive(2)]
QUICK = {(0, name, 0.3) for name in SCHEDULES} | {(1, "vp", 0.3), (1, "edm", 0.3)}
SETTINGS = one_in(
    2,
    [
        pytest.param(solver, name, mean, std, marks=() if (k, name, std) in QUICK else pytest.mark.slow)
        for k, solver in enumerate(SOLVERS)
        for name in SCHEDULES
        for mean, std in ((0.5, 0.3), (0.0, 1.0))
    ],
)


def moments(solver: object, name: str, mean: float, std: float, **kw) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean, std) of the samples and of the exact flow from the same prior over the same span.

    The flow of Gaussian data is affine, x = m + s z, so the samples of z = 1 and -1 have both moments.
    """
    schedule = SCHEDULES[name]
    model = analytic.score_model(analytic.gaussian(mean, std, (1,)))
    s = Sampler(model, schedule=schedule, solver=solver, dtype=torch.float64, batch=2, **kw)
    z = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    up, down = s.run(range(2), noise=z)[:, 0]
    start, end = s.grid(schedule)
    (a, b), (a_0, b_0) = ((float(schedule.alpha(t)), float(schedule.sigma(t))) for t in (start, end))
    top = math.hypot(float(schedule.alpha(schedule.T)), float(schedule.sigma(schedule.T)))
    x = z.flatten() * schedule.prior_std / top * math.hypot(a, b)
    s_T, s_0 = math.hypot(std * a, b), math.hypot(std * a_0, b_0)
    x = a_0 * mean + s_0 / s_T * (x - a * mean)
    D = mean + a_0 * std**2 / s_0**2 * (x - a_0 * mean)  # the denoised end
    return torch.stack([up + down, up - down]) / 2.0, torch.stack([D[0] + D[1], D[0] - D[1]]) / 2.0


@pytest.mark.thirds
@pytest.mark.parametrize(("solver", "name", "mean", "std"), SETTINGS)
def test_defaults_are_within_their_tolerance(solver, name, mean, std):
    found, exact = moments(solver, name, mean, std)
    bound = solver.atol + solver.rtol * exact.abs()
    assert ((found - exact).abs() <= bound).all(), (found - exact) / bound


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["flow", "zero-SNR table"])
def test_no_sample_leaps_over_what_decides_it(order, name):
    """From pure noise, where every step is right, some steps grew until two orders agreed by chance on nonsense."""
    schedule = Flow() if name == "flow" else discrete_vp(zero_snr=True)
    model = analytic.score_model(analytic.gaussian(0.5, 0.3, (2,)))
    ours, exact = (
        Sampler(model, schedule=schedule, solver=solver, batch=64, dtype=torch.float64).run(range(256))
        for solver in (DPMAdaptive(order), Dopri5())
    )
    assert (ours - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", ["vp", "ve", "edm"])
def test_data_come_out_as_wide_as_they_are_where_the_span_ends_low(name):
    """The denoised end is narrower by (sigma / std)^2 / 2 of itself; what is left then is the prior's own error."""
    end = float(t_of_lam(SCHEDULES[name], math.log(1e3))[0])
    found, exact = moments(Dopri5(), name, 0.5, 0.3, grid=Span(end=end))
    assert abs(float(found[1]) / 0.3 - 1.0) < 5e-5
    assert abs(float(exact[1]) / 0.3 - 1.0) < 5e-5
