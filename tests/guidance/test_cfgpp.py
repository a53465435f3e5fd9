"""CFG++ against plain loops, its limits to the bit, and what refuses it by name."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import textbook
import textbook_cfgpp as loops
import textbook_exponential as fast
import torch
from cases import SETTINGS
from cells import in_each
from networks import elementwise_model

import fastscore as fs
from fastscore.adapters.k_diffusion import sample
from fastscore.engine.capture import Graphed, Tape
from fastscore.engine.stepper import Stepper
from fastscore.kernels.cpu import library
from fastscore.model.analytic import GaussianMixture, score_model
from fastscore.process.grid import Times, karras, uniform

N, D, W = 3, 10, 0.7
RNG = np.random.default_rng(4)
GUIDED, UNGUIDED = (
    (np.array(w), RNG.standard_normal((2, D)), np.array(s))
    for w, s in (((0.6, 0.4), (0.3, 0.5)), ((0.5, 0.5), (0.6, 0.9)))
)
MODEL, SECOND = (score_model(GaussianMixture(*(torch.from_numpy(v) for v in part))) for part in (GUIDED, UNGUIDED))
D_1, D_u = textbook.mixture(*GUIDED), textbook.mixture(*UNGUIDED)
NOISE = RNG.standard_normal((64, N, D))


def D_w(x, alpha, sigma, w=W):
    return D_u(x, alpha, sigma) + w * (D_1(x, alpha, sigma) - D_u(x, alpha, sigma))


def draw(solver, setting, knots, w=W, interval=(0.0, math.inf), **more):
    guidance = fs.Guidance(w, interval, SECOND, rule="cfg++")
    kw = {"schedule": SETTINGS[setting].schedule, "grid": Times(tuple(map(float, knots))), "batch": N}
    sampler = fs.Sampler(MODEL, solver=solver, guidance=guidance, dtype=torch.float64, **kw, **more)
    return sampler.run(range(N), noise=torch.from_numpy(NOISE[: sampler.plan.draws])).numpy()


def stepped(solver, loop, options=None):
    return solver, loops.between_knots(D_w, partial(loop, **(options or {})))


def in_y(solver, step, around=None, options=None):
    """A step in y = x / alpha; ``around``: a loop that does more than steps."""
    step = loops.of_step(D_w, step)
    return solver, partial(around or fast.one_step, step=step, **(options or {}))


def by_hand(solver, loop):
    return solver, lambda process, D, times, x, z: loop(process, D_w, D, times, x)


CHURN, LEVELS = {"churn": 2.0, "low": 0.1, "high": 1.0, "noise": 1.0}, {"low": 0.4, "high": 1.6, "steps": 2}
TEXTBOOK = {
    "ddim": stepped(fs.DDIM(), textbook.ddim),
    "ddim-0.5": stepped(fs.DDIM(0.5), textbook.ddim, {"eta": 0.5}),
    "ancestral": stepped(fs.DDIM(1.0, keep_eps=True), textbook.ddim, {"eta": 1.0}),
    "euler": stepped(fs.Euler(), textbook.euler),
    "heun": stepped(fs.Heun(), textbook.heun),
    "midpoint": stepped(fs.RK2(), textbook.rk2),
    "rk4": stepped(fs.RK4(), textbook.rk4),
    "implicit-midpoint": stepped(fs.ImplicitMidpoint(2), textbook.implicit_midpoint, {"sweeps": 2}),
    "em": stepped(fs.EulerMaruyama(), textbook.euler_maruyama),
    "stochastic-heun": stepped(fs.StochasticHeun(), textbook.stochastic_heun),
    "dpm-2": in_y(fs.DPMSolver(2), fast.dpm_solver_2),
    "dpmpp-3s": in_y(fs.DPMSolver(3, "x0"), fast.dpmpp_3s),
    "dpmpp-sde": in_y(fs.DPMSolver(2, "x0", 1.0), fast.dpmpp_sde),
    "dpmpp-2s-ancestral": in_y(
        fs.AncestralSplit(fs.DPMSolver(2, "x0")), partial(fast.ancestral, step=fast.dpmpp_2s)
    ),
    "churn": in_y(fs.Churn(fs.DPMSolver(2), **CHURN), fast.dpm_solver_2, fast.churned, CHURN),
    "restart": in_y(
        fs.Restart((fs.Interval(0.4, 1.6, 2, 3),), fs.DPMSolver(2)), fast.dpm_solver_2, fast.restart,
        {**LEVELS, "times_": 3},
    ),
    "dpmpp-2s-on-grid": (
        fs.DPMSolver(2, "x0", on_grid=True), partial(loops.on_grid, D_w=D_w, loop=fast.dpmpp_2s_on_grid)
    ),
    "pc": (
        fs.PredictorCorrector(fs.EulerMaruyama(), fs.AnnealedLangevin(0.2)),
        partial(
            textbook.predictor_corrector,
            predictor=loops.between_knots(D_w, textbook.euler_maruyama),
            corrector=partial(textbook.ald, snr=0.2, steps=1),
        ),
    ),
    "dpmpp-2m": by_hand(fs.DPMpp2M(), loops.dpmpp_2m),
    "ipndm": by_hand(fs.IPNDM(3), loops.ipndm),
    "unipc": by_hand(fs.UniPC(1), loops.unipc_1),
}  # fmt: skip


def check(name, setting, clean, steps=None):
    solver, loop = TEXTBOOK[name]
    here, knots = SETTINGS[setting], np.array(SETTINGS[setting].knots)
    knots = knots if clean else knots[:-1]
    knots = knots if steps is None else np.append(knots[:steps], knots[-1])
    theirs = loop(here.process, D_u, knots, here.prior * NOISE[0], iter(NOISE[1:]))
    np.testing.assert_allclose(draw(solver, setting, knots), theirs, rtol=0, atol=1e-10 * np.abs(theirs).max())


def cells(*settings):
    """Each loop on one of the settings, others from loop to loop, with both ends in turn."""
    n = len(settings)
    return [(name, settings[k % n], k // n % 2 == 0) for k, name in enumerate(TEXTBOOK)]


def test_is_the_solvers_own_step_in_the_unguided_estimate_and_then_the_change():
    in_each(cells("vp-linear", "edm"), check)


@pytest.mark.slow
def test_on_other_schedules_and_in_few_steps():
    for settings in (("edm", "vp-linear"), ("subvp", "flow", "ddpm-table"), ("flow", "pair", "subvp")):
        in_each([*cells(*settings), *((*cell, 1) for cell in cells(*settings))], check)


def test_all_of_a_step_is_guided_as_its_start_is():
    knots, x = np.array(SETTINGS["edm"].knots), SETTINGS["edm"].prior * NOISE[0]
    for t, s in pairwise(knots):  # the step from 8 to 2 has an evaluation at either side of 3
        loop, D = (loops.between_knots(D_w, textbook.heun), D_u) if t > 3.0 else (textbook.heun, D_1)
        x = loop(SETTINGS["edm"].process, D, np.array([t, s]), x, iter(()))
    ours = draw(fs.Heun(), "edm", knots, interval=(3.0, math.inf))
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-10 * np.abs(x).max())


COMFYUI = {
    "2m": (loops.dpmpp_2m_cfg_pp, 0.0), "res": (loops.res_multistep_cfg_pp, 0.0),
    "res-0.6": (loops.res_multistep_cfg_pp, 0.6), "2s": (loops.dpmpp_2s_ancestral_cfg_pp, 0.0),
    "2s-1": (loops.dpmpp_2s_ancestral_cfg_pp, 1.0),
}  # fmt: skip
SIGMAS, FLOW = (20.0, 9.0, 4.0, 1.6, 0.5, 0.1, 0.0), (1.0, 0.9, 0.78, 0.6, 0.35, 0.1, 0.0)


def check_comfyui(name, flow, levels, w):
    form, loop, eta = name.split("-")[0], *COMFYUI.get(name, (loops.cfgpp_ud10_ab, 0.0))

    def model(y, s):
        at = (y, 1.0 - s if flow else 1.0, s)
        return D_w(*at, w), D_u(*at)

    y, z = levels[0] * NOISE[0], iter(NOISE[1:])
    if form == "ud10":
        solver = fs.CFGPlusPlusVariant("ud10-ab")
        theirs = loop(model, y, levels, z, lambda s: 1.0 - s if flow else 1.0)
    else:
        solver, theirs = fs.InSigma(fs.CFGPlusPlusVariant(form, eta)), loop(model, y, levels, z, eta)
    schedule = fs.Flow() if flow else fs.EDM(0.01, levels[0])
    guidance = fs.Guidance(w, model=SECOND, rule="cfg++")
    kw = {"schedule": schedule, "grid": Times(levels), "batch": N, "dtype": torch.float64}
    sampler = fs.Sampler(MODEL, solver=solver, guidance=guidance, **kw)
    noise = NOISE[: sampler.plan.draws].copy()
    noise[0] *= levels[0] / sampler.plan.rows[0].c
    ours = sampler.run(range(N), noise=torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * np.abs(theirs).max())


def comfyui_cells(weights):
    for name in (*COMFYUI, "ud10"):
        for flow, levels in ((False, SIGMAS), (True, FLOW)):
            for ends in (
                levels,
                levels[:-1],
                (*levels[:2], levels[-1]),
                (*levels[:3], 0.0),
                levels[:2],
                (levels[0], 0.0),
            ):
                yield from ((name, flow, ends, w) for w in weights)


@pytest.mark.slow
def test_comfyuis_samplers_on_their_levels_and_on_flow():
    in_each(comfyui_cells([1.0]), check_comfyui)


@pytest.mark.slow
@pytest.mark.nightly
def test_comfyuis_samplers_at_other_weights():
    in_each(comfyui_cells([-0.5, 0.0, 0.4, 1.0]), check_comfyui)


def plain(**more):
    return elementwise_model((1, 6, 6), **{"classes": 3, "null": 3, **more})


SOLVERS = {
    "ddim": fs.DDIM(0.5), "heun": fs.Heun(), "2m": fs.DPMpp2M(), "unipc": fs.UniPC(), "sa": fs.SASolver(pece=True),
    "pc": fs.PredictorCorrector(fs.ReverseDiffusion(), fs.Langevin()), "repaint": fs.RePaint(jump=2, times=2),
    "hybrid": fs.Hybrid(fs.DDIM(1.0), fs.DEIS(4), 0.5), "2s": fs.CFGPlusPlusVariant("2s", 1.0),
    "ud10": fs.CFGPlusPlusVariant("ud10-ab"),
}  # fmt: skip


def sampled(name, ids=range(6), labels=None, batch=4, **kw):
    settings = {"solver": SOLVERS[name], "grid": karras(5), "batch": batch, **kw}
    labels = [k % 3 for k in ids] if labels is None else labels
    return fs.Sampler(plain(), **settings).run(ids, seed=3, labels=labels)


def rule(w, *interval):
    return fs.Guidance(w, *interval, rule="cfg++")


def limits(name):
    assert sampled(name, guidance=rule(0.0)).equal(sampled(name, labels=3))
    assert sampled(name, guidance=rule(5.0, (1e3, 1e4))).equal(sampled(name))  # no step lies there
    same = sampled(name, labels=1, guidance=fs.Guidance(3.0, null=1, rule="cfg++"))
    assert torch.allclose(same, sampled(name, labels=1), rtol=1e-4, atol=1e-4)


def company(name):
    guidance = rule(0.6, (0.1, 20.0))
    x = sampled(name, guidance=guidance)
    assert x.isfinite().all() and not x.equal(sampled(name))
    assert sampled(name, [4, 0], batch=6, guidance=guidance).equal(x[[4, 0]])
    if library.library_file():
        assert sampled(name, backend="reference", guidance=guidance).equal(x)


def sweeps(name):
    x = sampled(name, guidance=rule(0.6, (0.1, 20.0)))
    assert sampled(name, guidance=rule(0.6, (0.1, 20.0)), parallel=fs.Picard(4)).equal(x)


def replays(name):
    sampler = fs.Sampler(
        plain(), solver=SOLVERS[name], grid=karras(5), batch=4, backend="reference", guidance=rule(0.6)
    )
    x = sampler.run(range(4), labels=[0, 1, 2, 0])  # which leaves the loop loaded
    assert Graphed(sampler.engine.loop, Tape(), "loop").run().equal(x.view(4, 1, 6, 6))


LATER = [name for name in SOLVERS if name not in ("heun", "unipc", "pc", "2s")]


def test_the_limits_are_those_of_one_model_to_the_bit():
    in_each([(name,) for name in SOLVERS], limits)


def test_company_backends_sweeps_and_graphs_change_no_bit():
    in_each([(name,) for name in ("heun", "unipc", "pc", "2s")], company)
    in_each([("heun",)], sweeps)
    in_each([("heun",)], replays)


@pytest.mark.slow
def test_company_backends_sweeps_and_graphs_change_no_bit_of_other_solvers():
    in_each([(name,) for name in LATER], company)
    in_each([(name,) for name in ("ddim", "sa", "hybrid", "ud10")], sweeps)
    in_each([("pc",), ("2s",)], replays)


def test_rollouts_replay_the_rows_that_are_run():
    sampler = fs.Sampler(plain(), solver=fs.DPMSolver(2, "x0", 1.0), grid=karras(4), batch=4, guidance=rule(0.6))
    rollout = sampler.rollout(range(4), labels=[0, 1, 2, 0])
    assert rollout.x.equal(sampler.run(range(4), labels=[0, 1, 2, 0]))
    assert torch.allclose(sampler.replay(rollout), rollout.log_probs, rtol=0, atol=1e-3)


def test_a_step_evaluates_the_guided_estimate_once():
    for name, evaluations in (("heun", 5 * 3), ("2m", 5 * 2), ("ddim", 5 * 2), ("sa", 5 * 3)):
        sampler = fs.Sampler(plain(), solver=SOLVERS[name], grid=uniform(5), guidance=rule(0.6))
        assert sampler.plan.nfe == evaluations, name
        assert fs.Sampler(plain(), solver=SOLVERS[name], grid=uniform(5), guidance=rule(0.0)).plan.nfe < evaluations


def test_guides_change_the_guided_estimate_alone():
    """With D' for D_w: a clipped run ends inside the bound, and a guide that does nothing changes nothing."""
    knots, here = np.array(SETTINGS["edm"].knots), SETTINGS["edm"]
    x = here.prior * NOISE[0]
    for t, s in pairwise(knots):
        D = np.clip(D_w(x, 1.0, t), -0.5, 0.5)
        x = D + s * (x - D_u(x, 1.0, t)) / t
    np.testing.assert_allclose(draw(fs.DDIM(), "edm", knots, clip=0.5), x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(draw(fs.DDIM(), "edm", knots, guide=fs.StaticThreshold(0.5)), x, rtol=0, atol=1e-12)
    for name in ("heun", "2m", "pc", "unipc"):
        guide = fs.StaticThreshold(1e9)
        x, guided = sampled(name, guidance=rule(0.6)), sampled(name, guidance=rule(0.6), guide=guide)
        assert torch.allclose(guided, x, rtol=1e-4, atol=1e-4), name
        swept = sampled(name, guidance=rule(0.6), guide=guide, parallel=fs.Picard(3)) if name != "pc" else guided
        assert swept.equal(guided), name


def test_the_callback_sees_the_guided_estimate():
    steps = []
    kw = {"solver": fs.Heun(), "schedule": fs.EDM(0.01, 20.0), "grid": Times((20.0, 3.0, 0.5)), "dtype": torch.float64}
    sampler = fs.Sampler(MODEL, guidance=fs.Guidance(W, model=SECOND, rule="cfg++"), batch=N, **kw)
    sampler.run(range(N), callback=steps.append)
    for before, step in pairwise(steps):
        if step.x0 is not None:
            at = before.x.numpy(), 1.0, step.t
            later = sampler.plan.rows[step.row].calls == "F2"
            np.testing.assert_allclose(step.x0.numpy(), D_u(*at) if later else D_w(*at), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": fs.Dopri5()}, "chooses its own"),
        ({"solver": fs.PNDM(), "grid": uniform(4)}, r"4 history slots.*PNDM\(prk=False\)"),
        ({"solver": fs.PredictorCorrector(None, fs.Langevin())}, "no step to less noise"),
        ({"solver": fs.ScoreSDE("none"), "schedule": fs.VP()}, "no step to less noise"),
    ],
)
def test_what_it_cannot_guide_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        fs.Sampler(plain(), guidance=rule(0.5), **settings)


def both(u, c_noise, cond=None):
    return {name: 0.5 * v for name, v in u.items()}


def test_parts_of_a_coupled_state_enter_an_interval_together_where_a_second_network_has_scales_of_its_own():
    parts = {"a": fs.Part((2,), fs.VP()), "b": fs.Part((2,), fs.VE())}
    model, second = fs.JointModel(both, parts), fs.JointModel(both, parts)
    kw = {"solver": fs.Heun(), "grid": uniform(4), "batch": 2}
    guided = fs.Guidance(0.5, model=second, rule="cfg++")
    assert fs.JointSampler(model, guidance=guided, **kw).run(range(2))["b"].isfinite().all()
    with pytest.raises(ValueError, match="enter at different steps"):
        fs.JointSampler(model, guidance=replace(guided, interval=(0.0, 1.0)), **kw)


def test_a_host_of_one_estimate_has_none_for_it():
    with pytest.raises(ValueError, match="two estimates a step"):
        Stepper(fs.CFGPlusPlus(fs.DDIM()), karras(3), (2,), 1, schedule=fs.VP())
    with pytest.raises(ValueError, match="give unguided="):
        sample(lambda x, sigma: x, torch.ones(1, 2), torch.tensor([1.0, 0.5]), solver="dpmpp-2m-cfg-pp")


def test_rules_are_named():
    with pytest.raises(ValueError, match=r"rule = 'cfgpp' .*must be one of cfg, cfg"):
        fs.Guidance(1.0, rule="cfgpp")
    assert fs.Guidance(math.pi).rule == "cfg"
    a, b = (sampled("ddim", solver=s, guidance=fs.Guidance(0.6, rule=r)) for s, r in (
        (fs.ScaledNoise(fs.CFGPlusPlus(fs.DDIM(0.5)), 1.0), "cfg"), (fs.DDIM(0.5), "cfg++")))  # fmt: skip
    assert a.equal(b)
