"""Few-step samplers, AlphaFold 3's step and the ancestral rule of rectified flow: options, limits and ends."""

import math
from functools import partial

import numpy as np
import pytest
import textbook_few as few
import torch
from cases import SETTINGS
from checks import DENOISER, MODEL, NOISE, N

import fastscore as fs
from fastscore.plan.passes import make_plan
from fastscore.solvers.grids import default_grid
from fastscore.solvers.names import named

AF3 = {"gamma_0": 0.8, "gamma_min": 0.3, "noise_scale": 1.003, "step_scale": 1.5}
LOOPS = {
    "lcm": (fs.Renoise(boundary=10.0), partial(few.lcm, scaling=10.0), ("ddpm-table", "vp-linear", "flow")),
    "sigma_min": (fs.Renoise(sigma_min=0.02), partial(few.consistency, sigma_min=0.02), ("edm", "flow", "subvp")),
    "af3": (fs.AlphaFold3(**AF3), partial(few.alphafold3, **AF3, capped=True), ("edm", "vp-linear", "subvp")),
    "af3-beyond": (fs.AlphaFold3(**AF3, beyond=True), partial(few.alphafold3, **AF3), ("edm", "vp-linear", "ve")),
}


def run(solver, setting, knots):
    here = SETTINGS[setting]
    sampler = fs.Sampler(
        MODEL, schedule=here.schedule, solver=solver, grid=fs.Times(tuple(knots)), batch=N, dtype=torch.float64
    )
    return sampler.run(range(N), noise=torch.from_numpy(NOISE[: sampler.plan.draws])).numpy(), sampler.plan


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [k if "af3" not in k else pytest.param(k, marks=pytest.mark.slow) for k in LOOPS])
def test_options_equal_the_published_loops(name):
    solver, loop, settings = LOOPS[name]
    for setting in settings:
        here = SETTINGS[setting]
        for knots in (here.knots, here.knots[:-1], (here.knots[0], here.knots[-1])):
            ours, plan = run(solver, setting, knots)
            z = iter(NOISE[1 : plan.draws])
            theirs = loop(here.process, DENOISER, np.array(knots), here.prior * NOISE[0], z)
            assert next(z, None) is None
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max(), err_msg=setting)


def rows(solver, schedule, t):
    with np.errstate(divide="ignore", invalid="ignore"):  # as make_plan has it
        return [row for group in solver.steps(schedule, np.array(t)) for row in group]


def test_limits_of_each():
    for setting in SETTINGS:
        schedule, t = SETTINGS[setting].schedule, SETTINGS[setting].knots
        ddim = rows(fs.DDIM(), schedule, t)
        for solver in (fs.Renoise(0.0), fs.AncestralSplit(fs.DDIM(), 0.0, "flow"), fs.AlphaFold3(0.0, 0.0, 1.0, 1.0)):
            for found, expected in zip(rows(solver, schedule, t), ddim, strict=True):
                assert (found.c, found.s) == (0.0, expected.s)
                assert (found.a, found.b) == pytest.approx((expected.a, expected.b), rel=1e-12, abs=1e-12)
        if schedule.t_clean != -1.0:  # on a table it rounds down
            continuous = [row.c for row in rows(fs.Renoise(0.0, "time"), schedule, t)]
            assert continuous == [0.0] * len(continuous)
        for solver in (fs.Renoise(), fs.Renoise(0.4), fs.AlphaFold3(0.8, 0.3, 1.0, 1.0)):  # whatever eps is: the same
            for row in rows(solver, schedule, t):
                m = (1.0, 0.0) if row.b else (0.0, 0.0)
                alpha, sigma = schedule.alpha(np.array([row.t, row.s])), schedule.sigma(np.array([row.t, row.s]))
                assert row.a * alpha[0] + row.b * m[0] == pytest.approx(alpha[1], rel=1e-12)
                assert (row.a * sigma[0]) ** 2 + row.c**2 == pytest.approx(sigma[1] ** 2, rel=1e-12, abs=1e-300)


def test_rf_is_the_split_at_sqrt_eta_in_short_steps_and_less_in_long_ones():
    for schedule in (fs.Flow(), fs.VP(), fs.EDM()):
        for eta in (0.6, 1.0):
            gaps = []
            for h in (0.01, 0.001):
                flow, split = (
                    rows(fs.AncestralSplit(fs.DDIM(), amount, rule), schedule, [0.5, 0.5 - h])[0].c
                    for amount, rule in ((eta, "flow"), (math.sqrt(eta), "ratio"))
                )
                gaps.append(1.0 - flow / split)
            assert abs(gaps[1]) < 0.12 * abs(gaps[0]) < 0.0025
            assert eta < 1.0 or min(gaps) > 0.0
    everything = rows(fs.AncestralSplit(fs.DDIM(), 50.0, "flow"), fs.Flow(), [0.9, 0.3])[0]  # no more than all of it
    assert (everything.a, everything.c) == pytest.approx((0.0, 0.3), abs=1e-12)


def test_a_second_evaluation_on_the_way_from_pure_noise():
    """With ``middle`` the first step has two evaluations, and what follows stays as it was."""
    middle = math.log(1e-4 / 0.9999)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.array([1.0, 0.7, 0.3, 0.0])
        first, *rest = fs.DPMSolver(2, "x0", middle=middle).steps(fs.Flow(), t)
        plain = fs.DPMSolver(2, "x0").steps(fs.Flow(), t)
    assert rest == plain[1:]
    assert [len(first), len(plain[0])] == [2, 1]
    assert first[0].s == pytest.approx(0.9999, rel=1e-12)
    # x_m = 0.9999 x + 0.0001 D, and of the whole step 0.7 x + 0.3 D_m: nothing of D is left
    assert (first[1].a, first[1].b) == pytest.approx((0.7 / 0.9999, 0.3), rel=1e-12)
    assert first[1].w == pytest.approx((-1e-4 * 0.7 / 0.9999,), rel=1e-9)
    assert rows(fs.DPMSolver(2, "x0", middle=middle), fs.VP(), [1.0, 0.5]) == rows(
        fs.DPMSolver(2, "x0"), fs.VP(), [1.0, 0.5]
    )


def test_a_longer_step_from_pure_noise_is_the_odes():
    longer, plain = (rows(fs.AlphaFold3(step_scale=v), fs.Flow(), [1.0, 0.6])[0] for v in (1.5, 1.0))
    assert (longer.a, longer.b, longer.c) == (plain.a, plain.b, plain.c) == pytest.approx((0.6, 0.4, 0.0))


def test_tcd_ends_at_the_index_that_the_grid_ends_at():
    table = fs.discrete_vp("scaled-linear")
    last = rows(fs.Renoise(0.3, "time"), table, [999.0, 300.0, 0.0])[-1]
    assert (last.s, last.c) == (0.0, 0.0)
    assert last.a > 0.0  # alpha_0 D + sigma_0 eps
    middle = rows(fs.Renoise(0.3, "time"), table, [999.0, 301.0])[-1]
    inner = math.floor(0.7 * 301)  # 210.7
    alpha, sigma = table.alpha(np.array([inner, 301.0])), table.sigma(np.array([inner, 301.0]))
    assert middle.c == pytest.approx(math.sqrt(sigma[1] ** 2 - (alpha[1] / alpha[0] * sigma[0]) ** 2), rel=1e-12)


def test_one_mean_for_all_is_said_of_score_networks_and_not_of_maps():
    """All noise new and a mean for D: too little spread in however many steps."""
    from fastscore.plan.gaussian import gaussian_moments

    for steps in (4, 64):
        grid = default_grid(fs.Renoise(), fs.VP(), fs.VP(), steps)
        _, std = gaussian_moments(make_plan(fs.Renoise(), fs.VP(), grid(fs.VP())), 0.0, (0.3,))
        assert float(std[0]) < 0.25


def test_by_name():
    assert named("lcm") == named("pingpong") == named("consistency") == fs.Renoise()
    assert named("tcd") == fs.Renoise(0.3, "time")
    assert named("tcd", eta=0.5, s_noise=1.1) == fs.ScaledNoise(fs.Renoise(0.5, "time"), 1.1)
    assert named("af3", s_noise=1.1) == fs.AlphaFold3(noise_scale=1.1)
    assert named("dpm-2-ancestral-rf") == fs.AncestralSplit(fs.DPMSolver(2, "flow"), rule="flow")
    assert named("euler-ancestral-rf", eta=0.5) == fs.AncestralSplit(fs.DDIM(), 0.5, "flow")
    assert repr(fs.AncestralSplit(fs.DDIM())) == "AncestralSplit(solver=DDIM(eta=0.0, keep_eps=False), eta=1.0)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.Renoise(1.5), "gamma = 1.5 must lie in 0 .. 1"),
        (lambda: rows(fs.Renoise(lambda t, s: 2.0), fs.VP(), [1.0, 0.5]), r"Renoise: gamma\(t, s\) = 2.0"),
        (lambda: fs.Renoise(of="index"), "must be ratio or time"),
        (lambda: fs.Renoise(0.5, boundary=10.0), "boundary = 10.0 goes with gamma=1"),
        (lambda: fs.Renoise(of="time", sigma_min=0.1), "sigma_min = 0.1 goes with gamma=1 and of='ratio'"),
        (lambda: fs.Renoise(sigma_min=-0.1), "sigma_min = -0.1 must be at least 0"),
        (lambda: fs.AlphaFold3(gamma_0=-1.0), "gamma_0 = -1.0 must be at least 0"),
        (lambda: fs.AlphaFold3(step_scale=0.0), "step_scale = 0.0 must be positive"),
        (lambda: fs.AncestralSplit(fs.DDIM(), rule="rf"), "rule = 'rf' must be ratio or flow"),
        (lambda: fs.DPMSolver(3, "flow"), "'flow' goes with order 2"),
        (lambda: fs.DPMSolver(2, "flow", r=0.4), "'flow' goes with order 2"),
        (lambda: fs.DPMSolver(2, "flow", 1.0), "eta > 0 goes with prediction='x0'"),
        (lambda: fs.DPMSolver(2, "flow", middle=-9.0), "goes with order 2, prediction='x0' and no r"),
        (lambda: fs.DPMSolver(3, "x0", middle=-9.0), "goes with order 2, prediction='x0' and no r"),
        (lambda: fs.DPMSolver(2, "x0", 1.0, middle=-9.0), "with eta=0 and on_grid=False"),
        (lambda: rows(fs.DPMSolver(2, "x0", middle=0.0), fs.Flow(), [1.0, 0.7]), "must lie below lam = -0.84"),
        (lambda: rows(fs.AlphaFold3(beyond=True, gamma_min=0.0), fs.smld(8), [7.0, 3.0]), "behind T it has no more"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stage_that_forgets_the_state_is_refused():
    with pytest.raises(ValueError, match=r"leaves nothing of the state.* take a smaller eta, or shorter steps"):
        make_plan(fs.SEEDS(eta=1e6), fs.VP(), fs.uniform(3)(fs.VP()))
