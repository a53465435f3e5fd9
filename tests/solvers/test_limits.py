"""What solvers become where an option is at its limit, and what else they share with one another."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import textbook_exponential as fast
import textbook_rows as rows
import torch
from cases import SETTINGS
from checks import DENOISER, MODEL, NOISE, N

import fastscore as fs
from fastscore.process.grid import Times
from fastscore.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    LMS,
    SEEDS,
    DPMMultistep,
    DPMSolver,
    GradientEstimation,
    HeunPP,
    InSigma,
)
from fastscore.solvers.adams_weights import A, B, tab_moments, vp_time
from fastscore.solvers.names import named

# A few steps between given times, which lose what the warnings say.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


KNOTS = np.array([0.9, 0.4, 0.1])


def run(solver, setting, knots=None):
    """Samples from recorded noise, float64."""
    here = SETTINGS[setting]
    knots = here.knots if knots is None else knots
    sampler = fs.Sampler(
        MODEL, schedule=here.schedule, solver=solver, grid=Times(tuple(knots)), batch=N, dtype=torch.float64
    )
    return sampler.run(range(N), noise=torch.from_numpy(NOISE[: sampler.plan.draws])).numpy()


def difference(one, other, setting, knots=None):
    """Largest difference of the samples of two solvers, as a share of the largest sample."""
    ours, theirs = run(one, setting, knots), run(other, setting, knots)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


SAME = [
    (SEEDS(2, 0.0, 0.3), DPMSolver(2, "x0", r=0.3)),
    (SEEDS(3, 0.0), DPMSolver(3, "x0")),
    (ERSDE(1, "ode"), DDIM()),
    (ERSDE(1, "sde"), DPMMultistep(1, "x0", "exact", 1.0)),
    (ERSDE(3, 2.0), ERSDE(3, "sde")),
    (ERSDE(1, 1.25), DPMMultistep(1, "x0", "exact", 0.5)),
    (ERSDE(1, "sde_2"), DPMMultistep(1, "x0", "exact", math.sqrt(0.5))),
    (ERSDE(1, "sde_3"), DPMMultistep(1, "x0", "exact", math.sqrt(1.5))),
    (ERSDE(2, form="taylor"), ERSDE(2)),  # two evaluations have no other slope
    (DPMMultistep(2, "x0", "exact", 0.0, noise="split"), DPMMultistep(2)),
    (DPMMultistep(2, "x0", "exact", 1.0, noise="split"), DPMMultistep(2, "x0", "exact", 1.0)),
    (GradientEstimation(1.0), DDIM()),
    (DEIS(1, "tab"), DDIM()),
    (LMS(2, form="ipndm-v"), LMS(2)),
    (InSigma(DDIM()), DDIM()),
    (InSigma(fs.Euler()), DDIM()),
]


def test_limits():
    for k, (one, other) in enumerate(SAME):
        for setting in (
            "flow-from-noise",
            "edm" if isinstance(one, InSigma) else ("vp-linear", "subvp", "pair")[k % 3],
        ):
            error = difference(one, other, setting)
            assert error < 1e-12, f"{one} is not {other} on {setting}: {error:.2g}"


@pytest.mark.slow
def test_flows_in_sigma_from_pure_noise():
    """ComfyUI's loops, which start at sigma = 1 as anywhere; ancestral noise as it is there, without alpha."""
    here = SETTINGS["flow-from-noise"]
    for solver, loop in (
        (GradientEstimation(), partial(rows.gradient_estimation, gamma=2.0)),
        (DEIS(3, "tab"), partial(rows.deis_tab, order=3)),
        (HeunPP(), rows.heun_plus_plus),
        (fs.Heun(), partial(fast.one_step, step=fast.heun)),
        (DPMMultistep(2, "x0", "exact", 1.0, noise="split"), partial(rows.res_multistep, eta=1.0)),
    ):
        theirs = rows.in_sigma(here.process, DENOISER, np.array(here.knots), NOISE[0], iter(NOISE[1:]), loop)
        np.testing.assert_allclose(
            run(InSigma(solver), "flow-from-noise"), theirs, rtol=0, atol=1e-12, err_msg=f"{solver}"
        )
    assert difference(InSigma(LMS()), LMS(), "flow") > 1e-4
    churned = InSigma(fs.Churn(fs.Euler(), high=1.0)).steps(fs.Flow(), KNOTS)
    assert churned[0][0].s == 1.0  # the flow's T, where 0.9 sqrt(2) is more


def test_options_differ():
    """Each option changes the samples: none is left out on its way to the rows."""
    for one, other in (
        (SEEDS(2, 0.0, form="phi_2"), SEEDS(2, 0.0)),
        (SEEDS(3, 0.0, (0.2, 0.9)), SEEDS(3, 0.0)),
        (ERSDE(3, form="taylor"), ERSDE(3)),
        (ERSDE(3, points=100), ERSDE(3)),
        (DEIS(3, "tab"), DEIS(3)),
        (DEIS(3, "tab", points=10), DEIS(3, "tab")),
        (LMS(3, form="ipndm-v"), LMS(3)),
        (DPMMultistep(2, "x0", "exact", 0.5, noise="split"), DPMMultistep(2, "x0", "exact", 0.5)),
        (GradientEstimation(1.5), GradientEstimation()),
    ):
        assert difference(one, other, "vp-linear") > 1e-5, one


def test_weights_of_ipndm_v_are_adams_bashforths_on_even_steps_and_of_order_3_alone():
    levels = tuple(np.linspace(8.0, 0.5, 12))
    assert difference(LMS(3, form="ipndm-v"), LMS(3), "edm", levels) < 1e-12
    assert difference(LMS(4, form="ipndm-v"), LMS(4), "edm", levels) > 1e-4
    uneven = (*levels[:5], *levels[6:])
    assert difference(LMS(3, form="ipndm-v"), LMS(3), "edm", uneven) > 1e-4


def test_sums_converge_to_the_integrals_at_first_order():
    for solver in (ERSDE(3), DEIS(4, "tab")):
        errors = [difference(replace(solver, points=n), solver, "vp-linear") for n in (400, 800)]
        assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.05), solver


def test_variances_below_the_floor_are_none():
    """On steps so short that all are; the mean stays that of the SDE."""
    knots = np.linspace(0.02, 0.0199, 6)
    plan = fs.Sampler(MODEL, schedule=fs.EDM(), solver=ERSDE(2, floor=1e-6), grid=Times(tuple(knots))).plan
    with_noise = fs.Sampler(MODEL, schedule=fs.EDM(), solver=ERSDE(2), grid=Times(tuple(knots))).plan
    assert plan.draws == 1 and with_noise.draws == 6
    assert [row.a for row in plan.rows] == [row.a for row in with_noise.rows]


def test_integrals_of_long_and_short_steps_are_exact():
    """A polynomial in rho of the order's degree, integrated: D = rho^2 has y = rho^2 - .., whatever the step."""
    for scale in ("sde", "sde_2"):
        power = {"sde": 2.0, "sde_2": 1.5}[scale]
        for high, low in ((1000.0, 1e-3), (2.0, 1.999999), (0.5, 0.02)):
            k = (low / high) ** power
            moments = ERSDE(3, scale)._moments(high, low, k, 3)
            # int_k^1 (v - high)^j dq with q = (low / v)^power, by the powers of v
            first, second = (
                power * low**power * (low ** (j - power) - high ** (j - power)) / (power - j)
                if j != power
                else power * low**power * math.log(high / low)
                for j in (1.0, 2.0)
            )
            span, total = low - high, 1.0 - k
            exact = [total, (first - high * total) / span, (second - 2 * high * first + high**2 * total) / span**2]
            np.testing.assert_allclose(moments, exact, rtol=0, atol=1e-13 / min(1.0, (1.0 - low / high) ** 2))


def test_means_over_time_are_exact_on_long_steps():
    for high, low in ((80.0, 0.002), (1000.0, 1e-3), (2.0, 1.999)):
        start, end = vp_time(np.array([high, low]))
        nodes, weights = np.polynomial.legendre.leggauss(20)
        edges = np.geomspace(start, end, 200)  # in time, where the quadrature has rho
        middle, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
        time, share = (middle[:, None] + half[:, None] * nodes), half[:, None] * weights
        growth = A * time**2 + B * time
        share = share * 0.5 * (2.0 * A * time + B) * np.exp(growth) / np.sqrt(np.expm1(growth)) / (low - high)
        exact = [np.sum(((time - start) / (end - start)) ** j * share) for j in range(4)]
        np.testing.assert_allclose(tab_moments(high, low, 4, 0), exact, rtol=0, atol=1e-11)


def test_names():
    assert ERSDE().order == 3
    assert named("er-sde") == named("er_sde_3") == ERSDE(3)
    assert (named("er-sde-1"), named("er-sde-2")) == (ERSDE(1), ERSDE(2))
    assert named("seeds-2", eta=0.5) == SEEDS(2, 0.5)
    assert (named("seeds-3"), named("seeds-3", eta=0.0)) == (SEEDS(3, 1.0), SEEDS(3, 0.0))
    assert named("exp_heun_2_x0") == SEEDS(2, 0.0, 1.0, "phi_2")
    assert named("exp-heun-2-x0-sde") == SEEDS(2, 1.0, 1.0, "phi_2")
    assert named("res-2s") == SEEDS(2, 0.0, form="phi_2")
    assert named("res-multistep") == DPMMultistep(2, "x0", "exact", reach=0.5 * math.pi)
    assert named("res-multistep-ancestral", eta=0.5) == DPMMultistep(2, "x0", "exact", 0.5, noise="split")
    assert named("dpmpp-2m-sde-heun") == DPMMultistep(2, "x0", "exact", 1.0)
    assert named("ipndm-v") == named("lms") == LMS(reach=0.5 * math.pi)
    assert named("deis-tab") == DEIS(3, "tab")
    assert named("gradient-estimation") == GradientEstimation()
    assert named("heunpp2") == HeunPP()
    assert named("seeds-2", s_noise=0.9) == fs.ScaledNoise(SEEDS(2), 0.9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SEEDS(1), "order = 1 must be 2 or 3"),
        (lambda: SEEDS(2, -1.0), "eta = -1.0 must be at least 0"),
        (lambda: SEEDS(2, r=0.0), "r = 0.0 of order 2 must be a number in 0 .. 1"),
        (lambda: SEEDS(2, r=1.1), "r = 1.1"),
        (lambda: SEEDS(2, r=math.nan), "r = nan"),
        (lambda: SEEDS(2, r=(0.3, 0.6)), "must be a number"),
        (lambda: SEEDS(3, r=0.5), "must be a rising pair"),
        (lambda: SEEDS(3, r=(0.6, 0.3)), "must be a rising pair"),
        (lambda: SEEDS(3, form="phi_2"), "form = 'phi_2' must be phi_1"),
        (lambda: SEEDS(form="phi_3"), "phi_1 or, of order 2, phi_2"),
        (lambda: ERSDE(4), "order = 4 must lie in 1 .. 3"),
        (lambda: ERSDE(noise_scale="sde_6"), "must be one of ode, sde, sde_1"),
        (lambda: ERSDE(noise_scale=0.9), "power of rho from 1 on"),
        (lambda: ERSDE(noise_scale=math.nan), "noise_scale = nan"),
        (lambda: ERSDE(form="newton"), "exact or taylor"),
        (lambda: ERSDE(points=-1), "points = -1"),
        (lambda: ERSDE(floor=-1.0), "floor = -1.0"),
        (lambda: ERSDE(2, "sde_4").steps(fs.EDM(0.1, 9000.0), np.array([9000.0, 3000.0, 5.0])), "falls at rho = 9000"),
        (lambda: GradientEstimation(-1.0), "gamma = -1.0"),
        (lambda: DEIS(basis="tab", points=1), "points = 1 must be 0 or"),
        (lambda: DEIS(points=10000), "with basis='tab'"),
        (lambda: DEIS(basis="tab", lower_order_final=True), "leave it out with tab"),
        (lambda: LMS(form="paper"), "exact or ipndm-v"),
        (lambda: DPMMultistep(2, "eps", noise="split"), "split with prediction x0"),
        (lambda: DPMMultistep(2, eta=1.5, noise="split"), "eta = 1.5 must lie in 0 .. 1"),
        (lambda: DPMMultistep(noise="tree"), "noise = 'tree' must be sde"),
        (lambda: InSigma(fs.DDPM).steps(fs.Flow(), KNOTS), "takes solvers; "),
        (lambda: InSigma(fs.ReverseDiffusion()).steps(fs.Flow(), KNOTS), "steps in the score"),
        (lambda: InSigma(fs.Euler()).steps(fs.Flow(shift=3.0), KNOTS), "has a shift"),
        (lambda: named("er-sde", eta=0.5), "eta belongs to the solvers ddim, sa, "),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
