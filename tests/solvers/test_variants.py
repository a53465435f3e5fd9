"""Published variants as options, against plain loops: orders at the end, strides, last steps, noise."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import textbook
import textbook_exponential as fast
import torch
from cases import SETTINGS
from checks import DENOISER, MODEL, NOISE, N, moments

import fastscore as fs
from fastscore.model.analytic import gaussian, score_model
from fastscore.plan import NORMS, make_plan
from fastscore.process.grid import Times
from fastscore.solvers import AncestralSplit, Churn, DPMMultistep, EulerMaruyama, StochasticHeun, UniPC
from fastscore.solvers.unipc import TauWindow

# A few steps between given times, which lose what the warnings say: both loops lose it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def run(solver, setting, knots):
    """Samples from recorded noise, float64; the plan uses all the draws it is given."""
    sampler = fs.Sampler(
        MODEL, schedule=SETTINGS[setting].schedule, solver=solver, grid=Times(tuple(knots)), batch=N,
        dtype=torch.float64,
    )  # fmt: skip
    return sampler.run(range(N), noise=torch.from_numpy(NOISE[: sampler.plan.draws])).numpy()


def close(ours, theirs, tolerance=1e-11):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


# --- orders at the end ------------------------------------------------------------------------


def orders(solver, n, schedule=None, clean=False, start=None):
    """Evaluations that each step of a plan uses."""
    schedule = fs.VP() if schedule is None else schedule
    t = fs.uniform(n, start=start, clean=clean)(schedule)
    return [sum(w != 0.0 for w in row.w) + (row.b != 0.0) for row in make_plan(solver, schedule, t).rows[1:]]


@pytest.mark.parametrize("prediction", ["x0", "eps"])
@pytest.mark.parametrize("form", ["exact", "paper", "k-diffusion", "diffusers", "diffusers-heun"])
def test_orders_fall_in_runs_of_fewer_than_15_steps(form, prediction):
    def of(n, lower=True, **more):
        return orders(DPMMultistep(3, prediction, form, lower_order_final=lower), n, **more)

    assert of(14) == [1, 2, *[3] * 10, 2, 1]
    assert of(15) == [1, 2, *[3] * 13]
    assert of(14, clean=True) == [1, 2, *[3] * 10, 2, 1]  # the last one is D
    assert of(15, clean=True) == [1, 2, *[3] * 12, 1]
    assert of(14, schedule=fs.Flow(), clean=True) == [1, 1, 2, *[3] * 9, 2, 1]  # a step from pure noise first
    assert of(9, lower=10) == [1, 2, *[3] * 5, 2, 1]
    assert of(10, lower=10) == [1, 2, *[3] * 8]
    assert of(40, lower=100)[-3:] == [3, 2, 1]
    assert [of(n) for n in (1, 2, 3)] == [[1], [1, 1], [1, 2, 1]]


def test_other_solvers_lower_their_orders_by_their_own_rules():
    assert orders(fs.DEIS(4, lower_order_final=True), 6) == [1, 2, 3, 3, 2, 1]
    assert orders(fs.DEIS(3, lower_order_final=True), 20)[-2:] == [3, 3]
    assert orders(DPMMultistep(3, euler_at_final=True), 20)[-2:] == [3, 1]
    assert orders(DPMMultistep(3, euler_at_final=True), 3) == [1, 2, 1]
    # A corrected step also reads what the step before it has predicted with.
    predictor = UniPC(3, lower_order_final=True, disable_corrector=tuple(range(30)))
    assert orders(predictor, 30) == [1, 2, *[3] * 26, 2, 1]
    assert orders(fs.SASolver(3, 0, lower_order_final="comfyui"), 30) == [1, 2, *[3] * 26, 2, 1]
    assert orders(fs.SASolver(3, 0, lower_order_final="diffusers"), 4, clean=True) == [1, 2, 1, 1]


@pytest.mark.parametrize("setting", ["vp-linear", "edm", "flow-from-noise"])
def test_lowered_orders_reach_the_samples(setting):
    """Two steps to clean data are DDIM and D with any solver; of five the middle ones have their order."""
    for solver in (DPMMultistep(3, lower_order_final=True), UniPC(lower_order_final=True)):
        for n in (1, 2, 5):
            knots = SETTINGS[setting].knots[:n] + SETTINGS[setting].knots[-1:]
            change = np.abs(run(solver, setting, knots) - run(fs.DDIM(), setting, knots)).max()
            assert change > 1e-3 if n == 5 else change < 1e-12


@pytest.mark.parametrize(
    ("order", "n", "lower", "clean", "expected"),  # get_order_list of diffusers' singlestep scheduler
    [
        (3, 9, True, False, [1, 2, 3, 1, 2, 3, 1, 2, 1]),
        (3, 10, True, False, [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]),
        (3, 8, True, False, [1, 2, 3, 1, 2, 3, 1, 2]),
        (2, 6, True, False, [1, 2, 1, 2, 1, 1]),
        (2, 7, True, False, [1, 2, 1, 2, 1, 2, 1]),
        (1, 3, True, False, [1, 1, 1]),
        (3, 9, False, False, [1, 2, 3] * 3),
        (2, 6, False, False, [1, 2] * 3),
        (3, 9, True, True, [1, 2, 3, 1, 2, 3, 1, 2, 1]),
        (3, 10, True, True, [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]),
        (3, 8, True, True, [1, 2, 3, 1, 2, 3, 1, 1]),
        (2, 6, True, True, [1, 2, 1, 2, 1, 1]),
    ],
)
@pytest.mark.parametrize("form", ["exact", "midpoint"])
def test_orders_of_single_steps_on_the_grid(order, n, lower, clean, expected, form):
    if form == "midpoint" and order != 3:
        form = "exact"
    solver = fs.DPMSolver(order, "x0", on_grid=True, form=form, lower_order_final=lower)
    assert orders(solver, n, clean=clean) == expected


def test_a_step_without_correction_is_unip():
    """All corrections off, UniPC in bh2 of order 2 is DPM-Solver++(2M), whose slope has half of 1 - e^-H too."""
    knots = SETTINGS["vp-linear"].knots
    off = UniPC(2, "bh2", disable_corrector=tuple(range(len(knots))))
    close(run(off, "vp-linear", knots), run(fs.DPMpp2M(), "vp-linear", knots), 1e-13)
    corrected = run(UniPC(2, "bh2"), "vp-linear", knots)
    assert np.abs(run(off, "vp-linear", knots) - corrected).max() > 1e-3


def test_disabled_corrections_are_counted_from_the_first_step_of_the_run():
    """The step from pure noise is step 0, and has no correction to disable."""
    t = fs.uniform(5)(fs.Flow())
    rows = {off: make_plan(UniPC(2, disable_corrector=off), fs.Flow(), t).rows for off in ((), (0,), (1,))}
    assert rows[()] == rows[(0,)]
    assert rows[()][:3] == rows[(1,)][:3]
    assert rows[()][3] != rows[(1,)][3]


# --- the third order of DPM++ -----------------------------------------------------------------


def dpmpp_3m_sde(process, D, times, x, z, eta):
    """k-diffusion's sample_dpmpp_3m_sde; its eta is the square of ours."""
    y, rho = x / process.alpha(times[0]), [process.sigma(t) / process.alpha(t) for t in times]
    old, widths = [], []
    for high, low in pairwise(rho):
        x0 = D(y, 1.0, high)
        if low == 0.0:
            return process.alpha(times[-1]) * x0
        h = math.log(high / low)
        H = h * (1.0 + eta)
        y = math.exp(-H) * y + (1.0 - math.exp(-H)) * x0
        phi2 = (math.exp(-H) - 1.0) / H + 1.0
        if len(old) == 1:
            y = y + phi2 * (x0 - old[0]) / (widths[0] / h)
        if len(old) > 1:
            r0, r1 = widths[0] / h, widths[1] / h
            first, second = (x0 - old[0]) / r0, (old[0] - old[1]) / r1
            d1 = first + (first - second) * r0 / (r0 + r1)
            y = y + phi2 * d1 - (phi2 / H - 0.5) * (first - second) / (r0 + r1)
        if eta:
            y = y + low * math.sqrt(1.0 - math.exp(-2.0 * h * eta)) * next(z)
        old, widths = [x0, *old], [h, *widths]
    return process.alpha(times[-1]) * y


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("setting", ["edm", "vp-linear", "flow", "ddpm-table"])
def test_k_diffusions_3m(setting, eta):
    here = SETTINGS[setting]
    theirs = dpmpp_3m_sde(here.process, DENOISER, here.knots, here.prior * NOISE[0], iter(NOISE[1:]), eta**2)
    close(run(DPMMultistep(3, "x0", "k-diffusion", eta), setting, here.knots), theirs)
    other = run(DPMMultistep(3, "x0", "exact", eta), setting, here.knots)
    assert np.abs(other - theirs).max() > 1e-6  # the right form is another one


def variance_error(solver, n):
    """Relative error of the variance on Gaussian data, from pure noise on VP to a small one."""
    t = fs.logsnr(n, end=0.02, clean=False)(fs.VP())
    plan = fs.Sampler(GAUSSIAN, schedule=fs.VP(), solver=solver, grid=Times(tuple(t))).plan
    (alpha, alpha_s), (sigma, sigma_s) = fs.VP().alpha(t[[0, -1]]), fs.VP().sigma(t[[0, -1]])
    found = moments(plan, 0.0, (0.6 * alpha) ** 2 + sigma**2)[1]
    exact = (0.6 * alpha_s) ** 2 + sigma_s**2
    return abs(found / exact - 1.0)


GAUSSIAN = score_model(gaussian(0.7, 0.6, (1,)))  # as checks.moments assumes


def test_diffusers_sign_leaves_first_order():
    """The quadratic term does not vanish with the step; the other forms are second order in the variance."""
    errors = {
        form: [variance_error(DPMMultistep(3, "x0", form, 1.0), n) for n in (40, 80, 160)]
        for form in ("diffusers", "k-diffusion", "paper", "exact")
    }
    heun = [variance_error(DPMMultistep(3, "x0", "diffusers-heun", 1.0), n) for n in (40, 80, 160)]
    rates = {form: math.log2(e[1] / e[2]) for form, e in errors.items()}
    assert 0.8 < rates["diffusers"] < 1.3
    assert all(rates[form] > 1.8 for form in ("k-diffusion", "paper", "exact"))
    assert 0.8 < math.log2(heun[1] / heun[2]) < 1.3
    assert errors["diffusers"][2] > 5.0 * max(errors[form][2] for form in ("k-diffusion", "paper", "exact"))
    assert DPMMultistep(3, "x0", "diffusers").steps(fs.VP(), fs.uniform(5)(fs.VP())) == DPMMultistep(
        3, "x0", "paper"
    ).steps(fs.VP(), fs.uniform(5)(fs.VP()))


# --- single steps -----------------------------------------------------------------------------


def dpmpp_sde_split(D, y, high, low, z, eta, r):
    """k-diffusion's sample_dpmpp_sde: two ancestral splits from the same start."""
    if low == 0.0:
        return D(y, 1.0, high)
    middle, factor = high ** (1.0 - r) * low**r, 1.0 / (2.0 * r)
    x0 = D(y, 1.0, high)

    def split(level, estimate):
        up = min(level, eta * math.sqrt(level**2 * (high**2 - level**2) / high**2))
        down = math.sqrt(level**2 - up**2)
        return down / high * y + (1.0 - down / high) * estimate + up * next(z)

    inside = D(split(middle, x0), 1.0, middle)
    return split(low, (1.0 - factor) * x0 + factor * inside)


@pytest.mark.parametrize(("eta", "r"), [(1.0, None), (0.7, 0.3), (1.2, 0.6)])
@pytest.mark.parametrize("setting", ["edm", "vp-linear", "flow"])
def test_dpmpp_sde_by_the_split(setting, eta, r):
    here = SETTINGS[setting]

    def step(D, y, high, low, z):
        return dpmpp_sde_split(D, y, high, low, z, eta, r or 0.5)

    theirs = fast.one_step(here.process, DENOISER, here.knots, here.prior * NOISE[0], iter(NOISE[1:]), step)
    close(run(fs.DPMSolver(2, "x0", eta, r=r, noise="split"), setting, here.knots), theirs)


@pytest.mark.thirds
@pytest.mark.parametrize("r", [0.25, 0.8])
@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_any_intermediate_point_is_second_order(prediction, r):
    errors = [variance_error(fs.DPMSolver(2, prediction, r=r), n) for n in (32, 64, 128)]
    assert abs(math.log2(errors[1] / errors[2]) - 2.0) < 0.2
    assert errors[2] != variance_error(fs.DPMSolver(2, prediction), 128)


# --- indices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "spacing"), [(3, "linspace"), (5, "trailing"), (4, "leading"), (3, "leading")])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_with_a_fixed_stride(n, spacing, to_one, eta):
    """diffusers' DDIM: down to t - N // n from wherever a step starts, and x is relabelled there."""
    here = SETTINGS["ddpm-table"]  # 8 levels
    starts = fs.indices(n, spacing)(here.schedule)[:-1]
    x, z = NOISE[0], iter(NOISE[1:])
    for t in starts:
        s = t - 8 // n
        s = s if s >= 0.0 else -1.0 if to_one else 0.0
        bar, bar_s = here.process.alpha(t) ** 2, here.process.alpha(s) ** 2
        x0 = DENOISER(x, math.sqrt(bar), math.sqrt(1.0 - bar))
        eps = (x - math.sqrt(bar) * x0) / math.sqrt(1.0 - bar)
        std = eta * math.sqrt(max((1.0 - bar_s) / (1.0 - bar) * (1.0 - bar / bar_s), 0.0))
        x = math.sqrt(bar_s) * x0 + math.sqrt(max(1.0 - bar_s - std**2, 0.0)) * eps
        x = x + std * next(z) if std > 0.0 else x
    close(run(fs.DDIM(eta, fixed_stride=True, set_alpha_to_one=to_one), "ddpm-table", [*starts, -1.0]), x)


def test_a_fixed_stride_is_the_grid_where_they_agree():
    grid = fs.indices(4, "leading")
    table = SETTINGS["ddpm-table"].schedule
    rows = [make_plan(s, table, grid(table)).rows for s in (fs.DDIM(0.5), fs.DDIM(0.5, fixed_stride=True))]
    assert rows[0] == rows[1]


# --- the last step of Euler-Maruyama ----------------------------------------------------------


def tutorial(process, D, x, z, times, corrector):
    """The sampler of the score-SDE tutorial: correct, then predict, at the same time; the last mean is returned."""
    h = times[0] - times[1]
    for t in times:
        if corrector:
            x = corrector(t, x, z)
        s = textbook.score(process, D, t, x)
        mean = x - h * (process.f(t) * x - process.g2(t) * s)
        x = mean + math.sqrt(process.g2(t) * h) * next(z)
    return mean


@pytest.mark.parametrize("setting", ["tutorial-ve", "vp-cosine", "subvp", "flow", "ve"])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_tutorials_samplers_on_any_schedule(setting, corrected):
    here = SETTINGS[setting]
    times = np.linspace(here.knots[0], here.knots[-2], 6)
    h = times[0] - times[1]

    def langevin(t, x, z):
        score = textbook.score(here.process, DENOISER, t, x)
        norm = np.linalg.norm(score, axis=1).mean()
        later = t - h if t > times[-1] + 0.5 * h else here.knots[-1]
        alpha = (here.process.alpha(t) / (1.0 if later == here.knots[-1] else here.process.alpha(later))) ** 2
        step = 2.0 * alpha * (0.16 * math.sqrt(x.shape[1]) / norm) ** 2
        return x + step * score + math.sqrt(2.0 * step) * next(z)

    theirs = tutorial(here.process, DENOISER, here.prior * NOISE[0], iter(NOISE[1:]), times, corrected and langevin)
    solver = EulerMaruyama(final="mean")
    if corrected:
        solver = fs.PredictorCorrector(solver, fs.Langevin(norm="tutorial"), corrector_first=True)
    close(run(solver, setting, [*times, here.knots[-1]]), theirs)


def test_the_tutorials_langevin_step_has_no_bound():
    caps = {norm: fs.Langevin(norm=norm).rows(fs.VP(), 0.5, 0.4)[0].langevin.cap for norm in NORMS}
    assert caps.pop("tutorial") == math.inf
    assert [*caps.values()] == pytest.approx([1.0] * 3)


def std_of(solver, schedule, grid, std, prior=None):
    model = score_model(gaussian(0.0, std, (1,)))
    rows = fs.Sampler(model, schedule=schedule, solver=solver, grid=grid).plan.rows
    variance = 0.0
    for row in rows:  # one evaluation a row and no history: x' = (a + b (p + q gain c_in)) x + c z
        alpha, sigma = math.cos(row.c_noise), math.sin(row.c_noise)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        slope = 0.0 if math.isnan(row.p) else row.p + row.q * gain * row.c_in
        variance = (row.a + row.b * slope) ** 2 * variance + row.c**2
    return math.sqrt(variance)


def test_the_tutorials_last_step_by_its_numbers():
    """Gaussian of std 0.1, dx = 25^t dw, 500 steps: the mean of the last step, Tweedie's estimate, and x at t_end."""
    times, variance = np.linspace(1.0, 1e-3, 500), 624.0 / (2.0 * math.log(25.0))
    for k, t in enumerate(times):
        h = times[0] - times[1]
        shrink = 1.0 - 25.0 ** (2.0 * t) * h / (0.01 + (25.0 ** (2.0 * t) - 1.0) / (2.0 * math.log(25.0)))
        before, variance = variance, shrink**2 * variance + (25.0 ** (2.0 * t) * h if k < 499 else 0.0)
    clean, noisy = fs.uniform(500, clean=True), fs.uniform(499)
    mean = std_of(EulerMaruyama(final="mean"), fs.TutorialVE(), clean, 0.1)
    assert mean == pytest.approx(math.sqrt(variance), rel=1e-10)
    assert std_of(EulerMaruyama(), fs.TutorialVE(), noisy, 0.1) == pytest.approx(math.sqrt(before), rel=1e-10)
    tweedie = math.sqrt(before) * 0.01 / (0.01 + (25.0**0.002 - 1.0) / (2.0 * math.log(25.0)))
    assert std_of(EulerMaruyama(), fs.TutorialVE(), clean, 0.1) == pytest.approx(tweedie, rel=1e-10)
    assert [round(v, 3) for v in (mean, tweedie, math.sqrt(before))] == [0.09, 0.1, 0.11]  # as the docstring says


def test_the_mean_of_a_step_to_noise_is_the_step_without_its_noise():
    t = fs.uniform(4)(fs.VP())
    mean, plain = (make_plan(s, fs.VP(), t).rows for s in (EulerMaruyama(final="mean"), EulerMaruyama()))
    assert mean[:-1] == plain[:-1]
    assert (mean[-1].a, mean[-1].b, mean[-1].c) == (plain[-1].a, plain[-1].b, 0.0)
    one = make_plan(EulerMaruyama(final="mean"), fs.VP(), np.array([0.5, 0.0])).rows[-1]
    assert (one.t, one.s, one.m) == (0.5, 0.0, "score")


def test_milstein_is_euler_maruyama():
    assert fs.Milstein is fs.EulerMaruyama
    assert fs.solvers.names.named("milstein", eta=0.5) == EulerMaruyama(0.5)


# --- stages and noise -------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("setting", ["vp-linear", "subvp", "tutorial-ve", "edm"])
def test_stochastic_runge_kutta_as_it_is_written_down(setting, eta):
    here = SETTINGS[setting]
    p, x, z = here.process, here.prior * NOISE[0], iter(NOISE[1:])
    knots = here.knots[:-1]
    for t, s in pairwise(knots):
        h, dw, half = t - s, math.sqrt(t - s) * next(z), 0.5 * (1.0 + eta**2)

        def stage(at, y, h=h, dw=dw, half=half):
            drift = p.f(at) * y - half * p.g2(at) * textbook.score(p, DENOISER, at, y)
            return -h * drift + eta * math.sqrt(p.g2(at)) * dw

        k1 = stage(t, x)
        x = x + 0.5 * (k1 + stage(s, x + k1))
    close(run(StochasticHeun(eta, "stages"), setting, knots), x)


@pytest.mark.parametrize(("setting", "top"), [("edm", 80.0), ("ve", 1.0), ("pair", 20.0), ("tutorial-ve", 1.0)])
def test_churn_may_go_beyond_the_schedule(setting, top):
    """Karras et al. 2022, algorithm 2, where t^ of the first steps lies above sigma_max."""
    here, options = SETTINGS[setting], {"churn": 1.5, "low": 0.1, "high": 1e3, "noise": 1.003}
    knots = here.knots
    theirs = fast.churned(
        here.process, DENOISER, knots, here.prior * NOISE[0], iter(NOISE[1:]), step=fast.dpm_solver_2, **options
    )
    beyond = Churn(fs.DPMSolver(2), **options, beyond=True)
    close(run(beyond, setting, knots), theirs, 1e-10)
    rows = [make_plan(s, here.schedule, np.array(knots)).rows for s in (beyond, Churn(fs.DPMSolver(2), **options))]
    assert [max(row.s for row in r) > top for r in rows] == [True, False]


def test_churn_beyond_a_table_or_a_model_is_refused():
    table = fs.discrete_vp("linear", 8, 0.02, 0.3)
    with pytest.raises(ValueError, match="more noise than DiscreteVP has at T = 7"):
        Churn(beyond=True, high=math.inf).steps(table, np.array([7.0, 3.0, 0.0]))
    trained = fs.ScoreModel(lambda u, c, cond: u, (2,), fs.VE())
    with pytest.raises(ValueError, match="noisier than VE gets"):
        fs.Sampler(trained, schedule=fs.EDM(sigma_max=50.0), solver=Churn(beyond=True), grid=fs.karras(4))


NOISY = ("dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-sde", "sa", "ddpm", "ancestral", "em", "milstein", "heun-sde",
         "reverse-diffusion", "dpm-2-ancestral", "dpmpp-2s-ancestral", "edm-churn", "dpmpp-2m-sde-heun", "er-sde",
         "er-sde-1", "er-sde-2", "er-sde-3", "exp-heun-2-x0-sde", "res-multistep-ancestral", "seeds-2", "seeds-3",
         "euler-ancestral", "euler-ancestral-rf", "dpm-2-ancestral-rf", "dpmpp-2s-ancestral-rf", "lcm", "consistency",
         "pingpong", "tcd", "af3", "flow-sde", "cps", "dance", "euler-ancestral-cfg-pp", "dpmpp-2s-ancestral-cfg-pp",
         "res-multistep-ancestral-cfg-pp")  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
def test_s_noise_by_name_scales_every_draw_but_the_prior(name):
    from fastscore.solvers.names import named

    schedule = fs.EDM()
    t = fs.karras(6)(schedule)
    plain, scaled = (make_plan(named(name, s_noise=s), schedule, t).rows for s in (1.0, 1.25))
    assert plain[0] == scaled[0]
    assert sum(row.c != 0.0 for row in plain[1:]) >= (1 if name == "af3" else 4)  # which has none below gamma_min
    assert [row.c for row in scaled[1:]] == pytest.approx([1.25 * row.c for row in plain[1:]], rel=1e-15)
    assert [(r.t, r.s, r.a, r.b, r.w) for r in scaled] == [(r.t, r.s, r.a, r.b, r.w) for r in plain]


def test_s_noise_belongs_to_solvers_that_draw_noise():
    from fastscore.solvers.names import SOLVERS, named

    refused = 0
    for name in SOLVERS:
        if name not in (*NOISY, "ddim"):
            with pytest.raises(ValueError, match="s_noise belongs to the solvers that draw noise"):
                named(name, s_noise=1.1, corrector="ald" if name == "none" else None)
            refused += 1
    assert refused == len(SOLVERS) - len(NOISY) - 1
    with pytest.raises(ValueError, match="with eta > 0"):
        named("ddim", s_noise=1.1)
    assert named("ddim", eta=0.5, s_noise=1.1) == fs.ScaledNoise(fs.DDIM(0.5), 1.1)
    both = named("em", s_noise=1.1, corrector="langevin", snr=0.1)
    assert both == fs.PredictorCorrector(fs.ScaledNoise(EulerMaruyama(), 1.1), fs.Langevin(0.1))


# --- SA-Solver's tau(t) -----------------------------------------------------------------------


def falling(t, s):
    return max(0.0, t - 0.25)


@pytest.mark.parametrize(
    "tau", [TauWindow(0.2, 0.6, 0.8), TauWindow(0.2, 0.6, 0.8, at="end"), falling], ids=("start", "end", "function")
)
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (2, 2), (3, 4)])
def test_sa_solver_with_noise_that_changes(tau, predictor, corrector):
    """Xue et al. 2023: tau is constant within a step, of the predictor as of the corrector."""
    here = SETTINGS["vp-linear"]
    knots = here.knots[:-1]
    lam = [math.log(here.process.alpha(t) / here.process.sigma(t)) for t in knots]
    levels = [(here.process.alpha(t), here.process.sigma(t)) for t in knots]
    x, z, D, before, noise = NOISE[0], iter(NOISE[1:]), [], None, 0.0

    def step(k, x, nodes, values, noise):
        """The integral of the polynomial through the values, by Gauss-Legendre quadrature."""
        (_, sigma), (alpha_s, sigma_s), rate = levels[k], levels[k + 1], tau(knots[k], knots[k + 1]) ** 2
        h, H = lam[k + 1] - lam[k], 1.0 + rate
        at, weights = np.polynomial.legendre.leggauss(24)
        u = lam[k] + 0.5 * h * (at + 1.0)
        total = sigma_s / sigma * math.exp(-rate * h) * x
        for i, value in enumerate(values):
            basis = np.prod([(u - m) / (nodes[i] - m) for j, m in enumerate(nodes) if j != i], axis=0)
            total = total + alpha_s * np.sum(0.5 * h * weights * H * np.exp(-H * (lam[k + 1] - u)) * basis) * value
        return total + sigma_s * math.sqrt(-math.expm1(-2.0 * rate * h)) * noise

    for k in range(len(knots) - 1):
        D.insert(0, DENOISER(x, *levels[k]))
        if corrector and k:
            nodes = [lam[k], *lam[max(0, k - corrector + 1) : k][::-1]]
            x = step(k - 1, before, nodes, D[: len(nodes)], noise)
        noise = next(z) if tau(knots[k], knots[k + 1]) else 0.0
        nodes, before = lam[max(0, k - predictor + 1) : k + 1][::-1], x
        x = step(k, x, nodes, D[: len(nodes)], noise)
    close(run(fs.SASolver(predictor, corrector, tau, reach=math.inf), "vp-linear", knots), x, 1e-10)


def test_a_window_without_times_draws_no_noise():
    t = fs.uniform(6)(fs.VP())
    quiet = make_plan(fs.SASolver(tau=TauWindow(2.0, 3.0)), fs.VP(), t)
    assert quiet.draws == 1
    assert quiet.rows == make_plan(fs.SASolver(tau=0.0), fs.VP(), t).rows
    assert make_plan(fs.SASolver(tau=TauWindow(0.0, 1.0)), fs.VP(), t).rows == make_plan(fs.SASolver(), fs.VP(), t).rows


# --- an implicit rule that gains on stiff ends ------------------------------------------------


def test_sweeps_converge_on_long_steps_where_the_plain_ones_do_not():
    """One step over 6 units of log-SNR: the exponential sweeps contract by 1 - e^{-h/2} at least, the others grow."""
    t = (1.0, 0.3)
    h = math.log(fs.VE().sigma(1.0) / fs.VE().sigma(0.3))

    def changes(exponential):
        ends = []
        for n in range(1, 12):
            solver = fs.ImplicitMidpoint(n, exponential=exponential)
            plan = fs.Sampler(GAUSSIAN, schedule=fs.VE(), solver=solver, grid=Times(t)).plan
            ends.append(moments(plan, 1.0, 0.0)[0])
        change = np.abs(np.diff(ends))
        return change[1:] / change[:-1]

    assert np.all(changes(exponential=True) <= 1.0 - math.exp(-0.5 * h))
    assert np.all(changes(exponential=False) > 1.5)


def test_one_exponential_sweep_is_dpm_solver_2s_and_many_are_second_order():
    knots = SETTINGS["vp-linear"].knots
    one = run(fs.ImplicitMidpoint(1, exponential=True), "vp-linear", knots)
    close(one, run(fs.DPMSolver(2, "x0"), "vp-linear", knots), 1e-12)
    errors = [variance_error(fs.ImplicitMidpoint(6, exponential=True), n) for n in (32, 64, 128)]
    assert abs(math.log2(errors[1] / errors[2]) - 2.0) < 0.2


# --- what is composed needs a grid ------------------------------------------------------------

COMPOSED = {
    "Hybrid, ode": lambda s: fs.Hybrid(EulerMaruyama(), s, 0.3),
    "Hybrid, sde": lambda s: fs.Hybrid(s, fs.Heun(), 0.3),
    "PredictorCorrector": lambda s: fs.PredictorCorrector(s, fs.AnnealedLangevin()),
    "Churn": lambda s: Churn(s),
    "ScaledNoise": lambda s: fs.ScaledNoise(s),
    "AncestralSplit": lambda s: AncestralSplit(s),
    "Restart": lambda s: fs.Restart((fs.Interval(0.1, 0.2),), s),
    "RePaint": lambda s: fs.RePaint(s),
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("solver", [fs.Dopri5(), fs.GottaGoFast(), "heun"], ids=str)
def test_adaptive_solvers_are_refused_with_the_remedy(name, solver):
    with pytest.raises(ValueError, match=r"takes solvers with a grid, and .* has none; use one with steps"):
        COMPOSED[name](solver)


def test_a_hybrid_that_ends_with_an_adaptive_solver():
    """The remedy that the message names: two samplers, the second one from the first one's state."""
    model = score_model(gaussian(0.7, 0.6, (2,)))
    noisy = fs.Sampler(
        model, schedule=fs.VP(), solver=EulerMaruyama(), grid=fs.uniform(200, end=0.3), batch=2000, dtype=torch.float64
    )
    rest = fs.Sampler(
        model, schedule=fs.VP(), solver=fs.Dopri5(1e-6, 1e-6), grid=fs.Span(start=0.3), start="state", batch=2000,
        dtype=torch.float64,
    )  # fmt: skip
    half = noisy.run(range(2000))
    x = rest.run(range(2000), init=half)
    # Linear score: the ODE maps x at t to 0.7 + 0.6 (x - 0.7 alpha) / sqrt(0.36 alpha^2 + sigma^2), up to t_end.
    alpha, sigma = float(fs.VP().alpha(0.3)), float(fs.VP().sigma(0.3))
    want = 0.7 + 0.6 * (half - 0.7 * alpha) / math.sqrt(0.36 * alpha**2 + sigma**2)
    assert float((x - want).abs().max()) < 3e-3
    assert abs(float(x.std()) - 0.6) < 4.0 * 0.6 / math.sqrt(2.0 * 4000.0)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMMultistep(lower_order_final=-1), "lower_order_final = -1 must be False, True"),
        (lambda: fs.DEIS(lower_order_final="yes"), "lower_order_final = 'yes'"),
        (lambda: fs.DEIS(basis="rho", lower_order_final=True), "leave it out with rho"),
        (lambda: UniPC(disable_corrector=(-1,)), "numbers of steps, from 0 on"),
        (lambda: fs.SASolver(lower_order_final="k-diffusion"), "'', 'diffusers' or 'comfyui'"),
        (lambda: fs.SASolver(corrector=0, pece=True), "needs a corrector"),
        (lambda: fs.SASolver(tau=lambda t, s: -1.0).steps(fs.VP(), fs.uniform(3)(fs.VP())), r"tau\(t, s\) = -1"),
        (lambda: TauWindow(2.0, 1.0), "low = 2.0 must not exceed high = 1.0"),
        (lambda: TauWindow(0.0, 1.0, -1.0), "eta = -1.0"),
        (lambda: TauWindow(0.0, 1.0, at="middle"), "must be start or end"),
        (lambda: fs.DPMSolver(3, form="midpoint"), "midpoint with order 3 and on_grid=True"),
        (lambda: fs.DPMSolver(2, r=1.0), "r = 1.0 must lie in 0 .. 1"),
        (lambda: fs.DPMSolver(3, r=0.5), "with order 2"),
        (lambda: fs.DPMSolver(2, "x0", noise="split"), "split with eta > 0"),
        (lambda: fs.DPMSolver(2, "x0", lower_order_final=True), "goes with on_grid=True"),
        (lambda: EulerMaruyama(final="denoise"), "must be tweedie or mean"),
        (lambda: EulerMaruyama(final="mean").steps(fs.VE(), np.array([0.5, -math.inf])), "use two steps"),
        (lambda: StochasticHeun(weights="mean"), "must be rms or stages"),
        (lambda: fs.DDIM(set_alpha_to_one=False), "goes with fixed_stride=True"),
        (lambda: fs.DDIM(inverse=True), "inverse=True goes with fixed_stride=True"),
        (lambda: fs.DDIM(0.5, fixed_stride=True, inverse=True), "eta=0"),
        (lambda: fs.DDIM(fixed_stride=True).steps(fs.VP(), fs.uniform(3)(fs.VP())), "VP has none"),
        (lambda: fs.ImplicitMidpoint(exponential=True, denoise=False), "leave denoise=False out"),
    ],
)
def test_impossible_variants_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_record_names_the_options_that_are_used_and_no_others():
    assert repr(DPMMultistep()) == "DPMMultistep(order=3, prediction='x0', form='exact', eta=0.0)"
    assert repr(DPMMultistep(2, lower_order_final=True)).endswith("eta=0.0, lower_order_final=True)")
    solver = fs.SASolver(2, 2, TauWindow(200.0, 800.0), True, lower_order_final="diffusers")
    assert repr(solver) == (
        "SASolver(predictor=2, corrector=2, tau=EtaWindow(low=200.0, high=800.0, eta=1.0, at='start', of='time'), "
        "simple_order_2=True, lower_order_final='diffusers')"
    )
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert hash(solver) != hash(fs.SASolver(2, 2))
